"""A run that is killed at random moments ends with the numbers of one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import Config
from mbpo_cli.run import run
from tests.conftest import TINY, gym_env
from tests.test_resume import KINDS as RESUMED
from tests.test_resume import outcome

# Checkpoints, fits, rollouts and evaluations each take a considerable share of the time.
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
    "through_the_model": (*BUSY, *RESUMED["through_the_model"]),
}


def start(config: Config, path: Path) -> int:
    """Run in a forked child process, which need not import anything; return its id."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            run(config, path)
            status = 0
        os._exit(status)
    return child


def kill_until_done(config: Config, path: Path, seconds: float, chance: random.Random) -> int:
    """Kill a run at random moments until it finishes; return the number of kills."""
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
        seconds *= 1.1  # so that it finishes even if the machine becomes slower


@pytest.mark.parametrize(
    ("kind", "num_kills"),
    [("dqn", 1), *(pytest.param(kind, 100, marks=pytest.mark.slow) for kind in KINDS)],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(kind: str, num_kills: int, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_a_signal_ends_a_run_within_two_seconds_without_losing_a_step(tmp_path: Path) -> None:
    """Send 100 signals at random moments of the default run."""
    config = make_config("trainer.num_env_steps=1_000")
    chance, number = random.Random(0), 0
    answers: list[float] = []
    while len(answers) < 100:
        path = tmp_path / f"run{number}"
        child = start(config, path)
        time.sleep(1 + chance.uniform(0, 3))
        begin = time.monotonic()
        os.kill(child, chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]))
        os.waitpid(child, 0)
        answers.append(time.monotonic() - begin)
        summary = json.loads((path / "summary.json").read_text())
        newest = max(int(step.name) for step in (path / "checkpoints").iterdir())
        assert newest == summary["env_steps"]
        if summary["status"] == "done":
            number += 1
    print(f"median {statistics.median(answers):.2f} s, longest {max(answers):.2f} s")
    assert max(answers) < 2


@pytest.mark.slow
@pytest.mark.parametrize("mbpo", ["on", "off"])
def test_memory_open_files_and_threads_do_not_grow(mbpo: str, tmp_path: Path) -> None:
    """Compare step 5,000 with step 50,000, with full buffers."""
    options = (
        *TINY,
        f"mbpo={mbpo}",
        "mbpo.generate_every=100",
        "agent.experience_buffer_length=4000",
        "mbpo.model_experience_buffer_length=1000",
        "trainer.num_env_steps=50_000",
        "trainer.evaluate_every_steps=5_000",
        "trainer.log_every_steps=50",
    )
    child = start(make_config(*options), tmp_path / "run")
    seen: dict[int, tuple[float, int, int]] = {}
    while not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.2)
        steps = [int(p.name) for p in (tmp_path / "run" / "checkpoints").glob("0*")]
        with contextlib.suppress(FileNotFoundError, ValueError):  # the process has just ended
            process = Path("/proc") / str(child)
            status = (process / "status").read_text().split()
            now = (
                int(status[status.index("VmRSS:") + 1]) / 1024,
                len(list((process / "fd").iterdir())),
                int(status[status.index("Threads:") + 1]),
            )
            seen[max(steps, default=0)] = now
    first, last = seen[5_000], seen[max(step for step in seen if step < 50_000)]
    growth = (last[0] - first[0]) / 4.4
    print(f"{growth:.2f} MB per 10,000 steps, files {first[1]} -> {last[1]}, threads {first[2]} -> {last[2]}")
    assert growth < 1
    assert last[1:] == first[1:]
