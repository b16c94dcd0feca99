"""Criteria that end a training or save its agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbpo_cli.config.compose import make_config
from mbpo_cli.config.stored import trusted_config
from mbpo_cli.evaluation.evaluate import Evaluation
from mbpo_cli.evaluation.schedule import Criterion, TrainingRecord, reason
from mbpo_cli.failures import ConfigError
from mbpo_cli.run import run
from mbpo_cli.sweeps.jobs import Job
from mbpo_cli.trained.load import load
from tests.conftest import TINY, gym_env

RECORD = TrainingRecord(50, 4, [(10.0, 9), (20.0, 11), (4.5, 16)], Evaluation((3.0, 6.0), (8, 9)))
# Episodes of 5 steps with a return of 15.
COUNTING = (*TINY, *gym_env("tests/Counting-v0"), "mbpo=off", "trainer.num_env_steps=40")


def is_third_episode(record: TrainingRecord) -> bool:
    return record.episodes >= 3 and record.returns == [15.0] * 3 and record.lengths == [5] * 3


NOT_A_FUNCTION = 3


@pytest.mark.parametrize(
    ("criterion", "value", "words"),
    [
        ("average_reward", 11.5, "the average return of 3 episodes, 11.50, reached 11.5"),  # 34.5 / 3
        ("average_reward", 11.6, None),
        ("average_steps", 12.0, "the average length of 3 episodes, 12, reached 12"),
        ("average_steps", 12.1, None),
        ("episode_reward", 4.5, "the return of an episode, 4.50, reached 4.5"),  # the last
        ("episode_reward", 4.6, None),
        ("episode_count", 4.0, "the number of episodes, 4, reached 4"),
        ("episode_count", 5.0, None),
        ("global_step_count", 50.0, "the number of environment steps, 50, reached 50"),
        ("global_step_count", 51.0, None),
        ("evaluation", 4.5, "the mean return of an evaluation, 4.50, reached 4.5"),
        ("evaluation", 4.6, None),
        ("none", None, None),
    ],
)
def test_a_criterion_is_satisfied_from_its_value_on(
    criterion: Criterion, value: float | None, words: str | None
) -> None:
    assert reason(criterion, value, RECORD, 3) == words


@pytest.mark.parametrize("criterion", ["average_reward", "average_steps", "episode_reward", "evaluation"])
def test_nothing_is_satisfied_before_there_are_numbers(criterion: Criterion) -> None:
    assert reason(criterion, -1e9, TrainingRecord(0, 0, [], None), 3) is None


def test_averages_are_of_a_full_window() -> None:
    words = "the average return of 2 episodes, 12.25, reached 12.25"  # (20 + 4.5) / 2
    assert reason("average_reward", 12.25, RECORD, 2) == words
    assert reason("average_reward", 0.0, RECORD, 4) is None
    assert reason("average_steps", 0.0, RECORD, 4) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("criteria=average_reward",), "value=null: {}_criteria=average_reward needs a number"),
        (("criteria=evaluation", "value=abc"), "value=abc: {}_criteria=evaluation needs a number"),
        (("value=3",), "value=3.0: has no meaning with {}_criteria=none"),
        (("criteria=custom", "value=3"), "value=3.0: {}_criteria=custom needs a function, as package.module"),
        (("criteria=custom", "value=tests.no.such"), "value=tests.no.such: No module named 'tests.no'"),
        (
            ("criteria=custom", f"value={__name__}.NOT_A_FUNCTION"),
            f"value={__name__}.NOT_A_FUNCTION: is not a function",
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["trainer.stop_training", "checkpoint.save_agent"])
def test_a_value_that_is_none_for_the_criterion_is_named(
    prefix: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(*(f"{prefix}_{item}" for item in overrides))
    assert str(error.value).startswith(f"{prefix}_{message.format(prefix.partition('.')[2])}")


def of_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return json.loads((path / "summary.json").read_text()), [json.loads(line) for line in lines]


STOPS = {
    "average_reward": ("15", 10, "the average return of 2 episodes, 15, reached 15"),
    "episode_reward": ("14", 5, "the return of an episode, 15, reached 14"),
    "episode_count": ("3", 15, "the number of episodes, 3, reached 3"),
    "global_step_count": ("13", 13, "the number of environment steps, 13, reached 13"),
    "evaluation": ("15", 20, "the mean return of an evaluation, 15, reached 15"),
}


def stopping(criterion: str) -> tuple[str, ...]:
    return (
        f"trainer.stop_training_criteria={criterion}",
        f"trainer.stop_training_value={STOPS[criterion][0]}",
        "trainer.score_averaging_window_length=2",
        "trainer.evaluate_every_steps=20",
    )


@pytest.mark.parametrize("criterion", STOPS)
def test_a_criterion_ends_a_run_with_a_last_evaluation(
    criterion: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, last_step, why = STOPS[criterion]
    with caplog.at_level("INFO"):
        run(make_config(*COUNTING, *stopping(criterion)), tmp_path)
    summary, rows = of_run(tmp_path)
    assert (summary["status"], summary["env_steps"]) == ("done", last_step)
    assert summary["stopped_because"] == why
    assert f"done, stopped because {why}" in caplog.text
    assert [row["step"] for row in rows if "eval/return_mean" in row] == [last_step]
    assert "train/gradient_steps" in rows[-1]  # what is logged at the end


def test_a_run_that_a_criterion_has_ended_stays_ended(tmp_path: Path) -> None:
    config = make_config(*COUNTING, *stopping("average_reward"))
    run(config, tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    run(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    summary, _ = of_run(tmp_path)
    assert summary["stopped_because"] == STOPS["average_reward"][2]


def test_without_the_criterion_it_goes_on_as_if_there_had_been_none(tmp_path: Path) -> None:
    run(make_config(*COUNTING, *stopping("average_reward")), tmp_path / "stopped")
    window, every = stopping("average_reward")[2:]
    for name in ("stopped", "whole"):
        run(make_config(*COUNTING, window, every), tmp_path / name)
    (stopped, _), (whole, _) = (of_run(tmp_path / name) for name in ("stopped", "whole"))
    assert stopped["env_steps"] == 40
    assert stopped["stopped_because"] is None
    assert stopped["gradient_steps"] == whole["gradient_steps"] == 35
    policies = [load(tmp_path / name, trust=["tests"]).agent.policy_state() for name in ("stopped", "whole")]
    assert all(bool((policies[0][name] == policies[1][name]).all()) for name in policies[0])


def test_episodes_are_limited(tmp_path: Path) -> None:
    run(make_config(*COUNTING, "trainer.max_episodes=4"), tmp_path)
    summary, _ = of_run(tmp_path)
    assert (summary["env_steps"], summary["episodes"]) == (20, 4)
    assert summary["stopped_because"] == "the number of episodes reached trainer.max_episodes=4"


def test_a_function_of_ones_own_ends_a_run(tmp_path: Path) -> None:
    name = f"{__name__}.is_third_episode"
    own = ("trainer.stop_training_criteria=custom", f"trainer.stop_training_value={name}")
    run(make_config(*COUNTING, *own, "trainer.score_averaging_window_length=3"), tmp_path)
    summary, _ = of_run(tmp_path)
    assert (summary["env_steps"], summary["stopped_because"]) == (15, f"{name} returned true")


@pytest.mark.parametrize("prefix", ["trainer.stop_training", "checkpoint.save_agent"])
def test_a_stored_function_is_called_only_if_its_package_is_trusted(prefix: str, tmp_path: Path) -> None:
    run(make_config(*TINY, "env=pendulum", "mbpo=off"), tmp_path)
    path = tmp_path / "config.yaml"
    values = yaml.safe_load(path.read_text())
    group, name = prefix.split(".")
    for function in (f"{__name__}.is_third_episode", "mbpo_cli.evaluation.schedule.reason"):
        values[group] |= {f"{name}_criteria": "custom", f"{name}_value": function}
        path.write_text(yaml.safe_dump(values))
        with pytest.raises(ConfigError, match=rf"^{prefix}_value={function}: .* outside the safe parts"):
            trusted_config(tmp_path, (), "{}")
    values[group][f"{name}_value"] = f"{__name__}.is_third_episode"
    path.write_text(yaml.safe_dump(values))
    assert trusted_config(tmp_path, ["tests"], "{}") == values


def test_a_job_that_a_criterion_has_ended_is_done(tmp_path: Path) -> None:
    config = make_config(*COUNTING, *stopping("average_reward"))
    score = run(config, tmp_path)
    assert Job("job", (), tmp_path, config).result() == (score, "done")
    other = make_config(*COUNTING, *stopping("episode_count")[:2], *stopping("average_reward")[2:])
    assert Job("job", (), tmp_path, other).score is None


@pytest.mark.parametrize(
    ("criterion", "value", "steps"),
    [
        ("episode_count", "3", [30, 35]),  # from the third episode on, at step 15; the run ends in an episode
        ("evaluation", "15", [36, 38]),
        ("evaluation", "15.5", []),
        ("custom", f"{__name__}.is_third_episode", [36, 38]),
    ],
)
def test_the_latest_checkpoints_that_satisfy_a_criterion_are_kept(
    criterion: str, value: str, steps: list[int], tmp_path: Path
) -> None:
    options = (
        f"checkpoint.save_agent_criteria={criterion}",
        f"checkpoint.save_agent_value={value}",
        "checkpoint.keep_saved=2",
        "checkpoint.every_steps=1",
        "trainer.score_averaging_window_length=3",
        "trainer.evaluate_every_steps=18" if criterion != "custom" else "trainer.evaluate_every_steps=36",
    )
    run(make_config(*COUNTING, *options, "trainer.num_env_steps=38"), tmp_path)
    manifest = json.loads((max((tmp_path / "checkpoints").iterdir()) / "manifest.json").read_text())
    assert manifest["saved"] == steps
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {37, 38, manifest["best"], *steps}
    for step in steps:
        assert load(tmp_path / "checkpoints" / str(step), trust=["tests"]).state["env_steps"] == step
