"""Live view of a sweep on a terminal: one row per running job, from what the job has written.

Knows run directories; does not know what runs the jobs, or where.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.markup import escape
from rich.progress import TaskID

from mbpo_cli.logs.terminal import LiveRows
from mbpo_cli.storage.records import EVALUATION
from mbpo_cli.sweeps.jobs import Job
from mbpo_cli.sweeps.lines import last_logged, lock_time

# Columns of a bar, an evaluation, two times and the gaps between them.
REST = len("████████  evaluation -1234.5 0:00:00 0:00:00 left")


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
        room = max(self.console.width - REST - 2 * len(f"{sum(steps):,}/"), 12)
        self._all = self.add_task("", total=sum(steps), note="")
        self._rows = [
            _Row(
                job,
                self.add_task(escape(shortened(job.name, room)), False, total, visible=False, note=""),
                lock_time(job.path),
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
        elif task.started or lock_time(row.job.path) != row.lock_time:
            self.start_task(row.task)
            logged = last_logged(row.job.path)
            note = f"evaluation {logged[EVALUATION]:.1f}" if EVALUATION in logged else task.fields["note"]
            self.update(row.task, visible=True, completed=logged.get("step", 0), note=note)


def shortened(name: str, length: int) -> str:
    """Return a name of at most so many characters; its end, which tells jobs apart, is kept."""
    return name if len(name) <= length else f"{name[: length // 3]}…{name[length // 3 + 1 - length :]}"
