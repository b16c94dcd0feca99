"""Wall-clock time: by phase of the algorithm, and as text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def duration(seconds: float) -> str:
    """Return a time as text, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3_600:.1f} h"


class Stopwatch:
    """Adds up the seconds spent in each of the named phases."""

    def __init__(self, phases: tuple[str, ...]) -> None:
        self.seconds = dict.fromkeys(phases, 0.0)
        self._start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds by phase and in total."""
        return {"seconds": dict(self.seconds), "total_seconds": self.total_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.seconds = self.seconds | state["seconds"]
        self._start = time.perf_counter() - state["total_seconds"]

    @property
    def total_seconds(self) -> float:
        """Seconds since construction, plus the total at the checkpoint of a resumed run."""
        return time.perf_counter() - self._start

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside the `with` block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
