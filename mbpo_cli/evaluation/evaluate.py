"""Greedy evaluation in environments and on seeds of its own; it does not affect training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbpo_cli.envs.environment import Environment, Step
from mbpo_cli.failures import Stopped
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

    @classmethod
    def of(cls, start: Tensor, steps: Sequence[tuple[Tensor, Step]]) -> Episode:
        """Return the episode that begins with this observation, from its actions and their results."""
        return cls(
            torch.stack([start, *(step.obs for _, step in steps)]),
            torch.stack([action for action, _ in steps]),
            torch.tensor([step.reward for _, step in steps], dtype=torch.float64),
            steps[-1][1].terminated,
        )

    @property
    def transitions(self) -> Transitions:
        """The steps as training data."""
        ends = torch.zeros_like(self.obs[:-1, 0])
        ends[-1] = float(self.terminated)
        return Transitions(self.obs[:-1], self.action, self.reward.float(), self.obs[1:], ends)


OnStep = Callable[[int, Tensor, Step], None]
"""Called after each step with the number of the episode, the action and the result."""


def forget(episode: int, action: Tensor, step: Step) -> None:
    """Keep nothing of a step."""


def play(
    make_env: Callable[[], Environment],
    seeds: Sequence[int],
    policy: Policy,
    device: torch.device | str = "cpu",
    should_stop: Callable[[], bool] = lambda: False,
    on_step: OnStep = forget,
) -> list[Outcome]:
    """Play an episode per seed, side by side, with a greedy policy, which sees one batch per step.

    Each episode has an environment of its own, made for it: what earlier episodes leave in an environment
    changes no result. `device` is that of the policy.

    Raises:
        Stopped: `should_stop`, asked before every step and every environment, returned True.
    """

    def check() -> None:
        if should_stop():
            raise Stopped

    with ExitStack() as stack:
        envs, obs = [], []
        for seed in seeds:
            check()
            envs.append(stack.enter_context(closing(make_env())))
            obs.append(envs[-1].reset(seed))
        starts, returns, lengths = list(obs), [0.0] * len(envs), [0] * len(envs)
        running = list(range(len(envs)))
        while running:
            actions = policy(torch.stack([obs[i] for i in running]).to(device)).cpu()
            still_running = []
            for i, action in zip(running, actions, strict=True):
                check()
                step = envs[i].step(action)
                on_step(i, action, step)
                obs[i] = step.obs
                returns[i] += step.reward
                lengths[i] += 1
                if not (step.terminated or step.truncated):
                    still_running.append(i)
            running = still_running
    return list(map(Outcome, starts, returns, lengths))


class Recorder:
    """Keeps the steps of episodes that are played with it as `on_step`."""

    def __init__(self) -> None:
        self._steps: defaultdict[int, list[tuple[Tensor, Step]]] = defaultdict(list)

    def __call__(self, episode: int, action: Tensor, step: Step) -> None:
        """Keep a step."""
        self._steps[episode].append((action, step))

    def episodes(self, outcomes: Sequence[Outcome]) -> list[Episode]:
        """Return the episodes with these outcomes."""
        return [Episode.of(outcome.start, self._steps[i]) for i, outcome in enumerate(outcomes)]


class Evaluator:
    """Plays the same episodes at every evaluation.

    `device` is that of the policy. With `keeps_episodes`, `episodes` are those of the last evaluation.
    """

    def __init__(
        self,
        make_env: Callable[[], Environment],
        num_episodes: int,
        seed: int,
        device: torch.device | str = "cpu",
        *,
        should_stop: Callable[[], bool] = lambda: False,
        keeps_episodes: bool = False,
    ) -> None:
        self._make_env, self._seeds = make_env, episode_seeds(seed, "evaluation", num_episodes)
        self._device, self._should_stop = device, should_stop
        self._keeps_episodes = keeps_episodes
        self.episodes: list[Episode] = []

    def __call__(self, policy: Policy) -> Evaluation:
        """Evaluate a greedy policy; raise `Stopped` if asked to stop."""
        recorder = Recorder() if self._keeps_episodes else None
        outcomes = play(
            self._make_env, self._seeds, policy, self._device, self._should_stop, recorder or forget
        )
        if recorder is not None:
            self.episodes = recorder.episodes(outcomes)
        return Evaluation.of(outcomes)
