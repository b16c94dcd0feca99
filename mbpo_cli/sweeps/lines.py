"""What running jobs have written; without a terminal, a line in the log for each start and evaluation.

Knows run directories; does not know what runs the jobs, or where. Does not import rich.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbpo_cli.storage.records import EVALUATION, LOCK, METRICS
from mbpo_cli.sweeps.jobs import Job, is_file, is_number

log = logging.getLogger(__name__)

MAX_END = 65_536  # bytes of a job's metrics that are read, from their end
LOOK_SECONDS = 1.0
EVALUATED = "evaluated at step"  # beside the tags in what was last logged


@dataclass
class _Seen:
    job: Job
    lock_time: float  # before the job started, which then writes its name into the lock file
    evaluated: float  # the last step whose evaluation is logged, or was made by an earlier attempt
    has_started: bool = False
    has_ended: bool = False
    next_time: float = 0.0


class SweepLines(AbstractContextManager["SweepLines"]):
    """Logs the start of each job and its evaluations, those of a job at least `seconds` apart.

    What launches the jobs logs how they end.
    """

    def __init__(self, jobs: Sequence[Job], seconds: float = 60.0) -> None:
        self._seen = [
            _Seen(job, lock_time(job.path), last_logged(job.path).get(EVALUATED, -1.0)) for job in jobs
        ]
        self._seconds = seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SweepLines:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()

    def end(self, index: int) -> None:
        """Log no more lines of a job, which has ended."""
        self._seen[index].has_ended = True

    def look(self) -> None:
        """Log what is new in the jobs' directories."""
        for seen in self._seen:
            job = seen.job
            if seen.has_ended:
                continue
            if not seen.has_started:
                if lock_time(job.path) == seen.lock_time:
                    continue
                seen.has_started = True
                log.info("%s: started", job.name)
            if (now := time.monotonic()) < seen.next_time:
                continue
            logged = last_logged(job.path)
            if EVALUATION in logged and (step := logged.get(EVALUATED, -1.0)) > seen.evaluated:
                seen.evaluated, seen.next_time = step, now + self._seconds
                place = f"step {step:,.0f} of {job.config.trainer.num_env_steps:,}"
                log.info("%s: evaluation %.1f at %s", job.name, logged[EVALUATION], place)

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            self.look()


def last_logged(path: Path) -> dict[str, float]:
    """Return the last value of each tag near the end of the metrics in a run directory, and its steps."""
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
                    row = json.loads(line)
                    values.update(row.items())
                    if EVALUATION in row:
                        values[EVALUATED] = row.get("step")
    return {tag: value for tag, value in values.items() if is_number(value)}


def lock_time(path: Path) -> float:
    """Return when a run's lock file was last written, or 0 if there is none."""
    with suppress(OSError):
        return (path / LOCK).lstat().st_mtime
    return 0.0
