"""Parallel real environments, each in its own episode.

Knows how episodes start and end; does not know how actions are chosen or where experience is stored.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.envs.environment import Environment
from mbpo_cli.failures import EnvironmentFailed, Stopped
from mbpo_cli.types import Transitions

# Longest episode whose actions are kept, so that a resumed run can replay it.
MAX_REPLAY = 10_000


class Collector:
    """Steps environments, and starts the next episode where one has ended.

    A transition that ends an episode holds the episode's last observation; the next action is chosen for the
    first observation of the next episode. `seed_of` returns the seed of an episode from its number.

    Attributes:
        obs: The current observation of each environment, shape (E, O).
        steps: The steps of each current episode.
        episodes: The number of finished episodes.
        ended: Return and number of steps of the episodes that ended with the last step.
    """

    def __init__(self, envs: Sequence[Environment], seed_of: Callable[[int], int]) -> None:
        self.spaces = envs[0].spaces
        self.steps = [0] * len(envs)
        self.episodes = 0
        self.ended: list[tuple[float, int]] = []
        self._envs = envs
        self._seed_of = seed_of
        self._num_started = 0
        self._numbers = [0] * len(envs)
        self._returns = [0.0] * len(envs)
        self._actions: list[list[Tensor]] = [[] for _ in envs]
        self.obs = torch.stack([self._start(row) for row in range(len(envs))])

    def __len__(self) -> int:
        return len(self._envs)

    @property
    def first(self) -> Tensor:
        """True where an episode starts, shape (E,)."""
        return torch.tensor(self.steps) == 0

    @property
    def numbers(self) -> Tensor:
        """The number of each current episode, shape (E,)."""
        return torch.tensor(self._numbers)

    def step(self, actions: Tensor) -> tuple[Transitions, dict[str, float]]:
        """Step the first n environments with actions scaled to [-1, 1] or one-hot, shape (n, A).

        Returns:
            The n transitions, and the mean return and length of the episodes that ended with them, if any.
        """
        steps = [env.step(action) for env, action in zip(self._envs, actions, strict=False)]
        transitions = Transitions(
            self.obs[: len(steps)],
            actions,
            torch.tensor([step.reward for step in steps]),
            torch.stack([step.obs for step in steps]),
            torch.tensor([float(step.terminated) for step in steps]),
        )
        self.obs = self.obs.clone()  # the transitions hold the previous one
        self.ended = []
        for row, step in enumerate(steps):
            self.obs[row] = step.obs
            self.steps[row] += 1
            if self.steps[row] <= MAX_REPLAY:
                self._actions[row].append(actions[row])
            self._returns[row] += step.reward
            if step.terminated or step.truncated:
                self.ended.append((self._returns[row], self.steps[row]))
                self.episodes += 1
                self.obs[row] = self._start(row)
        if not self.ended:
            return transitions, {}
        returns, lengths = zip(*self.ended, strict=True)
        return transitions, {
            "train/episode_return": statistics.fmean(returns),
            "train/episode_length": statistics.fmean(lengths),
            "train/episodes": self.episodes,
        }

    def _start(self, row: int) -> Tensor:
        """Start the next episode of an environment and return its first observation."""
        self._numbers[row] = self._num_started
        self._num_started += 1
        self.steps[row], self._returns[row], self._actions[row] = 0, 0.0, []
        return self._envs[row].reset(self._seed_of(self._numbers[row]))

    def state_dict(self) -> dict[str, Any]:
        """Return the current episodes as numbers and actions, from which they can be replayed."""
        none = torch.zeros(0, self.spaces.action_size)
        return {
            "episodes": self.episodes,
            "num_started": self._num_started,
            "numbers": list(self._numbers),
            "steps": list(self.steps),
            "returns": list(self._returns),
            "actions": [torch.stack(actions) if actions else none for actions in self._actions],
            "obs": self.obs,
        }

    def load_state_dict(self, state: dict[str, Any], should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Restore the environments by replaying their current episodes.

        Returns:
            True if all environments are where they were. Any other environment starts a new episode.

        Raises:
            Stopped: `should_stop`, asked before every step, returned True.
        """
        self.episodes, self._num_started = state["episodes"], state["num_started"]
        self._numbers, self._returns = list(state["numbers"]), list(state["returns"])
        self._actions = [list(actions) for actions in state["actions"]]
        self.steps = list(state["steps"])
        self.obs = state["obs"].clone()
        lost = [row for row in range(len(self)) if not self._replayed(row, should_stop)]
        for row in lost:
            self.obs[row] = self._start(row)
        return not lost

    def _replayed(self, row: int, should_stop: Callable[[], bool]) -> bool:
        """Replay an environment's episode; return True if it leads to the stored observation and return."""
        env, actions = self._envs[row], self._actions[row]
        if len(actions) != self.steps[row]:
            return False
        try:
            obs, total = env.reset(self._seed_of(self._numbers[row])), 0.0
            for action in actions:
                if should_stop():
                    raise Stopped
                step = env.step(action)
                if step.terminated or step.truncated:  # it did not end here before
                    return False
                obs = step.obs
                total += step.reward
        except EnvironmentFailed:  # it did not fail before
            return False
        return torch.equal(obs, self.obs[row]) and total == self._returns[row]
