"""Greedy evaluation in environments and on seeds of its own; it does not affect training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbpo_cli.envs.environment import Environment
from mbpo_cli.nn.seeding import episode_seeds
from mbpo_cli.types import Policy, Transitions


class Outcome(NamedTuple):
    """The first observation of an episode, shape (O,), its undiscounted return, and its number of steps."""

    start: Tensor
    total_reward: float
    length: int


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of finished episodes, in the order of their seeds."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, episodes: Sequence[Outcome]) -> Evaluation:
        """Return the evaluation that these episodes make up."""
        return cls(tuple(e.total_reward for e in episodes), tuple(e.length for e in episodes))

    @property
    def return_mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Standard deviation of the returns."""
        return float(np.std(self.returns))

    @property
    def length_mean(self) -> float:
        """Mean number of steps."""
        return float(np.mean(self.lengths))

    @property
    def length_std(self) -> float:
        """Standard deviation of the numbers of steps."""
        return float(np.std(self.lengths))


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    Attributes:
        obs: Observations, including the first and the last, shape (T + 1, O).
        action: Actions, scaled to [-1, 1] or one-hot, shape (T, A).
        reward: Rewards, float64, shape (T,).
        terminated: Whether it ended in a terminal state rather than at a time limit.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: bool

    def __len__(self) -> int:
        return len(self.reward)

    def to(self, device: torch.device) -> Episode:
        """Return the episode on a device."""
        return Episode(self.obs.to(device), self.action.to(device), self.reward.to(device), self.terminated)

    @property
    def outcome(self) -> Outcome:
        """The episode in three values."""
        return Outcome(self.obs[0], sum(self.reward.tolist()), len(self))

    @property
    def transitions(self) -> Transitions:
        """The steps as training data."""
        ends = torch.zeros_like(self.obs[:-1, 0])
        ends[-1] = float(self.terminated)
        return Transitions(self.obs[:-1], self.action, self.reward.float(), self.obs[1:], ends)


def play(
    envs: Sequence[Environment], seeds: Sequence[int], policy: Policy, device: torch.device | str = "cpu"
) -> list[Episode]:
    """Play an episode in each environment with a greedy policy, which sees one batch per step.

    The environments are reset with the seeds; `device` is that of the policy.
    """
    obs = [[env.reset(seed)] for env, seed in zip(envs, seeds, strict=True)]
    actions_taken: list[list[Tensor]] = [[] for _ in envs]
    rewards: list[list[float]] = [[] for _ in envs]
    terminated = [False] * len(envs)
    running = list(range(len(envs)))
    while running:
        actions = policy(torch.stack([obs[i][-1] for i in running]).to(device)).cpu()
        still_running = []
        for i, action in zip(running, actions, strict=True):
            step = envs[i].step(action)
            obs[i].append(step.obs)
            actions_taken[i].append(action)
            rewards[i].append(step.reward)
            terminated[i] = step.terminated
            if not (step.terminated or step.truncated):
                still_running.append(i)
        running = still_running
    return [
        Episode(torch.stack(o), torch.stack(a), torch.tensor(r, dtype=torch.float64), ended)
        for o, a, r, ended in zip(obs, actions_taken, rewards, terminated, strict=True)
    ]


class Evaluator:
    """Plays the same episodes at every evaluation, in parallel, with one environment each.

    `device` is that of the policy; `episodes` are those of the last evaluation.
    """

    def __init__(
        self,
        make_env: Callable[[], Environment],
        num_episodes: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._envs: Sequence[Environment] = [make_env() for _ in range(num_episodes)]
        self._seeds = episode_seeds(seed, "evaluation", num_episodes)
        self._device = device
        self.episodes: list[Episode] = []

    def __call__(self, policy: Policy) -> Evaluation:
        """Evaluate a greedy policy."""
        self.episodes = play(self._envs, self._seeds, policy, self._device)
        return Evaluation.of([episode.outcome for episode in self.episodes])

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()
