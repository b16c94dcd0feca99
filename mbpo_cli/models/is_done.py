"""Is-done functions of (o, a, o'), learned or known, with one signature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mbpo_cli.models.function import LearnedFunction, LearnedOptions, Network
from mbpo_cli.models.losses import is_done_loss
from mbpo_cli.models.regression import Normalizer
from mbpo_cli.networks import BatchedMLP, truncated_normal
from mbpo_cli.types import SpaceSpec, Transitions


@dataclass
class LearnedIsDoneOptions(LearnedOptions):
    """Options of a learned is-done function."""


class Classifier(Network):
    """A network that maps normalised inputs to the logit of being done."""

    num_members = 1

    def __init__(self, input_size: int, hidden_sizes: list[int], generator: torch.Generator) -> None:
        """Build the network on the generator's device."""
        super().__init__()
        self.inputs = Normalizer(input_size, generator.device)
        self.mlp = BatchedMLP(1, (input_size, *hidden_sizes, 1), functional.silu, truncated_normal, generator)

    def fit_normalizers(self, inputs_NI: Tensor, targets_ND: Tensor) -> None:
        """Take the normalisation from the training data."""
        self.inputs.fit(inputs_NI)

    def logits(self, inputs_MBI: Tensor) -> Tensor:
        """Return logits, shape (M, B)."""
        logits: Tensor = self.mlp(self.inputs(inputs_MBI))
        return logits[..., 0]

    def loss(self, inputs_MBI: Tensor, targets_MBD: Tensor) -> Tensor:
        """Return the weighted cross-entropy, shape (M,)."""
        return is_done_loss(self.logits(inputs_MBI), targets_MBD[..., 0])


class LearnedIsDone(LearnedFunction):
    """A network that predicts termination from observation, action and next observation."""

    Options = LearnedIsDoneOptions
    network: Classifier

    def __init__(self, options: LearnedIsDoneOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        """Build the network on the generator's device."""
        input_size = 2 * spaces.obs_size + spaces.action_size
        super().__init__(Classifier(input_size, options.hidden_sizes, generator), options)

    def examples(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return (o, a, o') and 1 where o' is terminal."""
        inputs = torch.cat((transitions.obs, transitions.action, transitions.next_obs), -1)
        return inputs, transitions.terminated[:, None]

    def predict(self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator) -> Tensor:
        """Return 1.0 where termination is at least as likely as not, else 0.0; shape (B,)."""
        logit = self.network.logits(torch.cat((obs, action, next_obs), -1)[None])[0]
        return (logit >= 0).to(obs.dtype)
