"""Greedy evaluation on environments and seeds of its own; training never notices it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mbpo_cli.envs.environment import Environment
from mbpo_cli.seeding import episode_seed
from mbpo_cli.types import Policy


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
        returns, lengths = [0.0] * len(self._envs), [0] * len(self._envs)
        obs = [env.reset(seed) for env, seed in zip(self._envs, self._seeds, strict=True)]
        running = list(range(len(self._envs)))
        while running:
            actions = policy(torch.stack([obs[i] for i in running]).to(self._device)).cpu()
            still_running = []
            for i, action in zip(running, actions, strict=True):
                step = self._envs[i].step(action)
                obs[i] = step.obs
                returns[i] += step.reward
                lengths[i] += 1
                if not (step.terminated or step.truncated):
                    still_running.append(i)
            running = still_running
        return Evaluation(tuple(returns), tuple(lengths))

    def close(self) -> None:
        """Release the environments."""
        for env in self._envs:
            env.close()
