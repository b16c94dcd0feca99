"""Whatever the process of a job does, the other jobs run, and the result names the job and the reason."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.mbpo.jobs import launch
from hydra_plugins.mbpo.launchers import ProcessLauncher
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import RunFailed, StorageFailed
from mbpo_cli.run import run
from mbpo_cli.sweeps.jobs import Job, closing_table
from mbpo_cli.sweeps.lines import EVALUATED, last_logged
from mbpo_cli.sweeps.processes import run_commands
from mbpo_cli.sweeps.view import SweepView
from tests.conftest import TINY
from tests.sweeps.test_jobs import finish, job_in

SILENT = "failed: exit code 0, but no summary"
# What a job's shell does after its directory was made; $GOOD holds the files of a finished run of the job.
SCRIPTS = {
    "cp $GOOD/* .": "done",
    "cp $GOOD/* .; kill -SEGV $$": "done",
    "cp $GOOD/* .; (trap '' HUP TERM; while :; do sleep 0.1; touch ../stays; done) & exit 0": "done",
    "exit 0": SILENT,
    "kill -KILL $$": "failed: killed by SIGKILL",
    "kill -SEGV $$": "failed: killed by SIGSEGV",
    "kill -40 $$": "failed: killed by signal 40",
    "exit 3": "failed: exit code 3",
    "head -c 5000000 /dev/zero | tr '\\0' 'x' >&2; echo >&2; echo why >&2; exit 1": "failed: why",
    "head -c 5000000 /dev/zero | tr '\\0' 'x' >&2; exit 1": "failed: xxx",
    "printf '\\377\\033[2J\\r\\n\\n' >&2; exit 1": "failed: \ufffd?[2J",
    "sed 's/1.5/null/' $GOOD/summary.json > summary.json; cp $GOOD/config.yaml .": (
        "failed: the score in its summary is null"
    ),
    "sed 's/1.5/NaN/' $GOOD/summary.json > summary.json; cp $GOOD/config.yaml .": (
        "failed: the score in its summary is NaN"
    ),
    "sed 's/score/scare/' $GOOD/summary.json > summary.json; cp $GOOD/config.yaml .": (
        "failed: the score in its summary is null"
    ),
    "sed 's/done/interrupted/' $GOOD/summary.json > summary.json; echo by Slurm >&2; exit 143": "interrupted",
    "sed s/done/interrupted/ $GOOD/summary.json > summary.json; echo mbpo-train: interrupted >&2; exit 143": (
        "interrupted"
    ),
    "cp $GOOD/summary.json .": "failed: its summary is of another run",
    "cp $GOOD/* .; sed -i 's/^seed: .*/seed: 77/' config.yaml": "failed: its summary is of another run",
    "mkdir summary.json": SILENT,
    "mkfifo summary.json": SILENT,
    "ln -s $GOOD/summary.json .": SILENT,
    "cp $GOOD/* .; truncate -s 2G summary.json": SILENT,
    "cp $GOOD/* .; rm -r $PWD; exit 4": "failed: exit code 4",
    "rm -r $PWD; touch $PWD": SILENT,
}


class ScriptLauncher(ProcessLauncher):
    """Runs a shell script for each job."""

    def __init__(self, jobs: Sequence[Job], scripts: Sequence[str]) -> None:
        super().__init__(3)
        self.jobs, self.scripts = jobs, scripts

    def job(self, overrides: Sequence[str], number: int) -> Job:
        return self.jobs[number]

    def check_directories(self, jobs: Sequence[Job]) -> None:
        assert jobs == self.jobs

    def _command(self, job: Job) -> list[str]:
        good = job.path.parents[1] / "good" / job.name
        before = f"mkdir -p {job.path}; cd {job.path}; GOOD={good}; "
        return ["sh", "-c", before + self.scripts[self.jobs.index(job)]]


def test_whatever_a_job_does_the_others_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    jobs = [job_in(tmp_path / "sweep" / f"seed={seed}", seed) for seed in range(len(SCRIPTS))]
    for job in jobs:
        finish(Job(job.name, (), tmp_path / "good" / job.name, job.config))
    reasons = launch(ScriptLauncher(jobs, list(SCRIPTS)), jobs)
    time.sleep(0.3)
    (tmp_path / "sweep" / "stays").unlink(missing_ok=True)
    assert len([line for line in caplog.messages if f" of {len(jobs)}: seed=" in line]) == len(jobs)
    assert sum(line.endswith(": interrupted: by Slurm") for line in caplog.messages) == 1
    assert sum(re.search(r": seed=\d+: interrupted$", line) is not None for line in caplog.messages) == 1
    head, *rows = closing_table(jobs, 0, reasons).splitlines()
    assert head == f"3 of {len(jobs)} jobs done"
    named = {row.split()[0]: row.split(maxsplit=1)[1] for row in rows[:-1]}
    for job, (script, expected) in zip(jobs, SCRIPTS.items(), strict=True):
        assert named.get(job.name, "done").startswith(expected), script
    time.sleep(0.3)
    assert not (tmp_path / "sweep" / "stays").exists(), "a process stays behind"


def test_the_failure_of_the_last_attempt_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    jobs = [job_in(tmp_path / "sweep" / f"seed={seed}", seed) for seed in range(3)]
    for job, earlier in zip(jobs, ("failed", "interrupted", "done"), strict=True):
        finish(job, status=earlier, error="of an earlier attempt", env_steps=10)
    # These end before the run has opened its directory, which would remove the summary.
    scripts = ["kill -KILL $$", "exit 0", "echo why >&2; exit 1"]
    expected = ["failed: killed by SIGKILL", SILENT, "failed: why"]
    for _ in range(2):
        caplog.clear()
        reasons = launch(ScriptLauncher(jobs, scripts), jobs)
        ended = sorted(message.split(": ", 1)[1] for message in caplog.messages if " of 3: seed=" in message)
        assert ended == [f"seed={seed}: {text}" for seed, text in enumerate(expected)]
        assert rows_of(jobs, reasons) == expected
    finish(jobs[0], status="failed", error="of an earlier attempt")
    reasons = launch(Returns([returned(JobStatus.FAILED, RunFailed("of this one"))] * 3), jobs)  # type: ignore[arg-type]
    assert rows_of(jobs, reasons) == ["failed: of this one"] * 3


def rows_of(jobs: Sequence[Job], reasons: Mapping[Path, str]) -> list[str]:
    """What the table says of each job without a score."""
    return [row.split(maxsplit=1)[1] for row in closing_table(jobs, 0, reasons).splitlines()[1:-1]]


def test_commands_that_cannot_be_started_affect_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: dict[int, str | None] = {}
    commands = [["sh", "-c", "exit 0"], ["/no/such/program"], ["sh", "x" * 10**7], ["sh", "-c", "exit 5"]]
    run_commands(commands, [{}], ended.__setitem__)
    assert ended.keys() == {0, 1, 2, 3}
    assert (ended[0], ended[3]) == (None, "exit code 5")
    assert str(ended[1]).startswith("it cannot be started: ")
    assert str(ended[2]).startswith("it cannot be started: ")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    run_commands(commands[:1], [{}], ended.__setitem__)
    assert ended[0] == "it cannot be started: [Errno 28] No space left on device"


class Returns:
    """A launcher of others, which returns what it is told to, or raises it."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def returned(status: JobStatus, value: Any = None) -> JobReturn:
    result = JobReturn(status=status)
    result.return_value = value
    return result


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ([returned(JobStatus.COMPLETED, 1.0)] * 2, [SILENT, SILENT]),
        ([returned(JobStatus.FAILED, ValueError("a\nb"))] * 2, ["failed: a b"] * 2),
        ([returned(JobStatus.UNKNOWN)] * 2, [SILENT, SILENT]),
        (SystemExit(0), ["failed: SystemExit: 0", "not finished: SystemExit: 0"]),
        (RuntimeError("lost"), ["failed: RuntimeError: lost", "not finished: RuntimeError: lost"]),
        ([], ["failed: ValueError: zip() ", "not finished: ValueError: zip() "]),
    ],
)
def test_every_launcher_is_judged_by_the_summaries(outcome: Any, expected: list[str], tmp_path: Path) -> None:
    jobs = [job_in(tmp_path / f"seed={seed}", seed) for seed in range(2)]
    jobs[0].path.mkdir()
    reasons = launch(Returns(outcome), jobs)  # type: ignore[arg-type]
    for row, text in zip(rows_of(jobs, reasons), expected, strict=True):
        assert row.startswith(text)


def test_a_launcher_gets_the_directories_of_the_whole_sweep(tmp_path: Path) -> None:
    class Records(Returns):
        def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
            launched.extend(job_overrides)
            return self.outcome

    launched: list[list[str]] = []
    names = ["2", "it's", "a\\", "a\\'b"]  # a user's, by the number of the job among all jobs
    jobs = [replace(job_in(tmp_path / str(number)), name=name) for number, name in enumerate(names)]
    launch(Records([returned(JobStatus.COMPLETED)] * 4), jobs)  # type: ignore[arg-type]
    read = OverridesParser.create().parse_overrides([overrides[-1] for overrides in launched])
    assert [(item.get_key_element(), item.value()) for item in read] == [
        ("hydra.sweep.subdir", name) for name in names
    ]


METRICS = b'{"step": 5, "eval/return_mean": -3.5, "x": 1}\n'
LOGGED = {"step": 5, "eval/return_mean": -3.5, "x": 1, EVALUATED: 5}


@pytest.mark.parametrize(
    ("contents", "logged"),
    [
        (METRICS, LOGGED),
        (METRICS + b'{"step": 7', LOGGED),
        (b'[1]\n5\n"x"\nnull\n[[1, 2]]\n' + METRICS, LOGGED),
        (b'{"step": "7", "eval/return_mean": NaN, "x": [1]}\n', {}),
        (b'{"step": Infinity, "eval/return_mean": null, "x": true}\n', {}),
        (b'{"step": 1' + b"0" * 400 + b"}\n", {}),
        (b"[" * 50_000 + b"\n" + METRICS, LOGGED),
        (b"\xff\xfe\n" + METRICS, LOGGED),
        (os.mkfifo, {}),
        (Path.mkdir, {}),
        (lambda path: path.symlink_to("/dev/zero"), {}),
    ],
)
def test_the_view_shows_what_can_be_shown(contents: Any, logged: dict[str, float], tmp_path: Path) -> None:
    job = replace(job_in(tmp_path / "a"), name="a[/b]")  # which rich would take for markup
    view = SweepView([job, job_in(tmp_path / "b")])
    job.path.mkdir()
    (job.path / "run.lock").touch()
    if isinstance(contents, bytes):
        (job.path / "metrics.jsonl").write_bytes(contents)
    else:
        contents(job.path / "metrics.jsonl")
    assert last_logged(job.path) == logged
    with view.console.capture() as shown:
        view.console.print(*view.get_renderables())
        view.end(0)
        view.console.print(*view.get_renderables())
    assert "a[/b]" in shown.get()
    assert ("evaluation -3.5" in shown.get()) == ("eval/return_mean" in logged)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (SystemExit(0), RunFailed, "SystemExit: 0"),
        (OSError(errno.EFBIG, "File too large"), StorageFailed, r"\[Errno 27\] File too large; .* MB left"),
    ],
)
def test_a_run_leaves_its_reason_even_if_its_summary_cannot_be_written(
    error: BaseException,
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mbpo_cli.run.build_trainer", fail)
    monkeypatch.setattr("mbpo_cli.run.RunDirectory.write_summary", full)
    with pytest.raises(kind, match=message):
        run(make_config(*TINY, "mbpo=off"), tmp_path / "run")
    assert re.fullmatch(rf"mbpo-train: error: {message}\n", capsys.readouterr().err)
