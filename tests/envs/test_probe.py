"""Before a run: do episodes end, and do they repeat? And calls that hang."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from mbpo_cli.build import build_env
from mbpo_cli.commands.check import check
from mbpo_cli.config.compose import make_config
from mbpo_cli.envs import probe
from mbpo_cli.envs.collector import Collector
from mbpo_cli.envs.environment import Environment
from mbpo_cli.envs.probe import endless, unrepeated
from mbpo_cli.failures import ConfigError, Stopped
from mbpo_cli.run import run
from tests.conftest import TINY, ChannelsEnv, CountingEnv, PointMassEnv, gym_env


class Endless(PointMassEnv):
    """Never ends; `ends` draws whether a step terminates it."""

    ends: Callable[[], bool] = staticmethod(lambda: False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, type(self).ends(), False, info


class Mortal(Endless):
    """Terminates at random moments."""

    ends = staticmethod(lambda: random.random() < 0.2)


gym.register("tests/Endless-v0", f"{__name__}:Endless")
LOW = np.float32(-1)


@pytest.mark.parametrize(
    ("make_env", "reason"),
    [
        (lambda: gym.make("Pendulum-v1"), None),
        (lambda: gym.make("CartPole-v1", max_episode_steps=7), None),
        (lambda: gym.wrappers.TimeLimit(Endless(), 9), None),
        (lambda: gym.wrappers.RescaleAction(gym.wrappers.TimeLimit(Endless(), 9), LOW, -LOW), None),
        (lambda: PointMassEnv(walls=True), None),  # counts its own steps
        (lambda: CountingEnv(100), None),
        (lambda: CountingEnv(5, terminates=True), None),  # ends by termination, always after 5 steps
        (ChannelsEnv, None),
        (Endless, "a random episode did not end within 100 steps"),
        (lambda: gym.make("Pendulum-v1", max_episode_steps=-1), "did not end within 100 steps"),
        (lambda: CountingEnv(101), "did not end within 100 steps"),
        (Mortal, "ended by termination alone, after"),
        (lambda: gym.make("CartPole-v1", max_episode_steps=-1), "ended by termination alone, after"),
    ],
)
def test_an_environment_has_a_limit_if_it_tells_it_or_shows_it(
    make_env: Callable[[], gym.Env[Any, Any]],
    reason: str | None,
    g: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "MAX_STEPS", 100)
    found = endless(Environment(make_env()), g)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.filterwarnings("ignore:.*GLFW")  # dm_control searches for a display
def test_the_limit_of_a_task_of_dm_control_is_known() -> None:
    env = build_env(make_config("env=dmc", "env.id=dm_control/cartpole-swingup-v0"))
    assert env.max_steps == 1000
    env.close()


def test_an_environment_without_a_limit_is_refused_in_a_new_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_STEPS", 100)
    config = make_config(*TINY, *gym_env("tests/Endless-v0"))
    with pytest.raises(ConfigError) as error:
        check(config)
    assert str(error.value).startswith("env.id=tests/Endless-v0: episodes have no time limit (")
    assert str(error.value).endswith(
        "; add 'env.kwargs={max_episode_steps: 1000}' or the wrapper gymnasium.wrappers.TimeLimit"
    )
    check(config, is_new=False)
    check(make_config(*TINY, *gym_env("tests/Endless-v0"), "env.kwargs={max_episode_steps: 1000}"))


class Random(PointMassEnv):
    """Draws a number for each reset and step with `draw`, and adds it to the observation or the reward."""

    def __init__(self, draw: Callable[[Random], float], place: str) -> None:
        super().__init__()
        self.own = np.random.default_rng()
        self.fixed = np.random.default_rng(0)
        self.draw, self.place = draw, place

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        noise = self.draw(self) if self.place == "reset" else 0.0
        return np.clip(obs + noise, -2, 2).astype(np.float32), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        noise = self.draw(self)
        obs = np.clip(obs + (noise if self.place == "obs" else 0), -2, 2).astype(np.float32)
        return obs, reward + (noise if self.place == "reward" else 0), terminated, truncated, info


DRAWS: dict[str, Callable[[Random], float]] = {
    "numpy": lambda env: float(np.random.rand()),  # noqa: NPY002
    "python": lambda env: random.random(),
    "torch": lambda env: float(torch.rand(())),
    "own": lambda env: float(env.own.random()),
    "fixed": lambda env: float(env.fixed.random()),
}


@pytest.mark.parametrize("place", ["reset", "obs", "reward"])
@pytest.mark.parametrize("source", DRAWS)
def test_randomness_that_does_not_come_from_the_seed_is_noticed(
    source: str, place: str, g: torch.Generator
) -> None:
    states = random.getstate(), torch.get_rng_state()
    found = unrepeated(lambda: Environment(Random(DRAWS[source], place)), 3, g)
    assert found is not None
    assert "does not repeat" in found
    assert ("runs of one seed differ" in found) == (source != "fixed")
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_another_end_is_noticed(g: torch.Generator) -> None:
    lengths = iter((3, 4))
    found = unrepeated(lambda: Environment(CountingEnv(next(lengths))), 3, g)
    assert found is not None
    assert "the end of step 3" in found


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", "Hopper-v5", "LunarLander-v3"])
def test_ordinary_environments_repeat(env_id: str, g: torch.Generator) -> None:
    assert unrepeated(lambda: Environment(gym.make(env_id)), 3, g) is None
    assert unrepeated(lambda: Environment(Random(lambda env: env.np_random.random(), "reward")), 3, g) is None


def test_a_run_says_once_that_its_environment_does_not_repeat(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gym.register("tests/Random-v0", partial(Random, DRAWS["numpy"], "reward"))
    run(make_config(*TINY, *gym_env("tests/Random-v0"), "mbpo=off"), tmp_path)
    assert caplog.text.count("tests/Random-v0 does not repeat with its seed (the reward of step 1 ") == 1


def test_a_replay_with_other_rewards_is_no_replay() -> None:
    def collector(draw: Callable[[Random], float]) -> Collector:
        return Collector([Environment(Random(draw, "reward"))], seed_of=lambda number: number)

    first = collector(DRAWS["own"])
    for _ in range(5):
        first.step(torch.tensor([[0.5]]))
    again = collector(DRAWS["own"])
    assert not again.load_state_dict(first.state_dict())
    assert again.steps == [0]
    same = collector(lambda env: env.np_random.random())
    same.step(torch.tensor([[0.5]]))
    assert collector(lambda env: env.np_random.random()).load_state_dict(same.state_dict())
    with pytest.raises(Stopped):
        same.load_state_dict(same.state_dict(), should_stop=lambda: True)


HANGS = {
    "import": ("time.sleep(99)", "", "making it"),
    "init": ("", "    def __init__(self): time.sleep(99)", "making it"),
    "reset": ("", "    def reset(self, seed=None, options=None): time.sleep(99)", "a reset"),
    "step": ("", "    def step(self, action): time.sleep(99)", "a step"),
    "close": ("", "    def close(self): time.sleep(99)", "its close"),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", HANGS)
def test_every_call_that_hangs_ends_the_program_before_the_run(call: str, tmp_path: Path) -> None:
    at_import, method, words = HANGS[call]
    (tmp_path / "hanging.py").write_text(f"""
import gymnasium as gym, time
from tests.conftest import PointMassEnv
{at_import}
class Hanging(PointMassEnv):
    pass
{method}
gym.register("tests/Hanging-v0", Hanging)
""")
    options = (*gym_env("tests/Hanging-v0"), "env.module=hanging", "env.step_timeout=3", "hydra.run.dir=run")
    done = subprocess.run(
        [sys.executable, "-m", "mbpo_cli", *TINY, *options],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert f"Hanging-v0 hangs: {words} took more than 3 s" in done.stderr
    assert not (tmp_path / "run").exists()
