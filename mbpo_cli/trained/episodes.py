"""Episodes of a greedy policy: in the real environment, before a camera, or in the learned model.

Knows environments, a model and a policy; does not know where they come from or what becomes of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from mbpo_cli.build import build_env
from mbpo_cli.envs.environment import Environment, Step
from mbpo_cli.evaluation.evaluate import Episode, Evaluation, Outcome, play
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.seeding import episode_seeds
from mbpo_cli.trained.load import Trained
from mbpo_cli.trained.video import Film
from mbpo_cli.types import Policy

# So many environments are open at a time. Evaluations within training that have no more episodes see the same
# batches, and therefore give the same returns to the last bit.
AT_ONCE = 50


def play_real(
    make_env: Callable[[], Environment], seeds: Sequence[int], policy: Policy, at_once: int = AT_ONCE
) -> list[Outcome]:
    """Play an episode for each seed, `at_once` of them side by side."""
    return [episode.outcome for episode in real_episodes(make_env, seeds, policy, at_once)]


def real_episodes(
    make_env: Callable[[], Environment], seeds: Sequence[int], policy: Policy, at_once: int = AT_ONCE
) -> list[Episode]:
    """Play an episode for each seed, and return all that happened."""
    episodes: list[Episode] = []
    with ExitStack() as stack:
        envs = []
        for _ in range(min(at_once, len(seeds))):
            envs.append(make_env())
            stack.callback(envs[-1].close)
        for start in range(0, len(seeds), at_once):
            chosen = seeds[start : start + at_once]
            episodes += play(envs[: len(chosen)], chosen, policy)
    return episodes


def evaluation_of(trained: Trained, num_episodes: int = 20, seed: int | None = None) -> Evaluation:
    """Return what a run's greedy policy earns; without a seed, in the episodes of the run's evaluations."""
    config = trained.config
    seeds = episode_seeds(config.seed if seed is None else seed, "evaluation", num_episodes)
    return Evaluation.of(play_real(lambda: build_env(config), seeds, trained.agent.act))


class Filmed:
    """An environment before a camera."""

    def __init__(self, env: Environment, film: Film) -> None:
        """Film one step in `film.stride`, and how each episode ends."""
        self._env, self._film, self._steps = env, film, 0

    def reset(self, seed: int) -> Tensor:
        """Start an episode and return its first observation, shape (O,)."""
        obs, self._steps = self._env.reset(seed), 0
        self._film.add(self._env.render())
        return obs

    def step(self, action: Tensor) -> Step:
        """Take an action, scaled to [-1, 1] or one-hot, shape (A,)."""
        step = self._env.step(action)
        self._steps += 1
        if self._steps % self._film.stride == 0 or step.terminated or step.truncated:
            self._film.add(self._env.render())
        return step


def play_in_model(
    model: EnvironmentModel,
    policy: Policy,
    real: Sequence[Outcome],
    max_steps: int | None,
    generator: torch.Generator,
) -> list[Outcome]:
    """Play an episode in the model from where each real one began.

    An episode ends where the model predicts its end, at the time limit, or where a prediction is not
    finite, which its return is not either then.

    Args:
        model: The model, of which each step takes a random elite, as rollouts do.
        policy: Chooses the actions.
        real: The real episodes.
        max_steps: The time limit; None lets no episode be longer than its real one.
        generator: Random stream of groups and predictions.
    """
    returns = torch.zeros(len(real), dtype=torch.double)
    lengths = torch.zeros(len(real), dtype=torch.long)
    limits = torch.tensor([max_steps or episode.length for episode in real])
    running = torch.arange(len(real))
    obs = torch.stack([episode.start for episode in real])
    with torch.no_grad():
        while len(running) > 0:
            step = model.step(obs, policy(obs), generator)
            lengths[running] += 1
            finite = step.next_obs.isfinite().all(1) & step.reward.isfinite()
            returns[running] += torch.where(finite, step.reward.double(), torch.nan)
            goes_on = finite & (step.terminated == 0) & (lengths[running] < limits[running])
            running, obs = running[goes_on], step.next_obs[goes_on]
    return list(map(Outcome, [episode.start for episode in real], returns.tolist(), lengths.tolist()))
