"""Exploration: what is done to greedy actions so that something new is tried.

The same noise models serve agents in the real environment and rollouts in the model. Knows agents
only by their contract.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.options import Component, option
from mbpo_cli.types import ActionSpec, Agent, ContinuousActions, DiscreteActions, SpaceSpec

DECAY = (
    "share by which it shrinks: an agent's at each step after the warm start, a rollout's at each generation"
)


class Noise(ABC):
    """Perturbs greedy actions, by an amount that may decay."""

    actions: type[ActionSpec]
    """The kind of actions that can be perturbed."""

    @abstractmethod
    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Perturb greedy actions, shape (B, A), each row on its own."""

    def advance(self, action: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Perturb the actions of the next real steps, a row per environment, and decay once for each.

        `first`, shape (E,), is true where an episode begins; noise that is correlated in time starts anew.
        """
        action = self(action, generator)
        self.decay(len(action))
        return action

    @abstractmethod
    def decay(self, num_steps: int = 1) -> None:
        """Shrink the amount of noise so many times."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the current amount of noise, and all else that must survive a restart."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def decayed(value: float, rate: float, minimum: float, num_steps: int) -> float:
    """Return `value` shrunk by `rate` so often, not below `minimum`; one that is below it already stays."""
    return max(value * (1 - rate) ** num_steps, minimum) if value > minimum else value


@dataclass
class DecayingNoiseOptions(Component):
    """Options of noise that is added to actions, in units of the scaled action, whose range is [-1, 1]."""

    mean: float = option("mean of the noise", low=-2, high=2, matlab="Mean")
    standard_deviation: float = option(
        "standard deviation of the noise (what a step adds, where it is correlated), at first",
        low=0,
        high=10,
        matlab="StandardDeviation",
    )
    standard_deviation_decay_rate: float = option(DECAY, low=0, high=1, matlab="StandardDeviationDecayRate")
    standard_deviation_min: float = option(
        "it does not shrink below this", low=0, high=10, matlab="StandardDeviationMin"
    )


class DecayingNoise(Noise):
    """What noise that is added to continuous actions has in common: a deviation that shrinks."""

    actions = ContinuousActions

    def __init__(self, options: DecayingNoiseOptions) -> None:
        """Start with the first standard deviation."""
        self.standard_deviation = options.standard_deviation
        self._rate, self._minimum = options.standard_deviation_decay_rate, options.standard_deviation_min

    def decay(self, num_steps: int = 1) -> None:
        """Shrink the standard deviation by the decay rate, not below its minimum."""
        self.standard_deviation = decayed(self.standard_deviation, self._rate, self._minimum, num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the current standard deviation."""
        return {"standard_deviation": self.standard_deviation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.standard_deviation = state["standard_deviation"]


@dataclass
class GaussianNoiseOptions(DecayingNoiseOptions):
    """MATLAB's GaussianActionNoise."""

    lower_limit: float = option("smallest noise", low=-2, high=2, matlab="LowerLimit")
    upper_limit: float = option("largest noise", low=-2, high=2, matlab="UpperLimit")

    def __post_init__(self) -> None:
        """Check what no single option can tell."""
        if self.lower_limit > self.upper_limit:
            raise ValueError(
                f"lower_limit={self.lower_limit}: must be at most upper_limit={self.upper_limit}"
            )


class GaussianNoise(DecayingNoise):
    """Adds limited Gaussian noise and clips actions to [-1, 1]."""

    Options = GaussianNoiseOptions

    def __init__(self, options: GaussianNoiseOptions, spaces: SpaceSpec) -> None:
        """Start with the first standard deviation."""
        super().__init__(options)
        self.options = options

    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return noisy actions, shape (B, A)."""
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        noise = noise * self.standard_deviation + self.options.mean
        noise = noise.clamp(self.options.lower_limit, self.options.upper_limit)
        return (action + noise).clamp(-1, 1)


@dataclass
class OrnsteinUhlenbeckNoiseOptions(DecayingNoiseOptions):
    """MATLAB's OrnsteinUhlenbeckActionNoise, with steps as unit of time."""

    initial_action: float = option("noise at the start of an episode", low=-2, high=2, matlab="InitialAction")
    mean_attraction_constant: float = option(
        "share of the distance to the mean that is covered in a step",
        above=0,
        high=1,
        matlab="MeanAttractionConstant",
    )


class OrnsteinUhlenbeckNoise(DecayingNoise):
    """Adds noise that is correlated from step to step, x += c (mean - x) + std N(0, 1), and clips.

    Rows that explore on their own, in rollouts, draw from the process's stationary distribution.

    Source: Lillicrap et al. 2016, "Continuous control with deep reinforcement learning", section 7.
    """

    Options = OrnsteinUhlenbeckNoiseOptions

    def __init__(self, options: OrnsteinUhlenbeckNoiseOptions, spaces: SpaceSpec) -> None:
        """Start at the initial action."""
        super().__init__(options)
        self.options = options
        self.noise = torch.full((1, spaces.action_size), options.initial_action)

    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return actions with stationary noise, shape (B, A)."""
        kept = 1 - self.options.mean_attraction_constant
        stationary_deviation = self.standard_deviation / math.sqrt(1 - kept**2)
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        return (action + self.options.mean + stationary_deviation * noise).clamp(-1, 1)

    def advance(self, action: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real steps, shape (E, A)."""
        noise = self.noise.to(action.device)
        drift = self.options.mean_attraction_constant * (self.options.mean - noise)
        diffusion = torch.randn(action.shape, generator=generator, device=action.device)
        moved = noise + drift + self.standard_deviation * diffusion
        start = torch.full_like(action, self.options.initial_action)
        self.noise = torch.where(first.to(action.device)[:, None], start, moved)
        self.decay(len(action))
        return (action + self.noise).clamp(-1, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the noise and its current standard deviation."""
        return {**super().state_dict(), "noise": self.noise.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.noise = state["noise"].clone()


@dataclass
class EpsilonGreedyOptions(Component):
    """MATLAB's EpsilonGreedyExploration."""

    epsilon: float = option("probability of a random action, at first", low=0, high=1, matlab="Epsilon")
    epsilon_decay: float = option(DECAY, low=0, high=1, matlab="EpsilonDecay")
    epsilon_min: float = option("it does not shrink below this", low=0, high=1, matlab="EpsilonMin")


class EpsilonGreedy(Noise):
    """Replaces some actions by random ones."""

    Options = EpsilonGreedyOptions
    actions = DiscreteActions

    def __init__(self, options: EpsilonGreedyOptions, spaces: SpaceSpec) -> None:
        """Start with the first epsilon."""
        self.options = options
        self.epsilon = options.epsilon

    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return the actions, shape (B, A), a share of epsilon of them random."""
        num_rows, num_actions = action.shape
        is_random = torch.rand(num_rows, generator=generator, device=action.device) < self.epsilon
        index = torch.randint(num_actions, (num_rows,), generator=generator, device=action.device)
        random_action = DiscreteActions(num_actions).one_hot(index)
        return torch.where(is_random[:, None], random_action, action)

    def decay(self, num_steps: int = 1) -> None:
        """Shrink epsilon by its decay, not below its minimum."""
        options = self.options
        self.epsilon = decayed(self.epsilon, options.epsilon_decay, options.epsilon_min, num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the current epsilon."""
        return {"epsilon": self.epsilon}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.epsilon = state["epsilon"]


@dataclass
class EmptyOptions(Component):
    """Empty noise options: in rollouts the base agent explores as it does outside."""


class Empty:
    """The mark of empty noise options."""

    Options = EmptyOptions


class RolloutPolicy:
    """How actions are chosen within rollouts.

    Source: the page, step 3.2.3: with the noise, or, if it is empty, with the base agent's exploration.
    """

    def __init__(self, agent: Agent, noise: Noise | None) -> None:
        """Explore with `noise` around the greedy actions of `agent`, or, without it, as the agent does."""
        self.agent = agent
        self.noise = noise

    def __call__(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return actions, shape (B, A); greedy ones without a random stream."""
        if self.noise is None or explore is None:
            return self.agent.act(obs, explore)
        return self.noise(self.agent.act(obs), explore)

    def decay(self) -> None:
        """Let the noise shrink, once per generation; an agent's own decays with real steps."""
        if self.noise is not None:
            self.noise.decay()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the noise."""
        return {} if self.noise is None else self.noise.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self.noise is not None:
            self.noise.load_state_dict(state)
