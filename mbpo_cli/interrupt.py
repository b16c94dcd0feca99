"""Signals as wishes: the run stops at the next step boundary, with its state kept."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

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
