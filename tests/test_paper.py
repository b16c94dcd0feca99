"""The presets of the paper have the paper's values, whatever their parts' own files contain."""

from __future__ import annotations

from typing import Any

import pytest

from mbpo_cli.build import build_env
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import options_in
from mbpo_cli.rollouts import horizon_at, lost_experience
from tests.conftest import CONF

# Updates per step, horizon by thousands of steps, steps between fits, retained generations, units, target
# entropy, environment steps.
TASKS: dict[str, tuple[Any, ...]] = {
    "inverted_pendulum": (10, {0: 1, 100: 1}, 250, 1, 200, -0.05, 3_750),
    "hopper": (20, {20: 1, 60: 8, 100: 15, 120: 15}, 250, 4, 200, -1, 125_000),
    "walker2d": (20, {0: 1, 300: 1}, 250, 4, 200, -3, 300_000),
    "half_cheetah": (40, {0: 1, 400: 1}, 250, 4, 200, -3, 400_000),
    "ant": (20, {20: 1, 60: 13, 100: 25, 300: 25}, 250, 4, 200, -4, 300_000),
    "humanoid": (20, {20: 1, 160: 13, 300: 25}, 1_000, 5, 400, -2, 300_000),
}
SHARED = {
    "agent.name": "sac",
    "agent.hidden_sizes": [256, 256],
    "agent.mini_batch_size": 256,
    "agent.critic_optimizer.learn_rate": 3e-4,
    "agent.actor_optimizer.learn_rate": 3e-4,
    "agent.entropy_weight_options.learn_rate": 3e-4,
    "agent.entropy_weight_options.entropy_weight": 1.0,
    "agent.target_smooth_factor": 0.005,
    "agent.discount_factor": 0.99,
    "agent.experience_buffer_length": 1_000_000,
    "model.transition.distribution": "gaussian",
    "model.transition.num_networks": 7,
    "model.transition.num_elites": 5,
    "model.transition.predict_difference": True,
    "model.transition.layer_decays": [1.25e-5, 2.5e-5, 3.75e-5, 3.75e-5, 5e-5],
    "model.transition.optimizer.learn_rate": 1e-3,
    "model.reward.distribution": "gaussian",
    "model.reward.layer_decays": [1.25e-5, 2.5e-5, 3.75e-5, 3.75e-5, 5e-5],
    "model.is_done._target_": "mbpo_cli.models.known.Known",
    "model.training.num_mini_batches": "all",
    "model.training.mini_batch_size": 256,
    "model.training.holdout_ratio": 0.2,
    "model.training.holdout_max": 5_000,
    "model.training.patience": 5,
    "model.training.improvement": 0.01,
    "mbpo.real_ratio": 0.05,
    "mbpo.model_rollout_options.num_rollout": 100_000,
    "mbpo.model_rollout_options.horizon": 1,
    "trainer.num_eval_episodes": 5,
}


def test_every_preset_is_tested() -> None:
    names = {path.stem for path in (CONF / "experiment" / "paper").glob("*.yaml")}
    assert names == {*TASKS, "base"}


@pytest.mark.parametrize("task", TASKS)
def test_presets_have_the_values_of_the_paper(task: str) -> None:
    config = make_config(f"experiment=paper/{task}")
    steps = config.trainer.num_env_steps, config.agent.num_warm_start_steps
    assert lost_experience(config.mbpo, *steps) is None
    updates, horizons, every, retained, units, target_entropy, num_env_steps = TASKS[task]
    values = {key: value for key, _, _, value in options_in(config)}
    assert {key: values[key] for key in SHARED} == SHARED
    assert config.env.name == task
    assert config.agent.num_gradient_steps_per_update == updates
    assert values["agent.entropy_weight_options.target_entropy"] == target_entropy
    assert values["agent.num_warm_start_steps"] == (500 if task == "inverted_pendulum" else 5_000)
    assert values["model.transition.hidden_sizes"] == values["model.reward.hidden_sizes"] == [units] * 4
    assert config.mbpo.generate_every == every
    assert config.mbpo.retained_generations == retained
    assert config.trainer.num_env_steps == num_env_steps
    assert config.trainer.evaluate_every_steps == (250 if task == "inverted_pendulum" else 1_000)
    options = config.mbpo.model_rollout_options
    assert {epoch: horizon_at(options, 10**6, 1_000 * epoch) for epoch in horizons} == horizons
    capacity = retained * options.num_rollout * max(horizons.values())
    assert config.mbpo.model_experience_buffer_length == capacity


# Without the contact forces of Ant and Humanoid, and without Humanoid's body inertias and velocities.
@pytest.mark.parametrize(
    ("task", "size"),
    {
        "inverted_pendulum": 4,
        "hopper": 11,
        "walker2d": 17,
        "half_cheetah": 17,
        "ant": 27,
        "humanoid": 45,
    }.items(),
)
def test_observations_have_the_sizes_of_the_paper(task: str, size: int) -> None:
    env = build_env(make_config(f"experiment=paper/{task}"))
    env.close()
    assert env.spaces.obs_size == size
