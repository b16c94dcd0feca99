"""Exploration: random actions at first, noise on greedy ones, and the policy of rollouts in the model.

The same noise models serve agents in the real environment and rollouts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mbpo_cli.options import Component, option
from mbpo_cli.types import ActionSpec, Agent, ContinuousActions, DiscreteActions, SpaceSpec

DECAY = "decay rate: per step after the warm start for agents, per generation of experience for rollouts"
SCALED = "in units of the scaled action, whose range is [-1, 1]"


class Noise(ABC):
    """Perturbs greedy actions, by an amount that may decay."""

    actions: type[ActionSpec]
    """The kind of actions that can be perturbed."""
    SAVED: ClassVar[tuple[str, ...]] = ()
    """Attributes in `state_dict`. Tensors must be replaced, never changed in place."""

    @abstractmethod
    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Perturb greedy actions, shape (B, A), each row on its own."""

    def advance(self, action: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Perturb the actions of the next real steps, one row per environment, and decay once per row.

        `first`, shape (E,), is true where an episode begins; noise that is correlated in time restarts there.
        """
        action = self(action, generator)
        self.decay(len(action))
        return action

    @abstractmethod
    def decay(self, num_steps: int = 1) -> None:
        """Apply the decay `num_steps` times."""

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes in `SAVED`."""
        return {name: getattr(self, name) for name in self.SAVED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        for name in self.SAVED:
            setattr(self, name, state[name])


def decayed(value: float, rate: float, minimum: float, num_steps: int) -> float:
    """Return `value` after `num_steps` decays, at least `minimum`; a smaller `value` does not change."""
    return max(value * (1 - rate) ** num_steps, minimum) if value > minimum else value


@dataclass
class DecayingNoiseOptions(Component):
    """Options of noise that is added to actions."""

    mean: float = option(f"mean of the noise, {SCALED}", low=-2, high=2, matlab="Mean")
    standard_deviation_units: Literal["scaled", "action"] = option(
        f"scaled = standard deviations are {SCALED}; action = in units of the environment's action, as in "
        "MATLAB"
    )
    standard_deviation: float | list[float] = option(
        "initial standard deviation (of a step's increment, if the noise is correlated), one or a list with "
        "one per element of the action",
        low=0,
        high=10**6,
        matlab="StandardDeviation",
    )
    standard_deviation_decay_rate: float = option(DECAY, low=0, high=1, matlab="StandardDeviationDecayRate")
    standard_deviation_min: float | list[float] = option(
        "lower limit of the decay, one or a list with one per element of the action",
        low=0,
        high=10**6,
        matlab="StandardDeviationMin",
    )


class DecayingNoise(Noise):
    """Base of noise that is added to continuous actions: a standard deviation that decays."""

    actions = ContinuousActions
    SAVED: ClassVar[tuple[str, ...]] = ("standard_deviation",)

    def __init__(self, options: DecayingNoiseOptions, spaces: SpaceSpec) -> None:
        self.options = options
        deviation = self._scaled("standard_deviation", spaces)
        minimum = self._scaled("standard_deviation_min", spaces)
        size = max(len(deviation), len(minimum))
        self._minimum = minimum * (size // len(minimum))
        # In units of the scaled action: of each element, or a number for all.
        self.standard_deviation = _number_or_list(deviation * (size // len(deviation)))

    def _scaled(self, name: str, spaces: SpaceSpec) -> list[float]:
        """Return the values of an option in units of the scaled action: of each element, or one for all."""
        value = getattr(self.options, name)
        values: list[float] = value if isinstance(value, list) else [value]
        if isinstance(value, list) and len(value) != spaces.action_size:
            kinds = f"a number or a list of length {spaces.action_size}"
            raise ValueError(f"{name}={value}: must be {kinds}, with one value per element of an action")
        if self.options.standard_deviation_units == "scaled":
            return values
        assert isinstance(spaces.actions, ContinuousActions)
        values = values * (spaces.action_size // len(values))
        limits = zip(values, spaces.actions.low, spaces.actions.high, strict=True)
        return [2 * value / (high - low) if high > low else 0.0 for value, low, high in limits]

    def deviation(self, action: Tensor) -> Tensor | float:
        """Return the standard deviation, which broadcasts with actions of shape (B, A)."""
        now = self.standard_deviation
        return action.new_tensor(now) if isinstance(now, list) else now

    def decay(self, num_steps: int = 1) -> None:
        """Apply the decay of the standard deviation `num_steps` times."""
        now, rate = self.standard_deviation, self.options.standard_deviation_decay_rate
        pairs = zip(now if isinstance(now, list) else [now], self._minimum, strict=True)
        self.standard_deviation = _number_or_list(
            [decayed(value, rate, minimum, num_steps) for value, minimum in pairs]
        )


def _number_or_list(values: list[float]) -> float | list[float]:
    return values if len(values) > 1 else values[0]


@dataclass
class GaussianNoiseOptions(DecayingNoiseOptions):
    """MATLAB's GaussianActionNoise."""

    lower_limit: float = option(
        "smallest noise, in units of the scaled action", low=-2, high=2, matlab="LowerLimit"
    )
    upper_limit: float = option(
        "largest noise, in units of the scaled action", low=-2, high=2, matlab="UpperLimit"
    )

    def __post_init__(self) -> None:
        if self.lower_limit > self.upper_limit:
            raise ValueError(
                f"lower_limit={self.lower_limit}: must be at most upper_limit={self.upper_limit}"
            )


class GaussianNoise(DecayingNoise):
    """Adds limited Gaussian noise and clips actions to [-1, 1]."""

    Options = GaussianNoiseOptions
    options: GaussianNoiseOptions

    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return noisy actions, shape (B, A)."""
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        noise = noise * self.deviation(action) + self.options.mean
        noise = noise.clamp(self.options.lower_limit, self.options.upper_limit)
        return (action + noise).clamp(-1, 1)


@dataclass
class OrnsteinUhlenbeckNoiseOptions(DecayingNoiseOptions):
    """MATLAB's OrnsteinUhlenbeckActionNoise; the unit of time is a step."""

    initial_action: float = option(
        "noise at the start of an episode, in units of the scaled action",
        low=-2,
        high=2,
        matlab="InitialAction",
    )
    mean_attraction_constant: float = option(
        "fraction of the distance to the mean that is covered per step",
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
    SAVED = (*DecayingNoise.SAVED, "noise")
    options: OrnsteinUhlenbeckNoiseOptions

    def __init__(self, options: OrnsteinUhlenbeckNoiseOptions, spaces: SpaceSpec) -> None:
        super().__init__(options, spaces)
        self.noise = torch.full((1, spaces.action_size), options.initial_action)

    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return actions with stationary noise, shape (B, A)."""
        kept = 1 - self.options.mean_attraction_constant
        stationary_deviation = self.deviation(action) / math.sqrt(1 - kept**2)
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        return (action + self.options.mean + stationary_deviation * noise).clamp(-1, 1)

    def advance(self, action: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real steps, shape (E, A)."""
        noise = self.noise.to(action.device)
        drift = self.options.mean_attraction_constant * (self.options.mean - noise)
        diffusion = torch.randn(action.shape, generator=generator, device=action.device)
        moved = noise + drift + self.deviation(action) * diffusion
        start = torch.full_like(action, self.options.initial_action)
        self.noise = torch.where(first.to(action.device)[:, None], start, moved)
        self.decay(len(action))
        return (action + self.noise).clamp(-1, 1)


@dataclass
class EpsilonGreedyOptions(Component):
    """MATLAB's EpsilonGreedyExploration."""

    epsilon: float = option("initial probability of a random action", low=0, high=1, matlab="Epsilon")
    epsilon_decay: float = option(DECAY, low=0, high=1, matlab="EpsilonDecay")
    epsilon_min: float = option("lower limit of the decay", low=0, high=1, matlab="EpsilonMin")


class EpsilonGreedy(Noise):
    """Replaces actions by random ones with probability epsilon."""

    Options = EpsilonGreedyOptions
    actions = DiscreteActions
    SAVED = ("epsilon",)

    def __init__(self, options: EpsilonGreedyOptions, spaces: SpaceSpec) -> None:
        self.options = options
        self.epsilon = options.epsilon

    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return one-hot actions, shape (B, A)."""
        num_rows, num_actions = action.shape
        is_random = torch.rand(num_rows, generator=generator, device=action.device) < self.epsilon
        index = torch.randint(num_actions, (num_rows,), generator=generator, device=action.device)
        random_action = DiscreteActions(num_actions).one_hot(index)
        return torch.where(is_random[:, None], random_action, action)

    def decay(self, num_steps: int = 1) -> None:
        """Apply the decay of epsilon `num_steps` times."""
        options = self.options
        self.epsilon = decayed(self.epsilon, options.epsilon_decay, options.epsilon_min, num_steps)


@dataclass
class EmptyOptions(Component):
    """Empty noise options: in rollouts the base agent explores as it does in the environment."""


class Empty:
    """Stands for empty noise options; never built."""

    Options = EmptyOptions


class WarmStart:
    """Random actions in E real environments before training, each held for some steps of its episode.

    Attributes:
        held: The last actions, shape (E, A).
    """

    def __init__(self, actions: ActionSpec, num_envs: int, hold_steps: int, stream: torch.Generator) -> None:
        self.held = torch.zeros(num_envs, actions.size)
        self.stream = stream
        self._actions, self._hold_steps = actions, hold_steps

    def act(self, steps: Sequence[int]) -> Tensor:
        """Return the next actions, shape (E, A); `steps` are those so far of each current episode."""
        for row, num_steps in enumerate(steps):
            if num_steps % self._hold_steps == 0:
                self.held[row] = self._actions.sample(self.stream)
        return self.held.clone()


@dataclass
class RolloutPolicy:
    """Chooses actions within rollouts: greedy ones with noise, or, without noise, as the base agent explores.

    Source: the page, step 3.2.3.
    """

    agent: Agent
    noise: Noise | None

    def __call__(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return actions, shape (B, A); greedy without a random stream."""
        if self.noise is None or explore is None:
            return self.agent.act(obs, explore)
        return self.noise(self.agent.act(obs), explore)

    def decay(self) -> None:
        """Decay the noise, once per generation; an agent's own decays with real steps."""
        if self.noise is not None:
            self.noise.decay()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the noise."""
        return {} if self.noise is None else self.noise.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        if self.noise is not None:
            self.noise.load_state_dict(state)
