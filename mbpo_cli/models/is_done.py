"""Learned is-done functions of (o, a, o')."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.models.function import LearnedFunction, Network, OutcomeOptions
from mbpo_cli.models.losses import is_done_loss
from mbpo_cli.nn.optimizers import OptimizerOptions
from mbpo_cli.options import option
from mbpo_cli.types import Metrics, SpaceSpec, Transitions

NEVER = torch.finfo(torch.float32).max  # a threshold that no logit reaches
MAX_ROWS = 20_000  # real transitions that are looked at to choose a threshold


@dataclass
class LearnedIsDoneOptions(OutcomeOptions):
    """Options of a learned is-done function: MATLAB's rlIsDoneFunction."""

    optimizer: OptimizerOptions = option("how it is trained", matlab="IsDoneOptimizerOptions")
    use_deterministic_predict: bool = option(
        "true = done if the predicted probability is at least 0.5; false = drawn with that probability, which"
        " the weighted loss fits to balanced classes",
        matlab="UseDeterministicPredict",
    )
    max_false_ends: float | None = option(
        "limit of false ends, as a fraction of the real steps that are no ends: each fit lowers the logits "
        "until it holds, and no end is predicted before one was seen; null = no limit",
        low=0,
        high=1,
    )
    early_stopping: bool = option(
        "false = it is fitted for all epochs, as the few ends of a hold-out set do not show when to stop"
    )


class Classifier(Network):
    """A network whose output is the logit of being done."""

    def logits(self, inputs_MBI: Tensor, dropout: Sequence[Tensor] | None = None) -> Tensor:
        """Return logits, shape (M, B)."""
        logits: Tensor = self.mlp(self.inputs(inputs_MBI), dropout=dropout)
        return logits[..., 0]

    def losses(
        self,
        inputs_MBI: Tensor,
        targets_MBD: Tensor,
        dropout: Sequence[Tensor] | None = None,
        importance_MB: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted cross-entropy, shape (M,), and its sum, which is minimized.

        All rows have the same importance, as ends are rare.
        """
        loss_M = is_done_loss(self.logits(inputs_MBI, dropout), targets_MBD[..., 0])
        return loss_M, loss_M.sum()

    def errors(self, inputs_NI: Tensor, targets_ND: Tensor) -> Tensor:
        """Return the weighted cross-entropy, shape (1,)."""
        return is_done_loss(self.logits(inputs_NI[None]), targets_ND[None, :, 0])


class LearnedIsDone(LearnedFunction):
    """A network that predicts termination from the chosen inputs."""

    Options = LearnedIsDoneOptions
    network: Classifier

    def __init__(self, options: LearnedIsDoneOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        sizes = (options.input_size(spaces), *options.hidden_sizes, 1)
        network = Classifier(1, sizes, generator, options.layer_norm)
        super().__init__(network, options, options.optimizer)
        self.select = options.select
        self.use_deterministic_predict = options.use_deterministic_predict
        self.max_false_ends = options.max_false_ends
        self.stops_early = options.early_stopping
        self.threshold = torch.zeros((), device=generator.device)

    def examples(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return the chosen inputs, and 1.0 where o' is terminal."""
        inputs = self.select(transitions.obs, transitions.action, transitions.next_obs)
        return inputs, transitions.terminated[:, None]

    def predict(self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator) -> Tensor:
        """Return 1.0 where o' is predicted to be terminal, else 0.0; shape (B,)."""
        if self.use_deterministic_predict:
            return self.most_likely(obs, action, next_obs)
        logit = self.logits(self.select(obs, action, next_obs))
        return torch.bernoulli(logit.sigmoid(), generator=generator)

    def most_likely(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Return 1.0 where the end is the more likely outcome, else 0.0; shape (B,)."""
        return (self.logits(self.select(obs, action, next_obs)) >= 0).to(obs.dtype)

    def logits(self, inputs_BI: Tensor) -> Tensor:
        """Return the logits of being done, relative to the threshold; shape (B,)."""
        return self.network.logits(inputs_BI[None])[0] - self.threshold

    @torch.no_grad()
    def calibrate(self, real: Transitions) -> None:
        """Choose the threshold: at least 0, and so high that few of the real steps are false ends.

        The weighted loss gives all ends together the weight of all other steps. With a threshold of 0, a
        network that does not separate them perfectly predicts many false ends where ends are rare.
        """
        if self.max_false_ends is None:
            return
        if not bool(real.terminated.any()):
            self.threshold = torch.full_like(self.threshold, NEVER)
            return
        inputs, target = self.examples(real[:: math.ceil(len(real) / MAX_ROWS)])
        logit = self.network.logits(inputs[None])[0][target[:, 0] == 0]
        num_allowed = int(self.max_false_ends * len(logit))
        rejected = logit.sort(descending=True).values[num_allowed : num_allowed + 1]
        above = torch.nextafter(rejected, torch.full_like(rejected, NEVER))
        self.threshold = torch.cat((torch.zeros_like(self.threshold)[None], above)).max()

    @torch.no_grad()
    def metrics(self, held_out: Transitions) -> Metrics:
        """Return precision and recall of ends on hold-out data, without those that are not defined."""
        inputs, target = self.examples(held_out)
        found = precision_and_recall((self.logits(inputs) >= 0).float(), target[:, 0])
        return {f"model/is_done_{name}": value for name, value in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of network and optimizer, and the threshold."""
        return {**super().state_dict(), "threshold": self.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; before 0.2.0 the threshold was 0."""
        super().load_state_dict(state)
        self.threshold = torch.as_tensor(state.get("threshold", 0.0), device=self.threshold.device)


def precision_and_recall(predicted: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Compare predicted with real ends, both 1.0 or 0.0 and of shape (B,).

    Precision is omitted if no end is predicted, and recall if there is no real one.
    """
    hits = (predicted * real).sum()
    counts = {"precision": predicted.sum(), "recall": real.sum()}
    return {name: hits / count for name, count in counts.items() if count > 0}
