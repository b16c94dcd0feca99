"""Ctrl-C as a wish: the run stops at the next step boundary, with its summary written."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopOnInterrupt:
    """Within the `with` block the first Ctrl-C asks to stop; the second interrupts at once."""

    def __init__(self) -> None:
        """Start without a wish to stop."""
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> StopOnInterrupt:
        """Take over SIGINT, which only the main thread may do."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give SIGINT back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, signal_number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
