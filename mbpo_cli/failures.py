"""How a run may end before its time: signals that ask it to stop, what is raised, and exit codes."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class ConfigError(ValueError):
    """A configuration is wrong; the message is one line that names key, value and what would be right."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        """Say what is wrong."""
        super().__init__(one_line(message))


class RunFailed(RuntimeError):
    """A run ended with an error."""

    exit_code = 1


class EnvironmentFailed(RunFailed):
    """An environment cannot go on; the message names it, the step and the reason."""

    exit_code = 3


class Diverged(RunFailed):
    """A number of the training is not finite, or far beyond what it can be; the message names it."""

    exit_code = 4


class NoUsableCheckpoint(RunFailed):
    """There are checkpoints, or were, and none can be used; the message says what is wrong with each."""

    exit_code = 5


class StorageFailed(RunFailed):
    """The disk is full or broken; the message names the file and the free space."""

    exit_code = 6


class Busy(RunFailed):
    """Another process works in the run directory; the message says which."""

    exit_code = 75


class Interrupted(KeyboardInterrupt):
    """A run was told to stop, and has kept its state.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after any other signal or the time limit.
    """

    def __init__(self, by_keyboard: bool) -> None:
        """Tell Ctrl-C from all else."""
        super().__init__()
        self.exit_code = 130 if by_keyboard else 143


def one_line(error: object) -> str:
    """Return a message without line breaks, or whatever else a terminal would not print but obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))


# Ctrl-C, and what cluster managers and closing terminals send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopOnSignal:
    """Within the `with` block a signal asks to stop; a second Ctrl-C interrupts at once.

    Attributes:
        received: The last signal, or None.
    """

    def __init__(self) -> None:
        """Start without a wish to stop."""
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._owner = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether there was a signal."""
        return self.received is not None

    def __enter__(self) -> StopOnSignal:
        """Take over the signals, which only the main thread may do."""
        if threading.current_thread() is threading.main_thread():
            heeded = set(SIGNALS)
            if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup, to outlive the terminal
                heeded.remove(signal.SIGHUP)
            self._previous = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def hand_on(self) -> None:
        """After the block, hand the signal on to whoever handled it before: it may queue the job again."""
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
