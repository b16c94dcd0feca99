"""A report that is watched follows its runs, and ends with them."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mbpo_cli.report.runs import Run
from mbpo_cli.report.watch import watch
from tests.report.test_report import failure, run_in, write_run


@pytest.fixture
def known(tmp_path: Path) -> Run:
    return run_in(write_run(tmp_path / "known", (1.0,)))


def test_what_has_changed_is_written_until_no_run_is_running_twice_in_a_row(
    known: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, later = replace(known, status="running"), replace(known, status="running", env_steps=7)
    looks: list[Sequence[Run]] = [
        [],  # the directory of the first job is there, but not its files
        [running],
        [running],
        [later],
        [known],
        [known, running],  # the next job has started
        [known, known],
        [known, known],
        [later],  # too late
    ]
    left = iter(looks)
    slept: list[float] = []
    written: list[Sequence[Run]] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    watch(lambda: next(left), written.append, 5.0)
    assert written == [[running], [later], [known], [known, running], [known, known]]
    assert list(left) == [[later]]
    assert slept == [5.0] * 7
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines] == [
        "1 running",
        "1 running",
        "1 done",
        "1 done, 1 running",
        "2 done",
    ]


class Watching:
    """The command, watching a run that holds its lock, as another process sees it."""

    def __init__(self, folder: Path) -> None:
        self.run = write_run(folder / "run", (1.0,), status=None)
        self.lock = (self.run / "run.lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        broken = write_run(folder / "broken", (1.0,), status="done", agent__name="td3")
        (broken / "metrics.jsonl").write_text("eval/return_mean\n")
        self.page = folder / "out" / "index.html"
        command = [
            sys.executable,
            "-m",
            "mbpo_cli.commands.report",
            str(folder),
            "--output",
            str(folder / "out"),
        ]
        self.process = subprocess.Popen(
            [*command, "--watch", "--every", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell without job control ignores Ctrl-C in what it starts in the background, such as tests.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.wait_for("running")

    def wait_for(self, text: str) -> None:
        """Wait until the page has a text."""
        while not (self.page.exists() and text in self.page.read_text()):
            assert self.process.poll() is None
            time.sleep(0.05)


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    made = Watching(tmp_path)
    yield made
    made.lock.close()
    made.process.kill()
    made.process.communicate()


def test_the_page_loads_itself_again_until_the_runs_have_ended(watching: Watching) -> None:
    refresh = '<meta http-equiv="refresh" content="1">'
    assert refresh in watching.page.read_text()
    with (watching.run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 987, "eval/return_mean": 2.0}) + "\n")
    watching.wait_for(">987<")
    (watching.run / "summary.json").write_text(json.dumps({"status": "done", "score": 2.5}))
    watching.lock.close()
    printed, warnings = watching.process.communicate(timeout=60)
    assert watching.process.returncode == 0
    assert refresh not in watching.page.read_text()
    first, *lines = printed.splitlines()
    assert first.endswith("index.html: written every 1 s while runs go on; Ctrl-C ends it")
    assert re.fullmatch(r"\d\d:\d\d:\d\d  1 done, 1 running", lines[0])
    assert lines[-1] == f"written to {watching.page}"
    assert warnings.count("skipped 1 lines") == 1


def test_ctrl_c_ends_it_with_a_page_that_stays_as_it_is(watching: Watching) -> None:
    watching.process.send_signal(signal.SIGINT)
    printed, errors = watching.process.communicate(timeout=60)
    assert watching.process.returncode == 130
    assert errors.splitlines()[-1] == "mbpo-report: interrupted"
    assert printed.splitlines()[-1] == f"written to {watching.page}"
    assert "refresh" not in watching.page.read_text()
    assert "running" in watching.page.read_text()


def test_the_interval_is_for_watching(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", (1.0,))
    line = failure(capsys, run, "--every", "5", "--output", tmp_path / "out")
    assert line == "mbpo-report: error: --every 5: only with --watch"
    assert not (tmp_path / "out").exists()
