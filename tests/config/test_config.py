"""Every choice composes and becomes typed; every mistake is reported in one line."""

from __future__ import annotations

import functools
import operator
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mbpo_cli.agents.sac import SACOptions
from mbpo_cli.build import uses_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.suggest import suggest
from mbpo_cli.config.typed import options_in, typed
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.transition import TransitionOptions
from mbpo_cli.rollouts import lost_experience
from scripts.option_table import with_table
from tests.conftest import CONF

GROUPS = (
    "agent",
    "agent/exploration",
    "env",
    "model/transition",
    "model/reward",
    "model/is_done",
    "model/training",
    "mbpo",
    "mbpo/model_rollout_options/noise_options",
    "trainer",
    "algorithm",
    "experiment",
    "hparams_search",
)
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def test_all_groups_are_listed_here() -> None:
    folders = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")}
    folders -= {
        "experiment/paper",
        "experiment/double_horizon",
        "logger",
    }  # test_paper.py, test_reproduce.py and test_loggers.py have these
    assert {f for f in folders if not f.startswith("hydra")} - {"."} == set(GROUPS)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_becomes_typed(group: str, choice: str) -> None:
    needs = ["env.id=Pendulum-v1"] if choice in ("gym", "dmc") else []
    if group == "agent/exploration":
        needs = ["agent=td3"]
    config = make_config(f"{group}={choice}", *needs)
    steps = config.trainer.num_env_steps, config.agent.num_warm_start_steps
    assert lost_experience(config.mbpo, *steps) is None
    assert all(value != "???" for _, _, _, value in options_in(config))


def test_an_option_means_the_same_for_every_agent() -> None:
    texts: dict[str, set[str]] = {}
    for agent in ("sac", "td3", "ddpg", "dqn"):
        for key, _, meaning, _ in options_in(make_config(f"agent={agent}").agent, groups=True):
            texts.setdefault(key, set()).add(meaning.text)
    assert [key for key, found in texts.items() if len(found) > 1] == []


@pytest.mark.parametrize("reward", ["gaussian", "deterministic", "known"])
@pytest.mark.parametrize("is_done", ["learned", "never", "known"])
def test_functions_can_be_chosen_without_a_model(reward: str, is_done: str) -> None:
    make_config(f"model/reward={reward}", f"model/is_done={is_done}", "mbpo=off")


def test_components_have_the_options_of_their_class() -> None:
    config = make_config()
    assert isinstance(config.agent, SACOptions)
    assert isinstance(config.model.transition, TransitionOptions)


def test_the_environment_chooses_known_functions_and_the_command_line_wins() -> None:
    assert make_config().model.reward._target_.endswith("models.known.Known")
    learned = make_config("model/reward=gaussian").model.reward
    assert learned._target_.endswith("LearnedReward")


@pytest.mark.parametrize("env", ["pendulum", "cartpole"])  # the second sets a real ratio of its own
def test_mbpo_off_uses_no_model_with_any_environment(env: str) -> None:
    agent = "sac" if env == "pendulum" else "dqn"
    assert uses_model(make_config(f"env={env}", f"agent={agent}"))
    assert not uses_model(make_config(f"env={env}", f"agent={agent}", "mbpo=off"))


def test_the_mixed_batch_has_the_size_of_the_agents_unless_set() -> None:
    assert make_config("agent.mini_batch_size=77").mbpo.mini_batch_size == 77
    assert make_config("agent.mini_batch_size=77", "mbpo.mini_batch_size=5").mbpo.mini_batch_size == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1.5", "seed=1.5: must be a whole number"),
        ("seed=-1", "seed=-1: must be a whole number from 0"),
        ("seed=null", "seed=null: must be a whole number"),
        ("seed=abc", "seed=abc: must be a whole number"),
        ("seed=true", "seed=True: must be a whole number"),
        ("threads=0", "threads=0: must be a whole number from 1 to 1,024 or auto ("),
        ("mbpo.real_ratio=1.5", "mbpo.real_ratio=1.5: must be a number from 0 to 1"),
        ("mbpo.real_ratio=-0.1", "mbpo.real_ratio=-0.1: must be a number from 0 to 1"),
        ("mbpo.real_ratio=nan", "mbpo.real_ratio=nan: must be a number from 0 to 1"),
        ("mbpo.mini_batch_size=0", "mbpo.mini_batch_size=0: must be a whole number from 1"),
        ("mbpo.model_rollout_options.horizon=0", "mbpo.model_rollout_options.horizon=0: must be"),
        ("mbpo.model_rollout_options.num_rollout=0", "mbpo.model_rollout_options.num_rollout=0: must be"),
        (
            "mbpo.model_rollout_options.horizon_update_schedule=cubic",
            "horizon_update_schedule=cubic: must be none or piecewise or linear",
        ),
        ("mbpo.generate_every=0", "mbpo.generate_every=0: must be"),
        ("mbpo.generate_every=often", "mbpo.generate_every=often: must be a whole number >= 1 or episode"),
        ("agent.actor_optimizer.learn_rate=-1e-3", "agent.actor_optimizer.learn_rate=-0.001: must be"),
        ("agent.actor_optimizer.learn_rate=inf", "agent.actor_optimizer.learn_rate=inf: must be"),
        ("agent.actor_optimizer.learn_rate=fast", "agent.actor_optimizer.learn_rate=fast: must be a number"),
        ("agent.entropy_weight_options=3", "agent.entropy_weight_options=3: must be a group of options"),
        (
            "agent.hidden_sizes=64",
            "agent.hidden_sizes=64: must be a list [each a whole number from 1 to 65,536] (",
        ),
        ("agent.hidden_sizes=[]", "agent.hidden_sizes=[]: must be a list"),
        (
            "agent.hidden_sizes=[64,0]",
            "agent.hidden_sizes=[64, 0]: must be a list [each a whole number from 1",
        ),
        ("+agent.lrr=1", "agent.lrr=1: no such option"),
        ("+agent.mini_batch_sise=1", "did you mean agent.mini_batch_size?"),
        ("+sed=1", "did you mean seed?"),
        ("~seed", "seed: needs a value"),
        ("env=gym", "env.id=null: must be printable text (Gymnasium id, such as Pendulum-v1)"),
        ("env.kwargs=5", "env.kwargs=5: must be a mapping such as {key: value} or null"),
        ("model.transition.num_elites=8", "model.transition.num_elites=8: must be at most num_networks"),
        ("model.training.holdout_ratio=0 model.training.patience=null", "model.transition.num_elites="),
        (
            "model.training.holdout_ratio=0 model.training.patience=null model.transition.num_elites=null",
            "mbpo.max_relative_error=0.1: needs model.training.holdout_ratio > 0",
        ),
        (
            "mbpo.model_rollout_options.max_divergence=2 model.transition.num_elites=1",
            "mbpo.model_rollout_options.max_divergence=2: needs model.transition.num_elites greater than 1",
        ),
        (
            "mbpo.model_rollout_options.max_lost_information=100 model/transition=gaussian "
            "model.transition.num_networks=1 model.transition.num_elites=null",
            "mbpo.model_rollout_options.max_lost_information=100: needs model.transition.num_elites greater",
        ),
        (
            "mbpo.model_rollout_options.max_lost_information=100 model/transition=deterministic",
            "mbpo.model_rollout_options.max_lost_information=100: needs model/transition=gaussian or",
        ),
        (
            "mbpo.model_rollout_options.num_compared=1",
            "mbpo.model_rollout_options.num_compared=1: must be a whole number >= 2 or null",
        ),
        (
            "mbpo.model_rollout_options.max_divergence=0",
            "mbpo.model_rollout_options.max_divergence=0: must be a number > 0 or null",
        ),
        (
            "mbpo.model_rollout_options.divergence_quantile=95",
            "mbpo.model_rollout_options.divergence_quantile=95: must be a number from 0 to 1",
        ),
        ("env.reward_function=null", "env.reward_function=null: not known for this environment"),
        ("env.reward_function=math.nothing", "env.reward_function=math.nothing: module 'math' has no"),
        ("env.reward_function=nothing.at_all", "env.reward_function=nothing.at_all: No module named"),
        ("env.reward_function=math.pi", "env.reward_function=math.pi: is not a function"),
        ("agent._target_=mbpo_cli.agents.sac.SACC", "agent._target_=mbpo_cli.agents.sac.SACC: module"),
        ("agent._target_=math.sqrt", "has no dataclass 'Options'"),
        (
            "agent._target_=mbpo_cli.models.reward.LearnedReward",
            "has no dataclass 'Options' derived from AgentOptions",
        ),
    ],
)
def test_wrong_values_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(*override.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_may_be_written_as_floats() -> None:
    assert make_config("trainer.num_env_steps=1e4").trainer.num_env_steps == 10_000
    learn_rate = make_config("agent.actor_optimizer.learn_rate=1").agent
    assert isinstance(learn_rate, SACOptions)
    assert isinstance(learn_rate.actor_optimizer.learn_rate, float)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mbpo.num_rollout", "mbpo.model_rollout_options.num_rollout"),
        ("model.transition.optimizer.learning_rate", "model.transition.optimizer.learn_rate"),
        ("trainer.num_env_step", "trainer.num_env_steps"),
        ("num_env_steps", "trainer.num_env_steps"),
        ("agent.discount", "agent.discount_factor"),
        ("sed", "seed"),
        ("bananas", None),
    ],
)
def test_misspelled_names_lead_to_a_suggestion(typed: str, meant: str | None) -> None:
    answer = suggest(typed, make_config(), lambda choices: make_config(*choices))
    assert answer == (f"did you mean {meant}?" if meant else None)


def test_every_option_has_a_meaning() -> None:
    assert all(meaning.text for _, _, meaning, _ in options_in(make_config()))


def test_no_file_is_left_out_of_the_package() -> None:
    assert all(
        path.suffix in (".yaml", ".json", ".py", ".pyc") for path in Path(CONF).rglob("*") if path.is_file()
    )


def test_the_option_table_matches_the_declarations() -> None:
    text = (CONF.parent / "docs" / "options.md").read_text()
    assert text == with_table(text), "run python scripts/option_table.py"


def test_no_option_accepts_a_wrong_value() -> None:
    """Tries values of other types, out of range and not finite for every option: hundreds of mistakes."""
    good = asdict(make_config("model/reward=gaussian", "mbpo/model_rollout_options/noise_options=gaussian"))
    mistakes = 0
    for key, hint, meaning, value in options_in(typed(good)):
        wrong: list[Any] = [float("nan"), float("inf"), -float("inf"), {"a": 1}, [[1]], object()]
        if value is not None and not isinstance(value, str):
            wrong += ["abc", "1; import os", "\x00", ""]
        if isinstance(value, str):
            wrong += ["a\nb", "\x1b[31mred", "\x00"]
        if isinstance(value, bool | str):
            wrong.append(12345.5)
        if meaning.low is not None:
            wrong.append(meaning.low - 1)
        if meaning.high is not None:
            wrong.append(meaning.high * 10 + 1)
        if "None" not in str(hint):
            wrong.append(None)
        for bad in wrong:
            if key.endswith(".kwargs") and isinstance(bad, dict):
                continue  # any mapping is allowed
            *parents, name = key.split(".")
            place = functools.reduce(operator.getitem, parents, good)
            place[name] = bad
            with pytest.raises(ConfigError) as error:
                typed(good)
            place[name] = value
            assert "\n" not in str(error.value)
            assert key.rpartition(".")[2] in str(error.value)
            mistakes += 1
    assert mistakes > 500


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.name=${oc.env:HOME}", "env.name=${oc.env:HOME}: only a whole value can be a reference"),
        ("env.name=a${env.id}", "only a whole value can be a reference"),
        ("env.name=${env.nothing}", "env.name: refers to 'env.nothing', which does not exist"),
        ("env.name=${env.name}", "env.name: refers to itself"),
        ("env.kwargs={a: '${env.kwargs}'}", "which contains references itself"),
        (
            "env.kwargs={b0: [1, 1], b1: ['${env.kwargs.b0}', '${env.kwargs.b0}'], b2: '${env.kwargs.b1}'}",
            "which contains references itself",
        ),
    ],
)
def test_only_references_to_single_options_are_allowed(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_config(override)


def test_an_option_can_refer_to_another() -> None:
    config = make_config("agent.hidden_sizes=[7,8]", "model.transition.hidden_sizes=${agent.hidden_sizes}")
    assert vars(config.model.transition)["hidden_sizes"] == [7, 8]
