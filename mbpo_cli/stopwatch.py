"""Wall-clock time by phase of the algorithm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds spent in named phases."""

    def __init__(self, phases: tuple[str, ...]) -> None:
        """Start all phases at zero and the total now."""
        self.seconds = dict.fromkeys(phases, 0.0)
        self._start = time.perf_counter()

    @property
    def total_seconds(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.perf_counter() - self._start

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block towards a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
