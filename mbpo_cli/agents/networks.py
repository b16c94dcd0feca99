"""Actors, critics and the update of target networks. All are built on the generator's device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbpo_cli.nn.networks import BatchedMLP, uniform
from mbpo_cli.types import DiscreteActions, SpaceSpec


class Critics(nn.Module):
    """Q-functions of observation and continuous action, evaluated together."""

    def __init__(
        self, num_critics: int, spaces: SpaceSpec, hidden_sizes: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.num_critics = num_critics
        sizes = (spaces.obs_size + spaces.action_size, *hidden_sizes, 1)
        self.mlp = BatchedMLP(num_critics, sizes, functional.relu, uniform, generator)

    def forward(self, obs_BO: Tensor, action_BA: Tensor) -> Tensor:
        """Return each critic's values, shape (num_critics, B)."""
        inputs = torch.cat((obs_BO, action_BA), dim=-1)
        values: Tensor = self.mlp(inputs.expand(self.num_critics, -1, -1))
        return values[..., 0]

    def first(self, obs_BO: Tensor, action_BA: Tensor) -> Tensor:
        """Return the first critic's values, shape (B,), without evaluating the others."""
        inputs = torch.cat((obs_BO, action_BA), dim=-1)
        values: Tensor = self.mlp(inputs[None], slice(1))
        return values[0, :, 0]


class DiscreteCritics(nn.Module):
    """Q-functions of the observation with one output per discrete action, evaluated together."""

    def __init__(
        self, num_critics: int, spaces: SpaceSpec, hidden_sizes: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.num_critics = num_critics
        sizes = (spaces.obs_size, *hidden_sizes, spaces.action_size)
        self.mlp = BatchedMLP(num_critics, sizes, functional.relu, uniform, generator)

    def of_all_actions(self, obs_BO: Tensor) -> Tensor:
        """Return each critic's values of all actions, shape (num_critics, B, A)."""
        values: Tensor = self.mlp(obs_BO.expand(self.num_critics, -1, -1))
        return values

    def forward(self, obs_BO: Tensor, action_BA: Tensor) -> Tensor:
        """Return each critic's values of one-hot actions, shape (num_critics, B)."""
        return (self.of_all_actions(obs_BO) * action_BA).sum(-1)


class Actor(nn.Module):
    """Base of policies: a network of the observation."""

    outputs_per_element = 1  # of an action

    def __init__(self, spaces: SpaceSpec, hidden_sizes: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.action_size = spaces.action_size
        sizes = (spaces.obs_size, *hidden_sizes, self.outputs_per_element * spaces.action_size)
        self.mlp = BatchedMLP(1, sizes, functional.relu, uniform, generator)


class DeterministicActor(Actor):
    """A policy that maps each observation to one action in [-1, 1]."""

    def forward(self, obs_BO: Tensor) -> Tensor:
        """Return actions, shape (B, A)."""
        output: Tensor = self.mlp(obs_BO[None])[0]
        return output.tanh()


class SquashedGaussianActor(Actor):
    """A Gaussian policy squashed to [-1, 1] by tanh."""

    outputs_per_element = 2  # mean and log standard deviation

    def moments(self, obs_BO: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, both (B, A)."""
        mean, log_std = self.mlp(obs_BO[None])[0].chunk(2, dim=-1)
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
        self, obs_BO: Tensor, critics: Critics | DiscreteCritics, noise_BA: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Estimate the policy's value (minimum over critics) and entropy, both (B,), from one action."""
        action, log_density = self.act_with_log_density(obs_BO, noise_BA)
        return critics(obs_BO, action).amin(0), -log_density


class CategoricalActor(Actor):
    """A categorical policy for discrete actions."""

    def log_probabilities(self, obs_BO: Tensor) -> Tensor:
        """Return the log probability of each action, shape (B, A)."""
        return functional.log_softmax(self.mlp(obs_BO[None])[0], dim=-1)

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
        self, obs_BO: Tensor, critics: Critics | DiscreteCritics, noise_B0: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the policy's value (minimum over critics) and entropy, both (B,), exactly.

        Source: Christodoulou 2019, "Soft Actor-Critic for Discrete Action Settings", equations 10 to 12.
        """
        assert isinstance(critics, DiscreteCritics)
        log_probability = self.log_probabilities(obs_BO)
        probability = log_probability.exp()
        value = critics.of_all_actions(obs_BO).amin(0)
        return (probability * value).sum(-1), -(probability * log_probability).sum(-1)


@torch.no_grad()
def smooth_update(target: nn.Module, source: nn.Module, factor: float) -> None:
    """Move the target's parameters towards the source's: target += factor * (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), factor)
