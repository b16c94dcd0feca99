"""Greedy evaluation on environments and seeds of its own; training never notices it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mbpo_cli.envs.environment import Environment, Step
from mbpo_cli.seeding import episode_seed
from mbpo_cli.types import Policy


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of finished episodes, in the order of their seeds."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, episodes: Sequence[Played]) -> Evaluation:
        """Return what is to be told of episodes."""
        return cls(tuple(e.total_reward for e in episodes), tuple(e.length for e in episodes))

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


class Played(NamedTuple):
    """A finished episode.

    Attributes:
        start: Its first observation, shape (O,).
        total_reward: Its undiscounted return.
        length: Its steps.
    """

    start: Tensor
    total_reward: float
    length: int


class Playable(Protocol):
    """What episodes are played in."""

    def reset(self, seed: int) -> Tensor:
        """Start an episode and return its first observation, shape (O,)."""
        ...

    def step(self, action: Tensor) -> Step:
        """Take an action, scaled to [-1, 1] or one-hot, shape (A,)."""
        ...


def play(
    envs: Sequence[Playable], seeds: Sequence[int], policy: Policy, device: torch.device | str = "cpu"
) -> list[Played]:
    """Play an episode in each environment with a greedy policy, which sees one batch per step.

    Args:
        envs: Environments, which are reset.
        seeds: A seed for each.
        policy: Chooses the actions.
        device: Where the policy is.
    """
    returns, lengths = [0.0] * len(envs), [0] * len(envs)
    starts = [env.reset(seed) for env, seed in zip(envs, seeds, strict=True)]
    obs = list(starts)
    running = list(range(len(envs)))
    while running:
        actions = policy(torch.stack([obs[i] for i in running]).to(device)).cpu()
        still_running = []
        for i, action in zip(running, actions, strict=True):
            step = envs[i].step(action)
            obs[i] = step.obs
            returns[i] += step.reward
            lengths[i] += 1
            if not (step.terminated or step.truncated):
                still_running.append(i)
        running = still_running
    return list(map(Played, starts, returns, lengths))


class Evaluator:
    """Plays a fixed set of episodes with a greedy policy.

    The episodes run side by side, one environment each, so that the policy sees one batch per step.
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

    def __call__(self, policy: Policy) -> Evaluation:
        """Return what the greedy policy earns."""
        return Evaluation.of(play(self._envs, self._seeds, policy, self._device))

    def close(self) -> None:
        """Release the environments."""
        for env in self._envs:
            env.close()
