"""The data that walks between the rooms: transitions, spaces, metrics, and what an agent is.

Knows nothing of any room; every room may import it.

Shape suffixes used in mathematical code throughout: B batch, N rollouts or rows, M members of an
ensemble, G rows of one member, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Metrics = Mapping[str, Tensor | float]
"""Quantities by tag (`room/quantity`); tensors are detached and zero-dimensional."""


@dataclass
class Transitions:
    """Experience as batch-first float32 tensors on one device.

    Attributes:
        obs: Observations o, shape (B, O): all channels flattened and side by side.
        action: Actions a in [-1, 1], shape (B, A).
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
class SpaceSpec:
    """What the rest of the program needs to know of an environment's spaces.

    Attributes:
        channels: Number of elements of each observation channel, in the order in which they stand
            in the flat observation.
        action_low: Lower bounds of the environment's actions, shape (A,).
        action_high: Upper bounds of the environment's actions, shape (A,).
    """

    channels: tuple[int, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]

    @property
    def obs_size(self) -> int:
        """Elements of the flat observation."""
        return sum(self.channels)

    @property
    def action_size(self) -> int:
        """Elements of an action."""
        return len(self.action_low)

    def to_env_action(self, action: Tensor) -> Tensor:
        """Scale actions from [-1, 1], shape (..., A), to the environment's bounds."""
        low, high = action.new_tensor(self.action_low), action.new_tensor(self.action_high)
        return torch.clamp(low + (action + 1) / 2 * (high - low), low, high)


class Policy(Protocol):
    """Anything that chooses actions."""

    def __call__(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return actions in [-1, 1] of shape (B, A) for observations of shape (B, O).

        With `explore`, actions are drawn with exploration from that random stream; without it
        they are greedy.
        """
        ...


class Agent(Protocol):
    """An off-policy base agent: it acts, and takes one gradient step on the batch it is given.

    It never samples a buffer, logs, or looks at the count of environment steps.
    """

    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Choose actions, as described in `Policy`."""
        ...

    def update(self, batch: Transitions) -> Metrics:
        """Take one gradient step and return what is worth watching."""
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
        """Map (B, O), (B, A) in the environment's bounds, and (B, O) to shape (B,)."""
        ...
