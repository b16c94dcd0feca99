"""Actors, critics and the update of target networks. All are built on the generator's device."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbpo_cli.agents.bounds import ReturnBounds
from mbpo_cli.agents.options import CriticOptions
from mbpo_cli.nn.networks import Activation, BatchedMLP, Initializer, orthogonal, uniform
from mbpo_cli.types import DiscreteActions, SpaceSpec

# Observations whose deviation relative to their mean is smaller are only centered, as it is rounding errors.
SMALLEST_DEVIATION = 1e-6
MOST_DEVIATIONS = 10.0

Network = TypeVar("Network", bound=nn.Module)

ACTIVATIONS: dict[str, Activation] = {"relu": functional.relu, "silu": functional.silu}
INITIALIZERS: dict[str, Initializer] = {"uniform": uniform, "orthogonal": orthogonal}


Combine = Callable[[Tensor], Tensor]
"""From the values of all critics, shape (M, B, ...), to one value, shape (B, ...)."""


def smallest(subset: Tensor | None) -> Combine:
    """Return the function that chooses the smallest value of some critics; None stands for all."""
    return lambda values: (values if subset is None else values[subset]).amin(0)


class Scaling(nn.Module):
    """Scales observations by the mean and the standard deviation of all that were counted."""

    count: Tensor
    mean: Tensor
    squares: Tensor
    shift: Tensor
    factor: Tensor

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64, device=device))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64, device=device))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64, device=device))
        self.register_buffer("shift", torch.zeros(size, device=device))
        self.register_buffer("factor", torch.ones(size, device=device))

    @torch.no_grad()
    def count_in(self, obs_BO: Tensor) -> None:
        """Add observations, shape (B, O), to the statistics.

        Source: Chan et al. 1983, "Algorithms for computing the sample variance".
        """
        obs = obs_BO.to(self.mean)
        total = self.count + len(obs)
        difference = obs.mean(0) - self.mean
        self.squares += (obs - obs.mean(0)).square().sum(0)
        self.squares += difference.square() * (self.count * len(obs) / total)
        self.mean += difference * (len(obs) / total)
        self.count.copy_(total)
        deviation = (self.squares / self.count).sqrt()
        is_constant = deviation <= SMALLEST_DEVIATION * self.mean.abs().clamp(min=1e-8)
        self.shift.copy_(self.mean)
        self.factor.copy_(torch.where(is_constant, 1.0, 1 / deviation))

    def forward(self, obs: Tensor) -> Tensor:
        """Return scaled observations, at most 10 deviations from the mean."""
        return ((obs - self.shift) * self.factor).clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)


class Shared(NamedTuple):
    """What the networks of an agent share.

    Attributes:
        activation: Of the hidden layers.
        initialize: Draws the initial weights.
        scaling: Of the observations.
        bounds: Of the returns, which give the scale of the critics' outputs.
    """

    activation: Activation = functional.relu
    initialize: Initializer = uniform
    scaling: Scaling | None = None
    bounds: ReturnBounds | None = None


PLAIN = Shared()


def scaled(obs: Tensor, scaling: Scaling | None) -> Tensor:
    """Return observations as networks get them."""
    return obs if scaling is None else scaling(obs)


def target_of(network: Network) -> Network:
    """Return a copy of a network, which shares its scaling and its bounds."""
    shared: Any = network.shared
    return copy.deepcopy(network, {id(part): part for part in shared})


class QNetworks(nn.Module):
    """Base of critics: networks evaluated together, whose values a target or an actor combines.

    Several networks may share scaling and bounds.
    """

    def __init__(
        self, options: CriticOptions, sizes: Sequence[int], generator: torch.Generator, shared: Shared
    ) -> None:
        super().__init__()
        self.options = options
        self.shared = shared
        self.scaling = shared.scaling
        self.mlp = BatchedMLP(
            options.number, sizes, shared.activation, shared.initialize, generator, options.layer_norm
        )

    def values_of(self, outputs: Tensor) -> Tensor:
        """Return values from the outputs of the networks, which may be in units of the range of returns."""
        bounds = self.shared.bounds if self.options.scale_outputs else None
        return outputs if bounds is None else bounds.scaled(outputs)

    def for_actor(self, values: Tensor) -> Tensor:
        """Return what an actor maximizes, shape (B, ...) from (M, B, ...).

        The smallest value, or the mean if targets ask only some of the critics. Source: Chen et al. 2021,
        "Randomized Ensembled Double Q-Learning".
        """
        return values.amin(0) if self.options.num_in_target == self.options.number else values.mean(0)


class Critics(QNetworks):
    """Q-functions of observation and continuous action."""

    def __init__(
        self,
        options: CriticOptions,
        spaces: SpaceSpec,
        hidden_sizes: Sequence[int],
        generator: torch.Generator,
        shared: Shared = PLAIN,
    ) -> None:
        sizes = (spaces.obs_size + spaces.action_size, *hidden_sizes, 1)
        super().__init__(options, sizes, generator, shared)

    def forward(self, obs_BO: Tensor, action_BA: Tensor, dropout: Sequence[Tensor] | None = None) -> Tensor:
        """Return each critic's values, shape (M, B)."""
        inputs = torch.cat((scaled(obs_BO, self.scaling), action_BA), dim=-1)
        values: Tensor = self.mlp(inputs.expand(self.options.number, -1, -1), dropout=dropout)
        return self.values_of(values[..., 0])

    def first(self, obs_BO: Tensor, action_BA: Tensor) -> Tensor:
        """Return the first critic's values, shape (B,), without evaluating the others."""
        inputs = torch.cat((scaled(obs_BO, self.scaling), action_BA), dim=-1)
        values: Tensor = self.mlp(inputs[None], slice(1))
        return self.values_of(values[0, :, 0])


class DiscreteCritics(QNetworks):
    """Q-functions of the observation with one output per discrete action."""

    def __init__(
        self,
        options: CriticOptions,
        spaces: SpaceSpec,
        hidden_sizes: Sequence[int],
        generator: torch.Generator,
        shared: Shared = PLAIN,
    ) -> None:
        super().__init__(options, (spaces.obs_size, *hidden_sizes, spaces.action_size), generator, shared)

    def of_all_actions(self, obs_BO: Tensor, dropout: Sequence[Tensor] | None = None) -> Tensor:
        """Return each critic's values of all actions, shape (M, B, A)."""
        inputs = scaled(obs_BO, self.scaling).expand(self.options.number, -1, -1)
        values: Tensor = self.mlp(inputs, dropout=dropout)
        return self.values_of(values)

    def forward(self, obs_BO: Tensor, action_BA: Tensor, dropout: Sequence[Tensor] | None = None) -> Tensor:
        """Return each critic's values of one-hot actions, shape (M, B)."""
        return (self.of_all_actions(obs_BO, dropout) * action_BA).sum(-1)


class Actor(nn.Module):
    """Base of policies: a network of the observation."""

    outputs_per_element = 1  # of an action

    def __init__(
        self,
        spaces: SpaceSpec,
        hidden_sizes: Sequence[int],
        generator: torch.Generator,
        shared: Shared = PLAIN,
    ) -> None:
        super().__init__()
        self.action_size = spaces.action_size
        self.shared = shared
        self.scaling = shared.scaling
        sizes = (spaces.obs_size, *hidden_sizes, self.outputs_per_element * spaces.action_size)
        self.mlp = BatchedMLP(1, sizes, shared.activation, shared.initialize, generator)

    def outputs(self, obs_BO: Tensor) -> Tensor:
        """Return the outputs of the network, shape (B, outputs)."""
        outputs: Tensor = self.mlp(scaled(obs_BO, self.scaling)[None])[0]
        return outputs


class DeterministicActor(Actor):
    """A policy that maps each observation to one action in [-1, 1]."""

    def forward(self, obs_BO: Tensor) -> Tensor:
        """Return actions, shape (B, A)."""
        return self.outputs(obs_BO).tanh()

    def loss(self, obs_BO: Tensor, value: Callable[[Tensor], Tensor], limit: float | None) -> Tensor:
        """Return the scalar to minimize: minus the mean `value` (B,) of actions, and `pull` to a limit."""
        output_BA = self.outputs(obs_BO)
        value_B = value(output_BA.tanh())
        return -value_B.mean() if limit is None else pull(output_BA, value_B, limit) - value_B.mean()


def pull(output_BA: Tensor, value_B: Tensor, limit: float) -> Tensor:
    """Return a loss that pulls an actor's outputs back to `limit`, in proportion to the size of the values.

    Tanh has no gradient for outputs far beyond the limits of actions, where an actor would stay for good.
    """
    excess = (output_BA.abs() - limit).relu().square().mean()
    return value_B.detach().abs().mean() * excess


class SquashedGaussianActor(Actor):
    """A Gaussian policy squashed to [-1, 1] by tanh."""

    outputs_per_element = 2  # mean and log standard deviation

    def moments(self, obs_BO: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, both (B, A)."""
        mean, log_std = self.outputs(obs_BO).chunk(2, dim=-1)
        return mean, log_std.clamp(-20.0, 2.0)  # Source: Haarnoja et al. 2018, public code

    def greedy(self, obs_BO: Tensor) -> Tensor:
        """Return the squashed mean, shape (B, A)."""
        return self.moments(obs_BO)[0].tanh()

    def noise(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Draw the standard normal noise of `num_rows` actions, shape (B, A)."""
        return torch.randn(num_rows, self.action_size, generator=generator, device=generator.device)

    def sample(self, obs_BO: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions, shape (B, A)."""
        return self.act_with_log_density(obs_BO, self.noise(len(obs_BO), generator))[0]

    def act_with_log_density(self, obs_BO: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions (B, A), differentiable in the parameters, and their log densities (B,).

        Source: Haarnoja et al. 2018, appendix C, with log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)),
        which does not lose precision where tanh saturates.
        """
        mean, log_std = self.moments(obs_BO)
        unsquashed = mean + log_std.exp() * noise_BA
        log_density = -0.5 * noise_BA.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - unsquashed - functional.softplus(-2 * unsquashed))
        return unsquashed.tanh(), (log_density - log_slope).sum(-1)

    def expect(
        self,
        obs_BO: Tensor,
        critics: QNetworks,
        combine: Combine,
        noise_BA: Tensor,
        dropout: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Estimate the policy's value and entropy, both (B,), from one action."""
        action, log_density = self.act_with_log_density(obs_BO, noise_BA)
        return combine(critics(obs_BO, action, dropout)), -log_density


class CategoricalActor(Actor):
    """A categorical policy for discrete actions."""

    def log_probabilities(self, obs_BO: Tensor) -> Tensor:
        """Return the log probability of each action, shape (B, A)."""
        return functional.log_softmax(self.outputs(obs_BO), dim=-1)

    def greedy(self, obs_BO: Tensor) -> Tensor:
        """Return the most probable action, one-hot, shape (B, A)."""
        return DiscreteActions(self.action_size).one_hot(self.log_probabilities(obs_BO).argmax(-1))

    def noise(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Return an empty tensor, shape (B, 0): expectations are exact and need no noise."""
        return torch.empty(num_rows, 0, device=generator.device)

    def sample(self, obs_BO: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions, one-hot, shape (B, A)."""
        probabilities = self.log_probabilities(obs_BO).exp()
        index = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        return DiscreteActions(self.action_size).one_hot(index)

    def expect(
        self,
        obs_BO: Tensor,
        critics: QNetworks,
        combine: Combine,
        noise_B0: Tensor,
        dropout: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the policy's value and entropy, both (B,), exactly.

        Source: Christodoulou 2019, "Soft Actor-Critic for Discrete Action Settings", equations 10 to 12.
        """
        assert isinstance(critics, DiscreteCritics)
        log_probability = self.log_probabilities(obs_BO)
        probability = log_probability.exp()
        value = combine(critics.of_all_actions(obs_BO, dropout))
        return (probability * value).sum(-1), -(probability * log_probability).sum(-1)


@torch.no_grad()
def smooth_update(target: nn.Module, source: nn.Module, factor: float) -> None:
    """Move the target's parameters towards the source's: target += factor * (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), factor)
