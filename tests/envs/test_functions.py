"""Environments that a Python function makes, in place of an id."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import yaml

import mbpo_cli
from mbpo_cli.build import build_env
from mbpo_cli.commands import evaluate
from mbpo_cli.commands.report import report
from mbpo_cli.envs.functions import registered
from mbpo_cli.failures import ConfigError
from mbpo_cli.trained.summary import closing_table
from tests.conftest import TINY, CountingEnv, PointMassEnv, gym_env

RUN = (*TINY, "mbpo.generate_every=5")
HALF = (*RUN, "trainer.num_env_steps=10")


def make_point(**kwargs: Any) -> PointMassEnv:
    """Make a point mass, as its id does."""
    return PointMassEnv(**kwargs)


MAKE_POINT_ID = "python_function/tests.envs.test_functions.make_point"


@pytest.fixture(scope="module")
def run_of_function(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained in two parts."""
    path = tmp_path_factory.mktemp("function") / "run"
    for overrides in (HALF, RUN):
        mbpo_cli.train(mbpo_cli.make_config(*overrides, env=make_point), path, env=make_point)
    return path


def numbers(path: Path) -> list[dict[str, float]]:
    """Return what a run has logged, without its times."""
    rows = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def test_numbers_are_those_of_the_same_environment_by_id(run_of_function: Path, tmp_path: Path) -> None:
    mbpo_cli.train(mbpo_cli.make_config(*RUN, *gym_env("tests/PointMass-v0")), tmp_path / "run")
    assert numbers(run_of_function) == numbers(tmp_path / "run")
    ours, other = (
        torch.load(run / "policy.pt", weights_only=True) for run in (run_of_function, tmp_path / "run")
    )
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[name], other[name]) for name in ours)
    by_id = mbpo_cli.load(tmp_path / "run", trust=["tests"])
    assert mbpo_cli.evaluation_of(mbpo_cli.load(run_of_function, env=make_point)) == mbpo_cli.evaluation_of(
        by_id
    )


def test_an_environment_is_made_anew_from_its_specification(tmp_path: Path) -> None:
    env = gym.wrappers.FrameStackObservation(gym.make("Pendulum-v1", max_episode_steps=15), 2)
    config = mbpo_cli.make_config(*HALF, env=env)
    assert config.env.id == "python_function/Pendulum.v1"
    mbpo_cli.train(config, tmp_path / "object", env=env)
    wrapper = "{_target_: gymnasium.wrappers.FrameStackObservation, stack_size: 2}"
    named = (*gym_env("Pendulum-v1"), "env.kwargs={max_episode_steps: 15}", f"env.wrappers=[{wrapper}]")
    mbpo_cli.train(mbpo_cli.make_config(*HALF, *named), tmp_path / "id")
    assert numbers(tmp_path / "object") == numbers(tmp_path / "id")


def test_its_run_says_that_it_belongs_to_a_function(run_of_function: Path, tmp_path: Path) -> None:
    stored = yaml.safe_load((run_of_function / "config.yaml").read_text())
    assert stored["env"]["id"] == MAKE_POINT_ID
    summary = json.loads((run_of_function / "summary.json").read_text())
    table = closing_table({**summary, "status": "interrupted"}, run_of_function, is_from_python=True)
    assert f"mbpo_cli.train(config, '{run_of_function}', env=make_env)" in table
    assert f"evaluation_of(mbpo_cli.load('{run_of_function}', env=make_env))" in table
    assert not {"mbpo-train", "mbpo-evaluate", "mbpo-model"} & set(table.split())
    report([run_of_function], tmp_path)
    assert "mbpo-evaluate" not in (tmp_path / "index.html").read_text()
    with pytest.raises(ConfigError, match=r"already holds a run with other values \(env.id: python_function"):
        mbpo_cli.train(mbpo_cli.make_config(*RUN, env=PointMassEnv), run_of_function, env=PointMassEnv)


REMEDY = (
    f"error: env.id={MAKE_POINT_ID}: a Python function makes it, which Python has to give: load(RUN, "
    "env=make_env) opens the run, and train(config, RUN, env=make_env) resumes it\n"
)


def test_commands_and_calls_without_the_function_say_how_to_give_it(
    run_of_function: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run_of_function.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "mbpo_cli", f"resume={run_of_function}", "trainer.num_env_steps=30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"mbpo-train: {REMEDY}")
    with pytest.raises(SystemExit) as ended:
        evaluate.main([str(run_of_function)])
    assert (ended.value.code, capsys.readouterr().err) == (2, f"mbpo-evaluate: {REMEDY}")
    calls: tuple[Callable[[], Any], ...] = (
        partial(mbpo_cli.load, run_of_function),
        partial(mbpo_cli.train, mbpo_cli.make_config(*RUN, env=make_point), run_of_function),
        partial(mbpo_cli.LearnedVectorEnv.from_run, run_of_function),
    )
    for call in calls:
        with pytest.raises(ConfigError, match="a Python function makes it, which Python has to give"):
            call()
    assert {path: path.read_bytes() for path in run_of_function.rglob("*") if path.is_file()} == before


def test_a_loaded_run_keeps_its_own_function(run_of_function: Path) -> None:
    """Both functions have one name."""
    short, long = (
        mbpo_cli.load(run_of_function, env=lambda steps=steps: gym.wrappers.TimeLimit(PointMassEnv(), steps))
        for steps in (3, 4)
    )
    for trained, steps in ((short, 3), (long, 4)):
        assert mbpo_cli.evaluation_of(trained, 2).lengths == (steps, steps)
    learned = mbpo_cli.LearnedVectorEnv.from_run(run_of_function, 2, env=make_point, starts="resets")
    assert learned.reset(seed=0)[0].shape == (2, 1)


def test_the_rules_know_the_spaces_of_the_latest_function() -> None:
    def config_for(shape: tuple[int, ...], limit: int) -> Any:
        def make_env() -> Any:
            env = CountingEnv()
            env.observation_space = gym.spaces.Box(-1, 1, shape)
            return gym.wrappers.TimeLimit(env, limit)

        return mbpo_cli.make_config("trainer.num_env_steps=2_000", env=make_env)

    small, large = config_for((2,), 80), config_for((50,), 80)
    assert small.env.id == large.env.id
    assert small.mbpo.model_rollout_options.horizon == 20
    assert large.mbpo.model_rollout_options.horizon == 10
    assert (small.agent.hidden_sizes, large.agent.hidden_sizes) == ([64, 64], [256, 256])


def test_the_function_gets_the_keyword_arguments_and_an_own_choice_of_the_group_stays() -> None:
    kwargs = "env.kwargs={walls: true, max_episode_steps: 7}"
    config = mbpo_cli.make_config("env=pendulum", kwargs, env=make_point)
    assert (config.env.name, config.env.id) == ("pendulum", MAKE_POINT_ID)
    with registered(make_point) as env_id:
        assert env_id == MAKE_POINT_ID
        env = build_env(config)
    assert env.max_steps == 7
    assert getattr(env._env.unwrapped, "walls") is True  # noqa: B009 - not declared by Gymnasium
    assert MAKE_POINT_ID not in gym.registry


def test_names_of_what_makes_environments() -> None:
    class Maker:
        def __call__(self) -> PointMassEnv:
            return PointMassEnv()

    here = "python_function/tests.envs.test_functions.test_names_of_what_makes_environments.locals"
    for env, env_id in (
        (PointMassEnv, "python_function/tests.conftest.PointMassEnv"),
        (partial(make_point, walls=True), MAKE_POINT_ID),
        (lambda: PointMassEnv(), f"{here}.lambda"),
        (Maker(), f"{here}.Maker"),
        (gym.make("tests/PointMass-v0"), "python_function/tests.PointMass.v0"),
    ):
        with registered(env) as name, registered(env):
            assert name == env_id
        assert env_id not in gym.registry
    with registered(make_point):
        outer = gym.registry[MAKE_POINT_ID]
        with registered(make_point):
            assert gym.registry[MAKE_POINT_ID] is not outer
        assert gym.registry[MAKE_POINT_ID] is outer


SHARED = PointMassEnv()


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (
            SHARED,
            "env: this PointMassEnv cannot be made anew, for evaluation; give what makes it: a class",
        ),
        (gym.wrappers.TimeLimit(SHARED, 5), "env: this PointMassEnv cannot be made anew"),
        (3, "env: must be a function or a class that makes an environment, not 3"),
        (lambda: 3, "env: the function returned 3, which is not a Gymnasium environment"),
        (
            lambda: gym.wrappers.TimeLimit(SHARED, 5),
            "env: the function returned one environment twice;",
        ),
        (
            lambda size: SHARED,
            "env.kwargs=null: not accepted by python_function/tests.envs.test_fun",
        ),
    ],
)
def test_what_makes_no_environments_is_refused_before_anything_is_written(
    env: Any, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        mbpo_cli.train(mbpo_cli.make_config(*RUN, env=env), tmp_path / "run", env=env)
    assert str(caught.value).startswith(reason)
    assert list(tmp_path.iterdir()) == []


def test_function_and_configuration_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^env.id=Pendulum-v1: leave it out, as env=... makes the"):
        mbpo_cli.make_config("env.id=Pendulum-v1", env=make_point)
    for config in (mbpo_cli.make_config(*RUN), mbpo_cli.make_config(*RUN, env=make_point)):
        with pytest.raises(ConfigError, match=rf"CountingEnv, but config is for {config.env.id}; give "):
            mbpo_cli.train(config, tmp_path / "run", env=CountingEnv)
    assert list(tmp_path.iterdir()) == []
