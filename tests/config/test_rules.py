"""Values that follow from the steps of a run, the length of an episode and the sizes of the spaces."""

from __future__ import annotations

import re
from typing import Any

import pytest
from omegaconf import OmegaConf

from mbpo_cli.config import rules
from mbpo_cli.config.compose import composed, make_config
from mbpo_cli.config.rules import BY_ENV, BY_SIZE, BY_STEPS, Facts
from mbpo_cli.failures import ConfigError
from tests.conftest import CONF, gym_env


def values(*overrides: str) -> Any:
    return make_config(*overrides)


@pytest.mark.parametrize(
    ("env_id", "steps", "warm_start", "hold", "every", "horizon", "rollouts", "hidden"),
    [
        ("Pendulum-v1", 600, 60, 10, 50, 50, 400, 64),
        ("Acrobot-v1", 1_500, 150, 10, 50, 100, 200, 64),
        ("CartPole-v1", 100_000, 5_000, 10, 250, 100, 200, 64),
        ("Reacher-v5", 4_000, 400, 2, 100, 12, 1_666, 64),
        ("Hopper-v5", 100_000, 5_000, 10, 250, 10, 2_000, 256),
        ("tests/Counting-v0", 2_000, 200, 10, 50, 100, 200, 64),  # tells no length
        ("tests/Channels-v0", 2_000, 200, 10, 50, 10, 2_000, 256),
        ("nothing", 2_000, 200, 10, 50, 10, 2_000, 256),  # is reported by the run
    ],
)
def test_the_rules(
    env_id: str, steps: int, warm_start: int, hold: int, every: int, horizon: int, rollouts: int, hidden: int
) -> None:
    config = values(*gym_env(env_id), f"trainer.num_env_steps={steps}")
    agent, mbpo = config.agent, config.mbpo
    assert (agent.num_warm_start_steps, agent.warm_start_hold_steps) == (warm_start, hold)
    assert mbpo.generate_every == every
    assert mbpo.model_rollout_options.horizon == horizon
    assert mbpo.model_rollout_options.num_rollout == rollouts
    assert agent.hidden_sizes == [hidden, hidden]


def test_the_command_line_wins_over_rules() -> None:
    config = values(*gym_env("Pendulum-v1"), "agent.num_warm_start_steps=7", "mbpo.generate_every=9")
    assert config.agent.num_warm_start_steps == 7
    assert config.mbpo.generate_every == 9


def test_keyword_arguments_of_the_environment_count() -> None:
    config = values(*gym_env("Pendulum-v1"), "env.kwargs={max_episode_steps: 40}")
    assert config.mbpo.model_rollout_options.horizon == 10


def test_a_composed_configuration_holds_the_values() -> None:
    config = OmegaConf.to_container(composed(*gym_env("Pendulum-v1"), "trainer.num_env_steps=1e3"))
    assert "rule" not in str(config)
    assert config["agent"]["warm_start_hold_steps"] == 10  # type: ignore[index, call-overload]


def test_a_rule_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(
        ConfigError, match=r"seed=\$\{rule:luck\}: no such rule; available: num_warm_start_steps"
    ):
        values("seed='${rule:luck}'")


MAY_BE_NULL_ZERO_OR_A_WORD = {
    f"imagining_{name}"
    for name in (
        *("activation", "initial_weights", "scale_outputs", "layer_norm", "significance"),
        *("critic_dropout", "bound_quantile", "first_updates", "random_fraction"),
    )
}


@pytest.mark.parametrize("name", [name for name in BY_ENV if name not in MAY_BE_NULL_ZERO_OR_A_WORD])
def test_every_rule_has_a_value_for_every_environment(name: str) -> None:
    for episode in (1, 200, 10**6):
        for size in (1, 1_000):
            value = BY_ENV[name](Facts(episode, size, size))
            assert all(each > 0 for each in (value if isinstance(value, list) else [value]))


def test_small_and_large_tasks_have_their_own_values_of_the_double_horizon() -> None:
    text = (CONF / "algorithm" / "double_horizon.yaml").read_text()
    named = {name for name in BY_SIZE if name.startswith("imagining_")}
    assert set(re.findall(r"rule:(imagining_\w+)", text)) == named
    for task, updates, critics in (("pendulum", 4, 2), ("hopper", 1, 5)):
        config = values("algorithm=double_horizon", f"env={task}")
        assert config.agent.num_gradient_steps_per_update == updates
        assert config.agent.critics.number == critics
        assert config.model.transition.num_elites == config.model.transition.num_networks


@pytest.mark.parametrize("name", sorted(BY_STEPS.keys() - {"first_updates"}))
def test_every_rule_has_a_value_for_runs_of_every_length(name: str) -> None:
    assert all(BY_STEPS[name](steps) > 0 for steps in (1, 500, 10**9))


def test_from_data_alone_the_model_is_fitted_for_longer_and_all_updates_are_the_first() -> None:
    fits = []
    for steps in (0, 1):
        config = values("env=pendulum", "data=any", f"trainer.num_env_steps={steps}")
        training, mbpo = config.model.training, config.mbpo
        epochs = mbpo.num_epoch_for_training_model
        fits.append((training.num_mini_batches, training.patience, epochs, mbpo.first_updates))
    assert fits == [("all", 40, 400, 6_000), (10, 5, 100, 0)]


def test_dm_control_has_the_values_of_large_tasks_without_its_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_facts", None)
    shipped = values("env=dmc", "env.id=dm_control/walker-walk-v0", "trainer.num_env_steps=20_000")
    monkeypatch.undo()
    plain = values(*gym_env("nothing"), "trainer.num_env_steps=20_000")
    assert shipped.agent == plain.agent
    assert shipped.mbpo == plain.mbpo
    assert shipped.model == plain.model


def test_small_tasks_that_are_shipped_follow_the_rules() -> None:
    for env, env_id in (("acrobot", "Acrobot-v1"), ("inverted_pendulum", "InvertedPendulum-v5")):
        shipped = values(f"env={env}", "trainer.num_env_steps=1000")
        plain = values(*gym_env(env_id), "trainer.num_env_steps=1000")
        assert shipped.agent == plain.agent
        assert shipped.mbpo == plain.mbpo
        assert shipped.model.transition == plain.model.transition
