"""Play episodes with a trained policy, in the real environment or in the learned model.

Knows environments, a model and a policy; does not know what the results are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from mbpo_cli.build import build_env
from mbpo_cli.envs.environment import Environment
from mbpo_cli.evaluation.diagnostics import joined
from mbpo_cli.evaluation.evaluate import Episode, Evaluation, Outcome, Recorder, play
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.nn.seeding import episode_seeds
from mbpo_cli.trained.load import Trained
from mbpo_cli.types import ActionSpec, Policy

# Environments open at a time. Evaluations during training with no more episodes use the same batches, and
# therefore give the same returns to the last bit.
NUM_ENVS = 50


def play_real(
    make_env: Callable[[], Environment], seeds: Sequence[int], policy: Policy, num_envs: int = NUM_ENVS
) -> list[Outcome]:
    """Play an episode per seed, up to `num_envs` of them side by side."""
    starts = range(0, len(seeds), num_envs)
    return [o for start in starts for o in play(make_env, seeds[start : start + num_envs], policy)]


def play_recorded(
    make_env: Callable[[], Environment], seeds: Sequence[int], policy: Policy
) -> tuple[list[Outcome], list[Episode]]:
    """Play an episode per seed, and return the outcomes and all steps."""
    outcomes: list[Outcome] = []
    episodes: list[Episode] = []
    for start in range(0, len(seeds), NUM_ENVS):
        recorder = Recorder()
        played = play(make_env, seeds[start : start + NUM_ENVS], policy, on_step=recorder)
        outcomes += played
        episodes += recorder.episodes(played)
    return outcomes, episodes


def recorded(episodes: Sequence[Episode], actions: ActionSpec) -> dict[str, NDArray[Any]]:
    """Return the arrays of D4RL, one row per step, with flat observations and the environment's actions."""
    rows = joined(episodes)
    is_last = torch.cat([torch.arange(len(episode)) == len(episode) - 1 for episode in episodes])
    return {
        "observations": rows.obs.numpy(),
        "actions": actions.to_env(rows.action).numpy(),
        "rewards": torch.cat([episode.reward for episode in episodes]).numpy(),
        "next_observations": rows.next_obs.numpy(),
        "terminals": (rows.terminated == 1).numpy(),
        "timeouts": (is_last & (rows.terminated == 0)).numpy(),
    }


def evaluation_of(trained: Trained, num_episodes: int = 20, seed: int | None = None) -> Evaluation:
    """Evaluate a run's greedy policy; without a seed, on the episodes of the run's own evaluations."""
    config = trained.config
    seeds = episode_seeds(config.seed if seed is None else seed, "evaluation", num_episodes)
    return Evaluation.of(play_real(lambda: build_env(config), seeds, trained.agent.act))


def play_in_model(
    model: EnvironmentModel,
    policy: Policy,
    real: Sequence[Outcome],
    max_steps: int | None,
    generator: torch.Generator,
) -> list[Outcome]:
    """Play an episode in the model from the first observation of each real one.

    An episode ends where the model predicts termination, at the time limit (without one, at the length of
    its real episode), or at a prediction that is not finite, which makes its return NaN. Each step uses a
    random elite, as in rollouts.
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
            continues = finite & (step.terminated == 0) & (lengths[running] < limits[running])
            running, obs = running[continues], step.next_obs[continues]
    return list(map(Outcome, [episode.start for episode in real], returns.tolist(), lengths.tolist()))
