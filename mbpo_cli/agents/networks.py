"""Actors and critics as batched networks, and the target update that agents share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbpo_cli.networks import BatchedMLP, uniform

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # Source: Haarnoja et al. 2018, public code


class Critics(nn.Module):
    """Q-functions of observation and action, evaluated together."""

    def __init__(
        self,
        num_critics: int,
        obs_size: int,
        action_size: int,
        hidden_sizes: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        """Build the critics on the generator's device."""
        super().__init__()
        self.num_critics = num_critics
        sizes = (obs_size + action_size, *hidden_sizes, 1)
        self.mlp = BatchedMLP(num_critics, sizes, functional.relu, uniform, generator)

    def forward(self, obs_BO: Tensor, action_BA: Tensor) -> Tensor:
        """Return each critic's values, shape (num_critics, B)."""
        inputs = torch.cat((obs_BO, action_BA), dim=-1)
        values: Tensor = self.mlp(inputs.expand(self.num_critics, -1, -1))
        return values[..., 0]


class SquashedGaussianActor(nn.Module):
    """A Gaussian policy squashed to [-1, 1] by tanh."""

    def __init__(
        self, obs_size: int, action_size: int, hidden_sizes: Sequence[int], generator: torch.Generator
    ) -> None:
        """Build the actor on the generator's device."""
        super().__init__()
        sizes = (obs_size, *hidden_sizes, 2 * action_size)
        self.mlp = BatchedMLP(1, sizes, functional.relu, uniform, generator)

    def moments(self, obs_BO: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, both (B, A)."""
        mean, log_std = self.mlp(obs_BO[None])[0].chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs_BO: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw actions (B, A), differentiable in the parameters, and their log densities (B,).

        Source: Haarnoja et al. 2018, appendix C, with log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)),
        which does not lose precision where tanh saturates.
        """
        mean, log_std = self.moments(obs_BO)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        unsquashed = mean + log_std.exp() * noise
        log_density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - unsquashed - functional.softplus(-2 * unsquashed))
        return unsquashed.tanh(), (log_density - log_slope).sum(-1)


@torch.no_grad()
def smooth_update(target: nn.Module, source: nn.Module, factor: float) -> None:
    """Move the target's parameters towards the source's: target += factor * (source - target)."""
    for target_parameter, parameter in zip(target.parameters(), source.parameters(), strict=True):
        target_parameter.lerp_(parameter, factor)
