"""Learned is-done functions of (o, a, o')."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbpo_cli.models.function import LearnedFunction, Network, OutcomeOptions
from mbpo_cli.models.losses import is_done_loss
from mbpo_cli.options import option
from mbpo_cli.types import SpaceSpec, Transitions


@dataclass
class LearnedIsDoneOptions(OutcomeOptions):
    """Options of a learned is-done function: MATLAB's rlIsDoneFunction."""

    use_deterministic_predict: bool = option(
        "true = done if the predicted probability is at least 0.5; false = drawn with that probability, which"
        " the weighted loss fits to balanced classes",
        matlab="UseDeterministicPredict",
    )


class Classifier(Network):
    """A network whose output is the logit of being done."""

    def logits(self, inputs_MBI: Tensor) -> Tensor:
        """Return logits, shape (M, B)."""
        logits: Tensor = self.mlp(self.inputs(inputs_MBI))
        return logits[..., 0]

    def losses(self, inputs_MBI: Tensor, targets_MBD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted cross-entropy, shape (M,), and its sum, which is minimized."""
        loss_M = is_done_loss(self.logits(inputs_MBI), targets_MBD[..., 0])
        return loss_M, loss_M.sum()

    def errors(self, inputs_NI: Tensor, targets_ND: Tensor) -> Tensor:
        """Return the weighted cross-entropy, shape (1,)."""
        return is_done_loss(self.logits(inputs_NI[None]), targets_ND[None, :, 0])


class LearnedIsDone(LearnedFunction):
    """A network that predicts termination from the chosen inputs."""

    Options = LearnedIsDoneOptions
    network: Classifier

    def __init__(self, options: LearnedIsDoneOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        network = Classifier(1, (options.input_size(spaces), *options.hidden_sizes, 1), generator)
        super().__init__(network, options.optimizer, options.layer_decays)
        self.select = options.select
        self.use_deterministic_predict = options.use_deterministic_predict

    def examples(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return the chosen inputs, and 1.0 where o' is terminal."""
        inputs = self.select(transitions.obs, transitions.action, transitions.next_obs)
        return inputs, transitions.terminated[:, None]

    def predict(self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator) -> Tensor:
        """Return 1.0 where o' is predicted to be terminal, else 0.0; shape (B,)."""
        logit = self.network.logits(self.select(obs, action, next_obs)[None])[0]
        if self.use_deterministic_predict:
            return (logit >= 0).to(obs.dtype)
        return torch.bernoulli(logit.sigmoid(), generator=generator)
