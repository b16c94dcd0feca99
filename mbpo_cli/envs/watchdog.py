"""A watchdog for environments that hang, in C or in Python."""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mbpo_cli.failures import EnvironmentFailed

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1

# What the threads of this process wait for: a deadline, and the words for the message.
_calls: dict[int, tuple[float, str]] = {}


@contextmanager
def watching(seconds: float | None, name: str, call: str) -> Iterator[None]:
    """End the process if the `with` block takes too long, and print the stacks of all threads.

    The message has the name of the environment and the call that hangs; None sets no limit.
    """
    if seconds is None:
        yield
        return
    _start_watch(os.getpid())
    thread = threading.get_ident()
    _calls[thread] = (time.monotonic() + seconds, f"{name} hangs: {call} took more than {seconds:g} s")
    try:
        yield
    finally:
        del _calls[thread]


@functools.cache  # a forked process has no thread of its parent's
def _start_watch(process: int) -> None:
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while True:
        time.sleep(POLL_SECONDS)
        for deadline, message in list(_calls.values()):
            if time.monotonic() > deadline:
                log.error("%s", message)
                faulthandler.dump_traceback()
                print(message, file=sys.stderr, flush=True)  # the last line, which a sweep reads
                # Nothing gentler ends a call that never returns. The last checkpoint is on disk.
                os._exit(EnvironmentFailed.exit_code)
