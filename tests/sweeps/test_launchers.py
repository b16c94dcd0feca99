"""What all launchers share. The tests in tests/cluster/ need a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hydra_plugins.mbpo.clusters import wait_for
from hydra_plugins.mbpo.sweepers import MODULES
from mbpo_cli.failures import Interrupted
from mbpo_cli.sweeps.processes import run_command


@dataclass
class Countdown:
    """A job that ends after it was polled `polls` times, or when it is stopped."""

    polls: int
    reason: str | None = None
    stops: int = 0
    broken: str = ""  # the name of a method that raises an error

    def has_ended(self) -> bool:
        self.polls -= 1
        self._fail_in("has_ended")
        return self.polls <= 0

    def failure(self) -> str | None:
        self._fail_in("failure")
        return self.reason

    def stop(self) -> None:
        self.stops += 1
        self.polls = 0
        self._fail_in("stop")

    def _fail_in(self, method: str) -> None:
        if method == self.broken:
            raise EOFError("no\nresult")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    # If Hydra finds the plugins itself, the module is not an attribute of its package.
    monkeypatch.setattr(sys.modules["hydra_plugins.mbpo.clusters"], "POLL_SECONDS", 0.001)


WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from mbpo_cli.commands.train import main
main()
"""


@pytest.mark.parametrize("choice", MODULES)
def test_a_missing_extra_is_named(choice: str, tmp_path: Path) -> None:
    # In a separate process, whose streams are not captured by pytest.
    command = [sys.executable, "-c", WITHOUT, MODULES[choice], "-m", "seed=0,1", f"hydra/launcher={choice}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    expected = f"mbpo-train: error: hydra/launcher={choice}: needs pip install 'mbpo-cli[{choice}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert list(tmp_path.iterdir()) == []


def test_jobs_are_reported_when_they_end() -> None:
    ended: list[tuple[int, str | None]] = []
    jobs = [Countdown(3), Countdown(1, "lost"), Countdown(2)]
    wait_for(jobs, lambda index, reason: ended.append((index, reason)))
    assert ended == [(1, "lost"), (2, None), (0, None)]


def test_a_job_whose_state_cannot_be_read_has_failed_and_the_others_are_waited_for() -> None:
    ended: list[tuple[int, str | None]] = []
    jobs = [Countdown(3), Countdown(9, broken="has_ended"), Countdown(2, broken="failure")]
    wait_for(jobs, lambda index, reason: ended.append((index, reason)))
    assert ended == [(1, "EOFError: no result"), (2, "EOFError: no result"), (0, None)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_jobs_that_have_not_ended(number: signal.Signals, code: int) -> None:
    jobs = [Countdown(1), Countdown(10**9, broken="stop"), Countdown(10**9)]
    ended: list[int] = []

    def on_end(index: int, reason: str | None) -> None:
        ended.append(index)
        if index == 0:
            signal.raise_signal(number)

    with pytest.raises(Interrupted) as caught:
        wait_for(jobs, on_end)
    assert caught.value.exit_code == code
    assert sorted(ended) == [0, 1, 2]
    assert [job.stops for job in jobs] == [0, 1, 1]


def test_a_command_runs_in_a_folder_with_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())  # restored at the end of the test
    assert run_command(str(tmp_path), ["sh", "-c", 'echo "$WORD" > here'], {"WORD": "one"}) is None
    assert (tmp_path / "here").read_text() == "one\n"
    assert run_command(str(tmp_path), ["sh", "-c", "echo gone >&2; exit 3"], {}) == "gone"


def test_the_command_ends_before_the_signal_is_raised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path.cwd())
    kept: list[bool] = []
    previous = signal.signal(signal.SIGUSR2, lambda *_: kept.append((tmp_path / "kept").exists()))
    # The command sends the signal to this process, receives it in turn, and ends slowly.
    script = (
        f"trap 'sleep 0.3; touch kept; exit 0' USR2; kill -USR2 {os.getpid()}; while :; do sleep 0.1; done"
    )
    try:
        with pytest.raises(Interrupted):
            run_command(str(tmp_path), ["bash", "-c", script], {})
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert kept == [True]
