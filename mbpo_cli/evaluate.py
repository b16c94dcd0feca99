"""Greedy evaluation on environments and seeds of its own; training never notices it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbpo_cli.envs.environment import Environment
from mbpo_cli.seeding import episode_seed
from mbpo_cli.types import Policy, Transitions


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of finished episodes, in the order of their seeds."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def return_mean(self) -> float:
        """Mean undiscounted return."""
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Standard deviation of the returns over episodes."""
        return float(np.std(self.returns))

    @property
    def length_mean(self) -> float:
        """Mean number of steps."""
        return float(np.mean(self.lengths))


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    Attributes:
        obs: Observations, the first and the last one included, shape (T + 1, O).
        action: Actions, scaled to [-1, 1] or one-hot, shape (T, A).
        reward: Rewards, shape (T,).
        terminated: Whether it ended in a terminal state, and not at a time limit.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: bool

    def __len__(self) -> int:
        return len(self.reward)

    def to(self, device: torch.device) -> Episode:
        """Return it on a device."""
        obs, action, reward = (tensor.to(device) for tensor in (self.obs, self.action, self.reward))
        return Episode(obs, action, reward, self.terminated)

    @property
    def transitions(self) -> Transitions:
        """Its steps."""
        ends = torch.zeros_like(self.reward)
        ends[-1] = float(self.terminated)
        return Transitions(self.obs[:-1], self.action, self.reward, self.obs[1:], ends)


class Evaluator:
    """Plays a fixed set of episodes with a greedy policy.

    The episodes run side by side, one environment each, so that the policy sees one batch per step.

    Attributes:
        episodes: Those of the last evaluation.
    """

    def __init__(
        self,
        make_env: Callable[[], Environment],
        num_episodes: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make one environment per episode; every evaluation starts from the same seeds."""
        self._envs: Sequence[Environment] = [make_env() for _ in range(num_episodes)]
        self._seeds = [episode_seed(seed, "evaluation", episode) for episode in range(num_episodes)]
        self._device = device
        self.episodes: list[Episode] = []

    def __call__(self, policy: Policy) -> Evaluation:
        """Return what the greedy policy earns."""
        obs = [[env.reset(seed)] for env, seed in zip(self._envs, self._seeds, strict=True)]
        actions_taken: list[list[Tensor]] = [[] for _ in self._envs]
        rewards: list[list[float]] = [[] for _ in self._envs]
        terminated = [False] * len(self._envs)
        running = list(range(len(self._envs)))
        while running:
            actions = policy(torch.stack([obs[i][-1] for i in running]).to(self._device)).cpu()
            still_running = []
            for i, action in zip(running, actions, strict=True):
                step = self._envs[i].step(action)
                obs[i].append(step.obs)
                actions_taken[i].append(action)
                rewards[i].append(step.reward)
                terminated[i] = step.terminated
                if not (step.terminated or step.truncated):
                    still_running.append(i)
            running = still_running
        self.episodes = [
            Episode(torch.stack(o), torch.stack(a), torch.tensor(r, dtype=torch.float32), ended)
            for o, a, r, ended in zip(obs, actions_taken, rewards, terminated, strict=True)
        ]
        return Evaluation(tuple(map(sum, rewards)), tuple(map(len, rewards)))

    def close(self) -> None:
        """Release the environments."""
        for env in self._envs:
            env.close()
