"""A watchdog for environments that hang, in C or in Python."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mbpo_cli.failures import EnvironmentFailed

log = logging.getLogger(__name__)


class Watchdog:
    """Ends the process if a watched call takes too long, and prints the stacks of all threads."""

    def __init__(self, seconds: float, name: str) -> None:
        self._seconds, self._name = seconds, name
        self._deadline: float | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the `with` block."""
        self._deadline = time.monotonic() + self._seconds
        try:
            yield
        finally:
            self._deadline = None

    def _watch(self) -> None:
        while True:
            time.sleep(min(self._seconds / 10, 1.0))
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                log.error("%s hangs: a step took more than %g s", self._name, self._seconds)
                faulthandler.dump_traceback()
                # Nothing gentler ends a call that never returns. The last checkpoint is on disk.
                os._exit(EnvironmentFailed.exit_code)
