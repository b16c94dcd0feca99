"""A run that is killed at any moment, again and again, ends with the numbers of one that was not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from mbpo_cli.compose import make_config
from mbpo_cli.config import Config
from mbpo_cli.run import run
from tests.conftest import TINY, gym_env
from tests.test_resume import outcome

# Checkpoints, fits, rollouts and evaluations take about as long as everything else.
BUSY = (
    *TINY,
    "mbpo.generate_every=10",
    "mbpo.num_epoch_for_training_model=3",
    "mbpo.model_rollout_options.num_rollout=3000",
    "trainer.num_env_steps=150",
    "trainer.evaluate_every_steps=20",
    "checkpoint.every_steps=3",
)
KINDS = {
    "sac": BUSY,
    "dqn": (*BUSY, "agent=dqn", *gym_env("tests/DiscretePointMass-v0"), "model/reward=deterministic"),
}


def start(config: Config, path: Path) -> int:
    """Run in a child process, which has all modules already; return its id."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            run(config, path)
            status = 0
        os._exit(status)
    return child


def kill_until_done(config: Config, path: Path, seconds: float, chance: random.Random) -> int:
    """Kill a run at random moments until it gets through; return how often."""
    kills = 0
    while True:
        child = start(config, path)
        deadline = time.monotonic() + chance.uniform(0, seconds)
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert status == 0, (path / "summary.json").read_text()
                return kills
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1


@pytest.mark.parametrize("num_kills", [3, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_runs_end_like_those_that_were_not(kind: str, num_kills: int, tmp_path: Path) -> None:
    config = make_config(*KINDS[kind])
    begin = time.monotonic()
    assert os.waitpid(start(config, tmp_path / "whole"), 0)[1] == 0
    seconds = time.monotonic() - begin
    expected = outcome(tmp_path / "whole")
    chance, kills, number = random.Random(0), 0, 0
    while kills < num_kills:
        path = tmp_path / f"killed{number}"
        kills += kill_until_done(config, path, 0.5 * seconds, chance)
        number += 1
        assert outcome(path) == expected
