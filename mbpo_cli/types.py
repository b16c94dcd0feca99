"""The contracts between packages: transitions, spaces, metrics and agents.

Shape suffixes in mathematical code: B batch, N rollouts or rows, M members of an ensemble, G rows of one
member, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Metrics = Mapping[str, Tensor | float]
"""Quantities by tag (`group/quantity`); tensors are detached and zero-dimensional."""

GradientStep = Callable[..., dict[str, Tensor]]
"""Changes parameters and returns metrics."""

GradientSteps = Callable[[Sequence[Mapping[str, Any]]], Sequence[dict[str, Tensor]]]
"""Takes one gradient step per element, which holds the arguments of that step."""

Accelerate = Callable[[GradientStep], GradientSteps]
"""Returns faster gradient steps whose results are the same within rounding."""

KnownFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A known reward or is-done function: maps o (B, O), a and o' (B, O) to shape (B,).

Actions are in the environment's units: (B, A) within its bounds, or int64 numbers of shape (B,).
"""


@dataclass
class Transitions:
    """Experience as batch-first float32 tensors on one device.

    Attributes:
        obs: Observations o, shape (B, O): all channels flattened and concatenated.
        action: Actions a, shape (B, A): scaled to [-1, 1], or one-hot.
        reward: Rewards r, shape (B,).
        next_obs: Next observations o', shape (B, O).
        terminated: 1.0 where the episode ended in a terminal state, else 0.0; shape (B,). Time
            limits are not terminations: the value of o' counts there. In mini-batches with returns of
            several steps, values between discount further; so targets must have the factor 1 - terminated.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor

    def __len__(self) -> int:
        return self.obs.shape[0]

    def to(self, device: torch.device) -> Transitions:
        """Return the transitions on a device."""
        return Transitions(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def __getitem__(self, rows: Tensor | slice) -> Transitions:
        """Return the chosen rows."""
        return Transitions(**{name: tensor[rows] for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class ContinuousActions:
    """Actions of a Box space with bounds of shape (A,), scaled to [-1, 1] within the program."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        """A, the number of elements of an action."""
        return len(self.low)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one action uniformly, shape (A,)."""
        return 2 * torch.rand(self.size, generator=generator) - 1

    def sample_rows(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Draw actions uniformly, shape (B, A), on the generator's device."""
        return 2 * torch.rand(num_rows, self.size, generator=generator, device=generator.device) - 1

    def to_env(self, action: Tensor) -> Tensor:
        """Scale actions of shape (..., A) to the environment's bounds."""
        low, high = action.new_tensor(self.low), action.new_tensor(self.high)
        return torch.clamp(low + (action + 1) / 2 * (high - low), low, high)

    def from_env(self, action: Tensor) -> Tensor:
        """Clip actions of shape (..., A) to the environment's bounds and scale them to [-1, 1]."""
        low, high = action.new_tensor(self.low), action.new_tensor(self.high)
        width = torch.where(high > low, high - low, 1.0)
        return torch.clamp(2 * (action - low) / width - 1, -1, 1)


@dataclass(frozen=True)
class DiscreteActions:
    """The A actions that an environment numbers from `start` on, one-hot within the program."""

    size: int
    start: int = 0

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one action uniformly, shape (A,)."""
        return self.one_hot(torch.randint(self.size, (), generator=generator))

    def sample_rows(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Draw actions uniformly, shape (B, A), on the generator's device."""
        return self.one_hot(
            torch.randint(self.size, (num_rows,), generator=generator, device=generator.device)
        )

    def one_hot(self, index: Tensor) -> Tensor:
        """Map numbers from 0 to A - 1, shape (...), to actions of shape (..., A)."""
        return functional.one_hot(index, self.size).float()

    def to_env(self, action: Tensor) -> Tensor:
        """Map actions of shape (..., A) to the environment's numbers, shape (...)."""
        return action.argmax(-1) + self.start

    def from_env(self, action: Tensor) -> Tensor:
        """Map the environment's numbers, int64 of shape (...), to actions of shape (..., A)."""
        return self.one_hot(action - self.start)


ActionSpec = ContinuousActions | DiscreteActions


@dataclass(frozen=True)
class SpaceSpec:
    """An environment's spaces; `channels` are the sizes of the observation channels, in their flat order.

    `channel_names` are their keys in a Dict or places in a Tuple; empty for a Box.
    """

    channels: tuple[int, ...]
    actions: ActionSpec
    channel_names: tuple[str, ...] = ()

    @property
    def obs_size(self) -> int:
        """The number of elements of the flat observation."""
        return sum(self.channels)

    @property
    def action_size(self) -> int:
        """The number of elements of an action, scaled or one-hot."""
        return self.actions.size

    def element_name(self, index: int) -> str:
        """Return the name of an element of the flat observation: number and channel, if that has a name."""
        for name, size in zip(self.channel_names, self.channels, strict=False):
            if index < size:
                return f"element {index} of '{name}'"
            index -= size
        return f"element {index}"


class Policy(Protocol):
    """Chooses actions."""

    def __call__(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return actions of shape (B, A) for observations of shape (B, O).

        With `explore`, a random stream, actions include exploration; without it they are greedy.
        """


class World(Protocol):
    """A model of the environment whose steps are differentiable in observation and action."""

    num_steps: int
    """T, the steps of one update."""

    def draw(self, num_rows: int, generator: torch.Generator) -> Any:
        """Draw what is random in the T steps from B = `num_rows` observations: tensors, in a tuple."""

    def certain(
        self, obs: Tensor, action: Tensor, earlier: Any, draws: Any, number: int
    ) -> tuple[Tensor | None, Any]:
        """Return a mask of the rows whose `step` can be trusted, shape (B,); None if all can, always.

        The second result is `earlier` in the next step, where it is None at first.
        """

    def step(self, obs: Tensor, action: Tensor, draws: Any, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return next observations (B, O), rewards (B,), and 1.0 where an episode ends, else 0.0 (B,).

        `number` counts the steps of the update from 0. Gradients flow through the first two results.
        """


class Agent(Protocol):
    """An off-policy base agent: chooses actions and takes a gradient step per mini-batch.

    It never samples a buffer, logs, or uses the number of environment steps. A class that supports only
    one kind of actions names that kind's class in a class attribute `actions`.
    """

    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return actions as in `Policy`; each row explores on its own."""

    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real step of E environments, shape (E, A), for obs (E, O).

        Advances exploration in time: noise that is correlated from step to step, and decay with the
        number of steps. `first`, shape (E,), is true where an episode begins.
        """

    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the Q-values, shape (B,), of actions (B, A), scaled or one-hot, in obs (B, O)."""

    def observe(self, obs: Tensor) -> None:
        """Take note of real observations, shape (B, O), before they are used in an update."""

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        """Take one gradient step per mini-batch, and return the metrics of each."""

    def compile(self, accelerate: Accelerate) -> None:
        """Replace the gradient steps of `update` by `accelerate(step)`; `step` is a function of tensors.

        Agents without such a function do nothing.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""

    def policy_state(self) -> dict[str, Tensor]:
        """Return the weights of the greedy policy."""


class ImaginingAgent(Agent, Protocol):
    """An agent that also learns from values and gradients through a model of the world."""

    def enter(self, world: World, critic_share: float = 0.0) -> None:
        """Prepare for updates in this world.

        `critic_share` is the share of the critics' values of the first actions in what the actor climbs; the
        rest is what the steps in the world bring.
        """

    def update_in_world(self, starts: Sequence[Tensor]) -> Sequence[Metrics]:
        """Take one gradient step per batch of start observations (B, O), and return the metrics of each."""
