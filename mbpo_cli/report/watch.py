"""Write a report again and again while its runs go on.

Knows when runs have ended; does not know what the report says.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mbpo_cli.report import groups, runs
from mbpo_cli.report.runs import Run


def watch(
    read: Callable[[], Sequence[Run]], write: Callable[[Sequence[Run]], object], seconds: float
) -> None:
    """Read the runs every `seconds`, and write the report if they have changed.

    Returns when no run is running, twice in a row, as the next job of a sweep takes a moment to start.
    """
    earlier: Sequence[Run] = ()
    had_running = True
    while True:
        now = read()
        if now and now != earlier:
            write(now)
            counts = Counter(run.status for run in now)
            states = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
            print(f"{time.strftime('%H:%M:%S')}  {states}", flush=True)
        has_running = any(run.status == "running" for run in now)
        if not (has_running or had_running):
            return
        earlier, had_running = now, has_running
        time.sleep(seconds)


@contextmanager
def warning_once() -> Iterator[None]:
    """Let each warning about a run pass once, however often it is read."""
    warned: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_known = message in warned
        warned.add(message)
        return not is_known

    loggers = (runs.log, groups.log)
    for logger in loggers:
        logger.addFilter(is_new)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_new)
