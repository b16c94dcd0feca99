"""A run that fails ends with a one-line reason, an exit code for its kind, and its last checkpoint."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from mbpo_cli.agents.sac import SAC
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import RunFailed
from mbpo_cli.logs.tensorboard import TensorBoardEvents
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.regression import Regression
from mbpo_cli.run import run
from mbpo_cli.storage.checkpoint import Checkpoints
from mbpo_cli.types import Transitions
from tests.conftest import TINY, gym_env

GOOD: tuple[Any, ...] = (np.zeros(2, np.float32), 1.0, False, False, {})
NAN, INF = float("nan"), float("inf")


class Misbehaving(gym.Env[Any, Any]):
    """Behaves well for 17 steps, then does what the test sets."""

    misbehave: Callable[[], Any]

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return GOOD[0], {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return type(self).misbehave() if self.steps == 18 else GOOD


gym.register("tests/Misbehaving-v0", "tests.test_failures:Misbehaving", max_episode_steps=50)


def raising(error: BaseException) -> Callable[[], Any]:
    def misbehave() -> Any:
        raise error

    return misbehave


def returning(**changes: Any) -> Callable[[], Any]:
    obs, reward, terminated, truncated, info = GOOD
    values = {"obs": obs, "reward": reward, "terminated": terminated, "truncated": truncated, **changes}
    return lambda: (*values.values(), info)


MISBEHAVIOUR = {
    "nan_observation": (returning(obs=np.array([0, NAN])), "the observation is not finite"),
    "infinite_observation": (returning(obs=np.array([INF, 0])), "the observation is not finite"),
    "huge_observation": (returning(obs=np.array([1e300, 0])), "the observation is not finite"),
    "short_observation": (returning(obs=np.zeros(1)), "has shape (1,), but its space (2,)"),
    "deep_observation": (returning(obs=np.zeros((2, 1))), "has shape (2, 1), but its space (2,)"),
    "scalar_observation": (returning(obs=0.0), "has shape (), but its space (2,)"),
    "no_observation": (returning(obs=None), "has shape (), but its space (2,)"),
    "text_observation": (returning(obs=np.array(["a", "b"])), "could not convert string"),
    "dict_observation": (returning(obs={"x": 1}), "has shape (), but its space (2,)"),
    "nan_reward": (returning(reward=NAN), "the reward is nan"),
    "infinite_reward": (returning(reward=-INF), "the reward is -inf"),
    "no_reward": (returning(reward=None), "the reward is None, not a number"),
    "many_rewards": (returning(reward=np.ones(2)), "the reward is array([1., 1.]), not a number"),
    "text_reward": (returning(reward="1"), "the reward is '1', not a number"),
    "no_end": (returning(terminated=None), "the end of the episode is None"),
    "many_ends": (returning(truncated=np.zeros(2, bool)), "the end of the episode is array"),
    "old_api": (lambda: GOOD[:4], "expected 5, got 4"),
    "nothing": (lambda: None, "TypeError"),
    "raises": (raising(ZeroDivisionError("division by zero")), "ZeroDivisionError: division by zero"),
    "exits": (raising(SystemExit(3)), "SystemExit: 3"),
    "several_lines": (raising(RuntimeError("one\ntwo")), "RuntimeError: one two"),
    "control_characters": (raising(RuntimeError("\x1b[31mred\x07")), "RuntimeError: ?[31mred?"),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_a_misbehaving_environment_is_named_and_the_run_can_be_resumed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave, words = MISBEHAVIOUR[name]
    monkeypatch.setattr(Misbehaving, "misbehave", staticmethod(misbehave), raising=False)
    options = (*TINY, *gym_env("tests/Misbehaving-v0"), "checkpoint.every_steps=5", "mbpo=off")
    config = make_config(*options, "trainer.num_env_steps=25", "trainer.evaluate_every_steps=25")
    with pytest.raises(RunFailed) as error:
        run(config, tmp_path)
    assert error.value.exit_code == 3
    line = str(error.value)
    assert line.startswith("tests/Misbehaving-v0, step 18 of the episode: ")
    assert words in line
    assert "\n" not in line
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["error"], summary["exit_code"]) == (line, 3)
    # Once the environment is fixed, the run resumes.
    monkeypatch.setattr(Misbehaving, "misbehave", staticmethod(lambda: GOOD))
    assert math.isfinite(run(config, tmp_path))


def poisoned(function: Callable[..., Any], poison: Callable[[Any], Any], calls: int) -> Callable[..., Any]:
    """Return a function whose result is replaced by `poison` from call number `calls` on."""
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        result = function(*args, **kwargs)
        return poison(result) if count >= calls else result

    return call


def metric(tag: str, value: float) -> Callable[[Any], Any]:
    return lambda metrics: {**metrics, tag: torch.tensor(value)}


def field(name: str, value: float) -> Callable[[Any], Any]:
    def poison(transitions: Transitions) -> Transitions:
        getattr(transitions, name)[0] = value
        return transitions

    return poison


def loss(value: float) -> Callable[[Any], Any]:
    return lambda losses: (losses[0] * value, losses[1])


NUMBERS = [
    *[
        (SAC, "_step", metric(f"agent/{tag}", value), f"agent/{tag} is {value}")
        for tag in ("critic_loss", "actor_loss", "q_value", "entropy", "entropy_weight")
        for value in (NAN, INF, -INF)
    ],
    *[(SAC, "_step", metric("agent/q_value", value), "but no return exceeds") for value in (1e9, -1e9, 1e30)],
    *[
        (EnvironmentModel, "step", field(name, value), f"{name} is not finite in a rollout")
        for name in ("next_obs", "reward", "terminated")
        for value in (NAN, INF, -INF)
    ],
    *[(Regression, "losses", loss(value), "a loss of the model is not finite") for value in (NAN, INF, -INF)],
]


@pytest.mark.parametrize("calls", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case", NUMBERS, ids=[f"{kind.__name__}-{number}" for number, (kind, *_) in enumerate(NUMBERS)]
)
def test_an_impossible_number_ends_the_run_as_diverged(
    case: tuple[Any, ...], calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, method, poison, words = case
    monkeypatch.setattr(kind, method, poisoned(getattr(kind, method), poison, calls))
    options = (
        "trainer.num_env_steps=30",
        "trainer.evaluate_every_steps=30",
        "model/reward=gaussian",
        "mbpo.model_rollout_options.max_departure=null",
    )
    with pytest.raises(RunFailed, match=re.escape(words)) as error:
        run(make_config(*TINY, "mbpo.generate_every=5", *options), tmp_path)
    assert error.value.exit_code == 4
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert steps, "there is an earlier checkpoint"
    for path in (tmp_path / "checkpoints").glob("*/state.json"):
        assert "NaN" not in path.read_text()


def test_a_full_disk_ends_the_run_which_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Checkpoints.save

    def save(self: Checkpoints, step: int, *args: Any, **kwargs: Any) -> None:
        if step > 5:
            raise OSError(28, "No space left on device", str(tmp_path / "checkpoints"))
        saved(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(RunFailed, match=r"No space left on device: .*; .* has [\d,.]+ MB left") as error:
        run(make_config(*TINY, "checkpoint.every_steps=5"), tmp_path)
    assert error.value.exit_code == 6
    monkeypatch.undo()
    assert math.isfinite(run(make_config(*TINY, "checkpoint.every_steps=5"), tmp_path))


@pytest.mark.parametrize("method", ["write", "commit", "close"])
def test_an_unwritable_event_file_ends_the_run_only_if_required(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    works = getattr(TensorBoardEvents, method)
    calls = itertools.count()

    def fails(self: TensorBoardEvents, *args: Any) -> Any:
        if method == "close" or next(calls) < 2:
            done = works(self, *args)
            if method != "close":
                return done
        raise OSError(5, "Input/output error", str(self.path))

    brief = ("checkpoint.every_steps=5", "trainer.log_every_steps=2")
    run(make_config(*TINY, *brief), tmp_path / "whole")
    monkeypatch.setattr(TensorBoardEvents, method, fails)
    with pytest.raises(RunFailed, match="Input/output error") as error:
        run(make_config(*TINY, *brief), tmp_path / "required")
    assert error.value.exit_code == 6
    caplog.clear()
    calls = itertools.count()
    run(make_config(*TINY, *brief, "trainer.events_required=false"), tmp_path / "not_required")
    assert caplog.text.count("the run continues without one of its log files: [Errno 5]") == 1
    assert steps_of(tmp_path / "not_required") == steps_of(tmp_path / "whole")


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", ["time.sleep(60)", "L.acquire(); L.acquire()"])
def test_a_hanging_environment_is_reported_with_its_stack(how: str, tmp_path: Path) -> None:
    program = f"""
import gymnasium as gym, threading, time
from mbpo_cli.envs.environment import Environment
L = threading.Lock()
class Hanging(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,)); action_space = gym.spaces.Box(-1, 1, (1,))
    def reset(self, seed=None, options=None): return self.observation_space.sample(), {{}}
    def step(self, action): {how}
env = Environment(Hanging(), step_timeout=0.5)
env.reset(0)
import torch
env.step(torch.zeros(1))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "Hanging hangs: a step took more than 0.5 s" in done.stderr
    assert "in step" in done.stderr
