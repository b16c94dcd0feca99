"""Real environments side by side, each in an episode of its own.

Knows how episodes begin and end; does not know who chooses the actions or where experience goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbpo_cli.envs.environment import Environment
from mbpo_cli.failures import EnvironmentFailed
from mbpo_cli.types import Transitions

# An episode of so many steps is played again to go on within it; actions of longer ones are not kept.
MAX_REPLAY = 10_000


class Episode(NamedTuple):
    """A finished episode.

    Attributes:
        total_reward: Its undiscounted return.
        length: Its steps.
    """

    total_reward: float
    length: int


class Collector:
    """Steps environments and starts the next episode where one has ended.

    There is no autoreset: the observation that ended an episode is stored, and the one that begins
    the next is acted on.

    Attributes:
        obs: What each environment shows now, shape (E, O).
        steps: Steps of each environment's present episode.
        episodes: Episodes finished so far.
    """

    def __init__(self, envs: Sequence[Environment], seed_of: Callable[[int], int]) -> None:
        """Start an episode in each of the environments; `seed_of` seeds them by their number."""
        self.spaces = envs[0].spaces
        self.steps = [0] * len(envs)
        self.episodes = 0
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
        """True where an episode begins, shape (E,)."""
        return torch.tensor(self.steps) == 0

    def step(self, actions: Tensor) -> tuple[Transitions, list[Episode]]:
        """Take one step in each of the first n environments.

        Args:
            actions: Scaled to [-1, 1] or one-hot, shape (n, A).

        Returns:
            The n transitions, and the episodes that ended with them.
        """
        steps = [env.step(action) for env, action in zip(self._envs, actions, strict=False)]
        transitions = Transitions(
            self.obs[: len(steps)],
            actions,
            torch.tensor([step.reward for step in steps]),
            torch.stack([step.obs for step in steps]),
            torch.tensor([float(step.terminated) for step in steps]),
        )
        self.obs = self.obs.clone()
        ended = []
        for row, step in enumerate(steps):
            self.obs[row] = step.obs
            self.steps[row] += 1
            if self.steps[row] <= MAX_REPLAY:
                self._actions[row].append(actions[row])
            self._returns[row] += step.reward
            if step.terminated or step.truncated:
                ended.append(Episode(self._returns[row], self.steps[row]))
                self.episodes += 1
                self.obs[row] = self._start(row)
        return transitions, ended

    def _start(self, row: int) -> Tensor:
        """Begin the next episode."""
        self._numbers[row] = self._num_started
        self._num_started += 1
        self.steps[row], self._returns[row], self._actions[row] = 0, 0.0, []
        return self._envs[row].reset(self._seed_of(self._numbers[row]))

    def state_dict(self) -> dict[str, Any]:
        """Return the present episodes by their numbers and actions, which play them again."""
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

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Bring the environments to where they were, by playing the present episodes again.

        Returns:
            Whether every environment shows what it showed; where one does not, a new episode begins.
        """
        self.episodes, self._num_started = state["episodes"], state["num_started"]
        self._numbers, self._returns = list(state["numbers"]), list(state["returns"])
        self._actions = [list(actions) for actions in state["actions"]]
        self.steps = list(state["steps"])
        self.obs = state["obs"].clone()
        is_exact = True
        for row, env in enumerate(self._envs):
            if not (len(self._actions[row]) == self.steps[row] and self._replayed(row, env)):
                self.obs[row] = self._start(row)
                is_exact = False
        return is_exact

    def _replayed(self, row: int, env: Environment) -> bool:
        """Play an episode again; tell whether the environment then shows what it showed."""
        try:
            shown = env.reset(self._seed_of(self._numbers[row]))
            for action in self._actions[row]:
                step = env.step(action)
                if step.terminated or step.truncated:  # the episode went on here
                    return False
                shown = step.obs
        except EnvironmentFailed:  # as it did not, when it was played
            return False
        return torch.equal(shown, self.obs[row])
