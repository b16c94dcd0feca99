"""What a person sees of a sweep: rows on a terminal, and otherwise a line for each event."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mbpo_cli.sweeps.jobs import Job
from mbpo_cli.sweeps.lines import SweepLines
from mbpo_cli.sweeps.view import SweepView, shortened
from tests.sweeps.test_sweeps import COMMAND, FRAGILE, job_in, numbers, sweep
from tests.terminal import shown_on_terminal, without_colors


def write(job: Job, *rows: Mapping[str, Any]) -> None:
    """Write metrics as a job that has started does."""
    job.path.mkdir(exist_ok=True)
    (job.path / "run.lock").write_text("process 1")
    with (job.path / "metrics.jsonl").open("a") as metrics:
        metrics.write("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_has_the_step_the_evaluation_the_time_left_and_the_end_of_the_name(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name = "agent=sac,env=cartpole_continuous,mbpo.model_rollout_options.horizon=10,seed=3"
    job = replace(job_in(tmp_path / "a", "trainer.num_env_steps=125_000"), name=name)
    view = SweepView([job])
    write(job, {"step": 12_000, "eval/return_mean": -1234.5})
    console = Console(width=width)
    with console.capture() as shown:
        console.print(*view.get_renderables())
    _, row = shown.get().splitlines()
    assert re.match(r"agent.*seed=3 +\S+ +12,000/125,000 evaluation -1234\.5 0:00:00 -:--:-- left", row), row


def test_a_long_name_keeps_its_end() -> None:
    assert shortened("agent=sac,seed=3", 16) == "agent=sac,seed=3"
    assert shortened("agent=sac,seed=3", 12) == "agen…,seed=3"


def test_each_event_has_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    new, resumed, later = (job_in(tmp_path / name, "trainer.num_env_steps=5000") for name in ("a", "b", "c"))
    write(resumed, {"step": 50, "eval/return_mean": 1.0})
    (resumed.path / "run.lock").unlink()
    lines = SweepLines([new, resumed, later], seconds=60.0)

    def look(*rows: Mapping[str, Any]) -> list[str]:
        if rows:
            write(new, *rows)
        caplog.clear()
        lines.look()
        return caplog.messages

    assert look() == []
    assert look({"step": 1}) == ["a: started"]
    write(resumed)
    assert look({"step": 1000, "eval/return_mean": -2.5}, {"step": 1001}) == [
        "a: evaluation -2.5 at step 1,000 of 5,000",
        "b: started",
    ]
    now = 59.0
    assert look({"step": 2000, "eval/return_mean": -2.5}) == []
    now = 61.0
    assert look() == ["a: evaluation -2.5 at step 2,000 of 5,000"]
    now = 200.0
    assert look() == []
    lines.end(0)
    write(resumed, {"step": 100, "eval/return_mean": 4.0})
    assert look({"step": 3000, "eval/return_mean": 0.0}) == ["b: evaluation 4.0 at step 100 of 5,000"]


@pytest.mark.slow
def test_a_sweep_without_a_terminal_logs_starts_and_ends_in_order(tmp_path: Path) -> None:
    done = sweep(tmp_path, numbers(0, 1), "hydra.launcher.n_jobs=1", environment={"FRAGILE": "1"})
    assert done.returncode == 1, done.stderr
    names = [f"env.kwargs=_number_{number}" for number in (0, 1)]
    events = [line for line in done.stdout.splitlines() if line.endswith("started") or " of 2: " in line]
    assert events[0] == f"{names[0]}: started"
    assert events[1].startswith(f"1 of 2: {names[0]}: score ")
    assert events[2] == f"{names[1]}: started"
    assert events[3].startswith(f"2 of 2: {names[1]}: failed: ")
    assert "RuntimeError: fragile at " in events[3]
    assert len(events) == 4
    assert "\x1b" not in done.stdout + done.stderr


def test_a_sweep_on_a_terminal_shows_a_row_for_each_running_job(tmp_path: Path) -> None:
    arguments = (*FRAGILE, numbers(0, 1), "hydra.launcher.n_jobs=1", "hydra.sweep.dir=sweep")
    python_path = str(Path(__file__).parents[2])
    code, text = shown_on_terminal([*COMMAND, "-m", *arguments], tmp_path, PYTHONPATH=python_path)
    assert code == 0, text
    shown = without_colors(text)
    for number in (0, 1):
        row = rf"env\.kwargs=_number_{number} +[━╸╺ ]+ \d+/20 +(evaluation -\d+\.\d)? +0:00:\d\d"
        assert re.search(row, shown), shown
    assert "1 of 2 jobs ended" in shown
    assert re.search(r"^2 of 2: env\.kwargs=_number_1: score ", shown.replace("\r", "\n"), flags=re.MULTILINE)
    assert "started" not in shown
