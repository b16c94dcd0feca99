"""Live view of a sweep on a terminal: one row per running job, from what the job has written.

Knows run directories; does not know what runs the jobs, or where.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.progress import TaskID

from mbpo_cli.logs.terminal import LiveRows
from mbpo_cli.storage.records import EVALUATION, LOCK, METRICS
from mbpo_cli.sweeps.jobs import Job, is_file, is_number

MAX_END = 65_536  # bytes of a job's metrics that are read, from their end


@dataclass
class _Row:
    job: Job
    task: TaskID
    lock_time: float  # before the job started, which then writes its name into the lock file
    has_ended: bool = False


class SweepView(LiveRows):
    """Shows the step, the last evaluation and the time left of jobs as soon as they run, and of all."""

    _rows: Sequence[_Row] = ()

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(transient=True)
        steps = [job.config.trainer.num_env_steps for job in jobs]
        self._all = self.add_task("", total=sum(steps), note="")
        self._rows = [
            _Row(
                job,
                self.add_task(escape(job.name), False, total, visible=False, note=""),
                _lock_time(job.path),
            )
            for job, total in zip(jobs, steps, strict=True)
        ]

    def end(self, index: int) -> None:
        """Remove the row of a job that has ended."""
        self._rows[index].has_ended = True

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is drawn, after a look at the jobs' directories."""
        for row in self._rows:
            self._update(row)
        if self._rows:
            text = f"{sum(row.has_ended for row in self._rows)} of {len(self._rows)} jobs ended"
            steps = sum(self._tasks[row.task].completed for row in self._rows)
            self.update(self._all, description=text, completed=steps)
        return super().get_renderables()

    def _update(self, row: _Row) -> None:
        task = self._tasks[row.task]
        if row.has_ended:
            self.update(row.task, visible=False, completed=task.total)
        elif task.started or _lock_time(row.job.path) != row.lock_time:
            self.start_task(row.task)
            logged = last_logged(row.job.path)
            note = f"evaluation {logged[EVALUATION]:.1f}" if EVALUATION in logged else task.fields["note"]
            self.update(row.task, visible=True, completed=logged.get("step", 0), note=note)


def last_logged(path: Path) -> dict[str, float]:
    """Return the last value of each tag near the end of the metrics in a run directory, and the step."""
    values: dict[str, Any] = {}
    with suppress(OSError):
        if not is_file(path / METRICS):
            return {}
        with (path / METRICS).open("rb") as file:
            # The metrics may be many megabytes: only the end is read.
            file.seek(max(file.seek(0, os.SEEK_END) - MAX_END, 0))
            for line in file.read(MAX_END).split(b"\n"):
                # Half a line, where reading starts or of a job that is writing, or one of another program.
                with suppress(ValueError, AttributeError, RecursionError):
                    values.update(json.loads(line).items())
    return {tag: value for tag, value in values.items() if is_number(value)}


def _lock_time(path: Path) -> float:
    with suppress(OSError):
        return (path / LOCK).lstat().st_mtime
    return 0.0
