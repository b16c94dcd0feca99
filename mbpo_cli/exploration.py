"""Policies that explore within model rollouts, one per choice of `noise_options`.

Each wraps the base agent and has its signature. Knows agents only by their contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.options import Component, option
from mbpo_cli.types import Agent, SpaceSpec


@dataclass
class EmptyOptions(Component):
    """Empty noise options: the base agent explores in rollouts as it does outside."""


class AgentExploration:
    """The base agent's own exploration policy, the choice of the page when noise is empty."""

    Options = EmptyOptions

    def __init__(self, options: EmptyOptions, agent: Agent, spaces: SpaceSpec) -> None:
        """Explore as `agent` does."""
        self.agent = agent

    def __call__(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return the agent's actions, shape (B, A)."""
        return self.agent.act(obs, explore)

    def decay(self) -> None:
        """Nothing decays."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing."""


@dataclass
class GaussianNoiseOptions(Component):
    """MATLAB's GaussianActionNoise, in units of the scaled action, whose range is [-1, 1]."""

    mean: float = option("mean of the noise", low=-2, high=2, matlab="Mean")
    standard_deviation: float = option(
        "standard deviation of the noise, at first", low=0, high=10, matlab="StandardDeviation"
    )
    standard_deviation_decay_rate: float = option(
        "share by which it shrinks after each generation", low=0, high=1, matlab="StandardDeviationDecayRate"
    )
    standard_deviation_min: float = option(
        "it does not shrink below this", low=0, high=10, matlab="StandardDeviationMin"
    )
    lower_limit: float = option("smallest noise", low=-2, high=2, matlab="LowerLimit")
    upper_limit: float = option("largest noise", low=-2, high=2, matlab="UpperLimit")

    def __post_init__(self) -> None:
        """Check what no single option can tell."""
        if self.lower_limit > self.upper_limit:
            raise ValueError(
                f"lower_limit={self.lower_limit}: must be at most upper_limit={self.upper_limit}"
            )


class GaussianNoise:
    """The agent's greedy action plus limited Gaussian noise, clipped to [-1, 1]."""

    Options = GaussianNoiseOptions

    def __init__(self, options: GaussianNoiseOptions, agent: Agent, spaces: SpaceSpec) -> None:
        """Explore around the greedy actions of `agent`."""
        self.options = options
        self.agent = agent
        self.standard_deviation = options.standard_deviation

    def __call__(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return noisy actions, shape (B, A); greedy ones without a random stream."""
        action = self.agent.act(obs)
        if explore is None:
            return action
        noise = torch.randn(action.shape, generator=explore, device=action.device)
        noise = noise * self.standard_deviation + self.options.mean
        noise = noise.clamp(self.options.lower_limit, self.options.upper_limit)
        return (action + noise).clamp(-1, 1)

    def decay(self) -> None:
        """Shrink the standard deviation by the decay rate, not below its minimum."""
        if self.standard_deviation > self.options.standard_deviation_min:
            shrunk = self.standard_deviation * (1 - self.options.standard_deviation_decay_rate)
            self.standard_deviation = max(shrunk, self.options.standard_deviation_min)

    def state_dict(self) -> dict[str, Any]:
        """Return the current standard deviation."""
        return {"standard_deviation": self.standard_deviation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.standard_deviation = state["standard_deviation"]
