"""What transition, reward and is-done functions share when they are learned: a network and its optimiser."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mbpo_cli.nn.compilation import one_by_one
from mbpo_cli.nn.networks import BatchedMLP
from mbpo_cli.nn.optimizers import MemberOptimizerOptions, Optimizer, OptimizerOptions
from mbpo_cli.options import Component, option
from mbpo_cli.types import Accelerate, GradientSteps, SpaceSpec, Transitions


@dataclass
class LearnedOptions(Component):
    """Options that all learned functions share."""

    hidden_sizes: list[int] = option("units of each hidden layer", low=1, high=65536)
    layer_decays: list[float] | None = option(
        "factor of half the squared weights of each layer, the last one included, added to what is "
        "minimised; null = none",
        low=0,
    )

    def __post_init__(self) -> None:
        """Check what no single option can tell."""
        num_layers = len(self.hidden_sizes) + 1
        if self.layer_decays is not None and len(self.layer_decays) != num_layers:
            raise ValueError(
                f"layer_decays={self.layer_decays}: needs a value for each of {num_layers} layers"
            )


Inputs = Literal["obs_action_next_obs", "obs_action", "action_next_obs", "next_obs"]
_SELECTED: dict[Inputs, tuple[bool, bool, bool]] = {
    "obs_action_next_obs": (True, True, True),
    "obs_action": (True, True, False),
    "action_next_obs": (False, True, True),
    "next_obs": (False, False, True),
}


@dataclass
class OutcomeOptions(LearnedOptions):
    """Options that learned reward and is-done functions share."""

    optimizer: OptimizerOptions = option(
        "how it is trained", matlab=("RewardOptimizerOptions", "IsDoneOptimizerOptions")
    )
    inputs: Inputs = option(
        "what the function sees of observation, action and next observation",
        matlab=("ObservationInputNames", "ActionInputNames", "NextObservationInputNames"),
    )

    def input_size(self, spaces: SpaceSpec) -> int:
        """Return I, the elements of what the function sees."""
        sizes = (spaces.obs_size, spaces.action_size, spaces.obs_size)
        return sum(itertools.compress(sizes, _SELECTED[self.inputs]))

    def select(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Return what the function sees, shape (B, I)."""
        return torch.cat(list(itertools.compress((obs, action, next_obs), _SELECTED[self.inputs])), -1)


class Network(nn.Module, ABC):
    """An ensemble of networks that knows its own loss."""

    num_members: int
    mlp: BatchedMLP

    @abstractmethod
    def fit_normalizers(self, inputs_NI: Tensor, targets_ND: Tensor) -> None:
        """Take the normalisation from the training data."""

    @abstractmethod
    def losses(self, inputs_MBI: Tensor, targets_MBD: Tensor) -> tuple[Tensor, Tensor]:
        """Return each member's loss as the page defines it, shape (M,), and the scalar to minimise."""

    @abstractmethod
    def errors(self, inputs_NI: Tensor, targets_ND: Tensor) -> Tensor:
        """Return by what members are compared on data they were not trained on, shape (M,)."""


class LearnedFunction(ABC):
    """A network with its optimiser, trained on examples that it takes from transitions."""

    def __init__(
        self,
        network: Network,
        optimizer: OptimizerOptions | MemberOptimizerOptions,
        layer_decays: Sequence[float] | None,
    ) -> None:
        """Train `network` as `optimizer` says; a learn rate of 0 leaves it as it is."""
        self.network = network
        self._layer_decays = layer_decays
        self.optimizer = Optimizer(network.parameters(), optimizer)
        self.is_trained = optimizer.learn_rate not in (0, [0] * network.num_members)
        self._steps_by_size: dict[int, GradientSteps] = {}

    @abstractmethod
    def examples(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return inputs (N, I) and targets (N, D) for real transitions."""

    def learn(self, inputs_MBI: Tensor, targets_MBD: Tensor) -> Tensor:
        """Take one step down the gradient; return each member's loss before it, shape (M,)."""
        steps = self._steps_by_size.get(inputs_MBI.shape[1], one_by_one(self._step))
        return steps([{"inputs_MBI": inputs_MBI, "targets_MBD": targets_MBD}])[0]["loss"]

    def compile(self, accelerate: Accelerate, mini_batch_size: int) -> None:
        """Replace the gradient step by what `accelerate` makes of it, for mini-batches of that size.

        What is left over at the end of an epoch has another size in every fit, and goes on as before.
        """
        self._steps_by_size[mini_batch_size] = accelerate(self._step)

    def _step(self, inputs_MBI: Tensor, targets_MBD: Tensor) -> dict[str, Tensor]:
        loss_M, objective = self.network.losses(inputs_MBI, targets_MBD)
        if self._layer_decays is not None:
            objective = objective + self.network.mlp.decay(self._layer_decays)
        self.optimizer.minimize(objective)
        return {"loss": loss_M.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Return weights, normalisation and optimiser."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
