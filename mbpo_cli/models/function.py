"""The common base of learned transition, reward and is-done functions: a network with its optimizer."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbpo_cli.nn.compilation import one_by_one
from mbpo_cli.nn.networks import BatchedMLP, dropout_factors, truncated_normal
from mbpo_cli.nn.optimizers import MemberOptimizerOptions, Optimizer, OptimizerOptions
from mbpo_cli.options import Component, absolute, option
from mbpo_cli.types import Accelerate, GradientSteps, SpaceSpec, Transitions


@dataclass
class LearnedOptions(Component):
    """Options of every learned function."""

    hidden_sizes: list[int] = option(
        "units of each hidden layer, the same in all members of an ensemble", low=1, high=65536
    )
    layer_decays: float | list[float] | None = option(
        "weight decay, one or a list with one per layer, the output layer included: factor of half the sum "
        "of squared weights, added to the loss; null = none",
        low=0,
    )

    decoupled_decay: bool = option(
        "true = weights shrink by learning rate times decay in each step, as in AdamW; false = the decay is "
        "part of the loss, as in MBPO's code"
    )
    layer_norm: bool = option("normalize the hidden layers")
    dropout: float = option("fraction of hidden units left out at random in training", low=0, high=0.9)
    from_run: str | None = option(
        "directory of a run, or of one of its checkpoints, whose function this one begins with, with its "
        "normalization; or a file with the tensors of its network; null = random weights"
    )

    def __post_init__(self) -> None:
        self.from_run = absolute(self.from_run)
        num_layers = len(self.hidden_sizes) + 1
        if isinstance(self.layer_decays, list) and len(self.layer_decays) != num_layers:
            raise ValueError(
                f"layer_decays={self.layer_decays}: needs a value for each of {num_layers} layers"
            )


Inputs = Literal["obs_action_next_obs", "obs_action", "action_next_obs", "next_obs"]


@dataclass
class OutcomeOptions(LearnedOptions):
    """Options of learned reward and is-done functions."""

    optimizer: OptimizerOptions = option("how it is trained")
    inputs: Inputs = option(
        "inputs of the function, out of observation, action and next observation",
        matlab=("ObservationInputNames", "ActionInputNames", "NextObservationInputNames"),
    )

    def input_size(self, spaces: SpaceSpec) -> int:
        """Return the number of input elements I."""
        obs, action = torch.empty(1, spaces.obs_size), torch.empty(1, spaces.action_size)
        return self.select(obs, action, obs).shape[1]

    def select(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Return the inputs of the function, shape (B, I)."""
        mask = (self.inputs.startswith("obs"), "action" in self.inputs, self.inputs.endswith("next_obs"))
        return torch.cat(list(itertools.compress((obs, action, next_obs), mask)), -1)


# A dimension is constant if its deviation is at most this fraction of the size of its values, which rounding
# errors of float32 can reach, or at most SMALLEST, which those of float64 can reach in numbers of about 1.
ROUNDING, SMALLEST = 1e-6, 1e-14


class Normalizer(nn.Module):
    """Normalizes each dimension to zero mean and unit variance; the identity before its fit."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, device=device))
        self.register_buffer("std", torch.ones(size, device=device))

    def fit(self, values_ND: Tensor, rounding_D: Tensor | None = None) -> None:
        """Compute mean and deviation of the rows; a constant dimension is only centered.

        `rounding_D` are the largest deviations that rounding errors can cause; None: those of the values.
        """
        values = values_ND.double()
        mean, std = values.mean(0), values.std(0, correction=0)
        rounding = ROUNDING * values.abs().mean(0) if rounding_D is None else rounding_D
        constant = std <= rounding.clamp(min=SMALLEST)
        self.mean.copy_(mean)
        # Of large constants, even the rounding errors are large.
        self.std.copy_(torch.where(constant, std.clamp(min=1.0), std))

    def forward(self, values: Tensor) -> Tensor:
        """Return normalized values."""
        return (values - self.mean) / self.std


class Network(nn.Module, ABC):
    """An ensemble of networks of normalized inputs, with their loss; `sizes` are those of their layers."""

    def __init__(
        self, num_members: int, sizes: Sequence[int], generator: torch.Generator, layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_members = num_members
        self.inputs = Normalizer(sizes[0], generator.device)
        self.mlp = BatchedMLP(num_members, sizes, functional.silu, truncated_normal, generator, layer_norm)

    def fit_normalizers(self, inputs_NI: Tensor, targets_ND: Tensor) -> None:
        """Compute the normalization of the inputs from the training data."""
        self.inputs.fit(inputs_NI)

    @abstractmethod
    def losses(
        self,
        inputs_MBI: Tensor,
        targets_MBD: Tensor,
        dropout: Sequence[Tensor] | None = None,
        importance_MB: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return each member's loss as the page defines it, shape (M,), and the scalar to minimize.

        `dropout` are factors of the hidden units, `importance_MB` those of the rows.
        """

    @abstractmethod
    def errors(self, inputs_NI: Tensor, targets_ND: Tensor) -> Tensor:
        """Return the errors by which members are compared on hold-out data, shape (M,)."""


class LearnedFunction(ABC):
    """A network with its optimizer, trained on examples extracted from transitions.

    A learning rate of 0 leaves the network unchanged.
    """

    stops_early = True

    def __init__(self, network: Network, options: LearnedOptions, optimizer: MemberOptimizerOptions) -> None:
        self.network = network
        decays = options.layer_decays
        if isinstance(decays, int | float):
            decays = [decays] * len(network.mlp.weights)
        self._layer_decays, self._decays_apart = decays, options.decoupled_decay
        self._hidden_sizes, self._dropout = options.hidden_sizes, options.dropout
        self.optimizer = Optimizer(network.parameters(), optimizer)
        self.is_pretrained = options.from_run is not None
        self.is_trained = optimizer.learn_rate not in (0, [0] * network.num_members)
        self._rate_M = torch.tensor(optimizer.learn_rate, device=self.optimizer.device).reshape(-1, 1, 1)
        self._steps_by_size: dict[int, GradientSteps] = {}

    @abstractmethod
    def examples(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return the inputs (N, I) and targets (N, D) of real transitions."""

    def fit_normalizers(self, inputs_NI: Tensor, targets_ND: Tensor) -> None:
        """Compute the normalization of the network from the training data."""
        self.network.fit_normalizers(inputs_NI, targets_ND)

    def learn(
        self,
        inputs_MBI: Tensor,
        targets_MBD: Tensor,
        generator: torch.Generator | None = None,
        importance_MB: Tensor | None = None,
    ) -> Tensor:
        """Take one gradient step and return each member's loss before it, shape (M,).

        With dropout, `generator` draws the hidden units that are left out. `importance_MB` weights the rows.
        """
        steps = self._steps_by_size.get(inputs_MBI.shape[1], one_by_one(self._step))
        dropout = None
        if self._dropout > 0 and generator is not None:
            members, rows, _ = inputs_MBI.shape
            dropout = dropout_factors(self._dropout, members, rows, self._hidden_sizes, generator)
        batch = {"inputs_MBI": inputs_MBI, "targets_MBD": targets_MBD}
        return steps([batch | {"dropout": dropout, "importance_MB": importance_MB}])[0]["loss"]

    def compile(self, accelerate: Accelerate, mini_batch_size: int) -> None:
        """Accelerate the gradient steps on mini-batches of one size.

        The last mini-batch of an epoch has a different size in every fit, and is not accelerated.
        """
        self._steps_by_size[mini_batch_size] = accelerate(self._step)

    def _step(
        self,
        inputs_MBI: Tensor,
        targets_MBD: Tensor,
        dropout: Sequence[Tensor] | None,
        importance_MB: Tensor | None,
    ) -> dict[str, Tensor]:
        loss_M, objective = self.network.losses(inputs_MBI, targets_MBD, dropout, importance_MB)
        if self._layer_decays is not None and not self._decays_apart:
            objective = objective + self.network.mlp.decay(self._layer_decays)
        self.optimizer.minimize(objective)
        if self._layer_decays is not None and self._decays_apart:
            with torch.no_grad():
                for weight, decay in zip(self.network.mlp.weights, self._layer_decays, strict=True):
                    weight.mul_(1 - self._rate_M * decay)
        return {"loss": loss_M.detach()}

    def begin_with(self, state: dict[str, Any]) -> None:
        """Take over the `state_dict` of another run's function; the optimizer begins anew."""
        self.load_state_dict({**state, "optimizer": self.optimizer.state_dict()})

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the network, with its normalization, and of the optimizer."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
