"""The data that walks between the rooms: transitions, spaces, metrics, and what an agent is.

Knows nothing of any room; every room may import it.

Shape suffixes used in mathematical code throughout: B batch, N rollouts or rows, M members of an
ensemble, G rows of one member, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Metrics = Mapping[str, Tensor | float]
"""Quantities by tag (`room/quantity`); tensors are detached and zero-dimensional."""

GradientStep = Callable[..., dict[str, Tensor]]
"""Changes parameters, and returns what is worth watching."""

GradientSteps = Callable[[Sequence[Mapping[str, Any]]], Sequence[dict[str, Tensor]]]
"""Takes one gradient step after the other, each with arguments of its own."""

Accelerate = Callable[[GradientStep], GradientSteps]
"""Makes faster steps of one, and changes nothing else."""


@dataclass
class Transitions:
    """Experience as batch-first float32 tensors on one device.

    Attributes:
        obs: Observations o, shape (B, O): all channels flattened and side by side.
        action: Actions a, shape (B, A): scaled to [-1, 1], or one-hot.
        reward: Rewards r, shape (B,).
        next_obs: Next observations o', shape (B, O).
        terminated: 1.0 where the episode ended in a terminal state, else 0.0; shape (B,). Time
            limits are not terminations: the value of o' still counts there.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor

    def __len__(self) -> int:
        return self.obs.shape[0]

    def to(self, device: torch.device) -> Transitions:
        """Return them on a device."""
        return Transitions(
            self.obs.to(device),
            self.action.to(device),
            self.reward.to(device),
            self.next_obs.to(device),
            self.terminated.to(device),
        )

    def __getitem__(self, rows: Tensor | slice) -> Transitions:
        """Return the chosen rows."""
        return Transitions(
            self.obs[rows],
            self.action[rows],
            self.reward[rows],
            self.next_obs[rows],
            self.terminated[rows],
        )


@dataclass(frozen=True)
class ContinuousActions:
    """A Box of actions. Within the program they are scaled to [-1, 1].

    Attributes:
        low: Lower bounds of the environment's actions, shape (A,).
        high: Upper bounds of the environment's actions, shape (A,).
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        """A, the elements of an action."""
        return len(self.low)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one action uniformly, shape (A,)."""
        return 2 * torch.rand(self.size, generator=generator) - 1

    def to_env(self, action: Tensor) -> Tensor:
        """Scale actions of shape (..., A) to the environment's bounds."""
        low, high = action.new_tensor(self.low), action.new_tensor(self.high)
        return torch.clamp(low + (action + 1) / 2 * (high - low), low, high)

    def from_env(self, action: Tensor) -> Tensor:
        """Scale actions of shape (..., A) from the environment's bounds, to which they are clipped."""
        low, high = action.new_tensor(self.low), action.new_tensor(self.high)
        width = torch.where(high > low, high - low, 1.0)
        return torch.clamp(2 * (action - low) / width - 1, -1, 1)


@dataclass(frozen=True)
class DiscreteActions:
    """Finitely many actions. Within the program they are one-hot vectors.

    Attributes:
        size: A, the number of actions.
        start: The environment's number of the first one.
    """

    size: int
    start: int = 0

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one action uniformly, shape (A,)."""
        return self.one_hot(torch.randint(self.size, (), generator=generator))

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
    """What the rest of the program needs to know of an environment's spaces.

    Attributes:
        channels: Number of elements of each observation channel, in the order in which they stand
            in the flat observation.
        actions: What actions there are.
    """

    channels: tuple[int, ...]
    actions: ActionSpec

    @property
    def obs_size(self) -> int:
        """Elements of the flat observation."""
        return sum(self.channels)

    @property
    def action_size(self) -> int:
        """Elements of an action: of the Box, or of the one-hot vector."""
        return self.actions.size


class Policy(Protocol):
    """Anything that chooses actions."""

    def __call__(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return actions of shape (B, A) for observations of shape (B, O).

        With `explore`, actions are drawn with exploration from that random stream; without it
        they are greedy.
        """
        ...


class Agent(Protocol):
    """An off-policy base agent: it acts, and takes a gradient step on each mini-batch that it is given.

    It never samples a buffer, logs, or looks at the count of environment steps. A class that serves
    one kind of actions only says so in an attribute `actions`: that kind's class.
    """

    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Choose actions, as described in `Policy`; each row explores on its own."""
        ...

    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Choose the actions of the next real steps, shape (E, A), for E environments that show (E, O).

        This is where exploration moves on in time: noise that is correlated from step to step, and
        what decays with the number of steps. `first`, shape (E,), is true where an episode begins.
        """
        ...

    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return what the critics expect of actions (B, A), scaled or one-hot, in (B, O); shape (B,)."""
        ...

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        """Take one gradient step after the other, and return what is worth watching in each."""
        ...

    def compile(self, accelerate: Accelerate) -> None:
        """Replace the steps of `update` by what `accelerate` makes of one, a function of tensors.

        An agent that has no such function leaves this empty.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that must survive a restart."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...

    def policy_state(self) -> dict[str, Tensor]:
        """Return the weights of the greedy policy alone."""
        ...


class KnownFunction(Protocol):
    """A known reward or is-done function of an environment, in that environment's own units."""

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Map (B, O), actions and (B, O) to shape (B,).

        Actions are the environment's own: (B, A) within its bounds, or its numbers, int64 of shape (B,).
        """
        ...
