"""How a run can end early: by an error of a kind that has its own exit code, or by a request to stop."""

from __future__ import annotations

import os
import re
import signal
import sysconfig
import threading
import traceback
from types import FrameType
from typing import Any


class ConfigError(ValueError):
    """The configuration is wrong; the message is one line with the key, the value and the reason."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class RunFailed(RuntimeError):
    """A run ended with an error."""

    exit_code = 1


class EnvironmentFailed(RunFailed):
    """The environment cannot continue, or is not what was said; the message names the step and the reason."""

    exit_code = 3


class Diverged(RunFailed):
    """A training quantity, named in the message, is not finite or impossibly large."""

    exit_code = 4


class NoUsableCheckpoint(RunFailed):
    """The run has made checkpoints, but none can be used; the message gives a reason for each."""

    exit_code = 5


class StorageFailed(RunFailed):
    """The disk is full or broken; the message names the file and the free space."""

    exit_code = 6


class Busy(RunFailed):
    """Another process, named in the message, is using the run directory."""

    exit_code = 75


def one_line(error: object) -> str:
    """Return a message without line breaks and control characters, which a terminal would interpret."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))


# Files in which a user looks for no fault: of this package, of Python, and of what calls environments.
_FOREIGN = re.compile(
    rf"{re.escape(os.path.dirname(__file__))}/|{re.escape(sysconfig.get_path('stdlib'))}/(?!site-packages)|<"
    r"|.*/site-packages/(gymnasium|numpy|torch)/"
)


def place_of(error: BaseException) -> str:
    """Return ` at FILE:LINE in FUNCTION, from ...` for an error in code that a user wrote, else nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _FOREIGN.match(f.filename)]
    places = [f"{os.path.relpath(f.filename)}:{f.lineno} in {f.name}" for f in reversed(frames)]
    return " at " + ", from ".join(places[:3]) if places else ""


class Interrupted(KeyboardInterrupt):
    """A run stopped on request, with its state saved.

    Args:
        received: The signal that requested the stop; None for the time limit or a stop file.

    Attributes:
        exit_code: 130 after Ctrl-C, otherwise 143.
    """

    def __init__(self, received: signal.Signals | None) -> None:
        super().__init__()
        self.exit_code = 130 if received == signal.SIGINT else 143


class Stopped(KeyboardInterrupt):
    """A stop was requested within a step; the part of it that was in progress is undone."""


# Ctrl-C, and what cluster managers and closing terminals send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopOnSignal:
    """Context manager in which a signal requests a stop; a second Ctrl-C raises `KeyboardInterrupt`.

    Attributes:
        received: The latest signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._owner = os.getpid()

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.received is not None

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # only it may install handlers
            handled = set(SIGNALS)
            if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup, to outlive the terminal
                handled.remove(signal.SIGHUP)
            self._previous = {number: signal.signal(number, self._on_signal) for number in handled}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def pass_on(self) -> None:
        """After the block, raise the signal again for the previous handler, which may requeue the job."""
        if self.received is None:
            return
        previous = self._previous.get(self.received)
        if callable(previous) and previous is not signal.default_int_handler:
            signal.raise_signal(self.received)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked child inherits handlers
            return
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


class RaiseOnSignal(StopOnSignal):
    """Context manager in which every signal raises `Interrupted`, for what has no state to save."""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner:
            raise Interrupted(signal.Signals(number))
