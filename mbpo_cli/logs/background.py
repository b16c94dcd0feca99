"""Passes what a run logs to a tracker on a thread of its own, which can neither end nor delay the run.

Knows the contract of trackers; does not know any of them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mbpo_cli.failures import one_line
from mbpo_cli.logs.logger import Exhibits, Scalars, Sink
from mbpo_cli.options import Component, option

log = logging.getLogger(__name__)


@dataclass
class TrackerOptions(Component):
    """Options that all trackers share."""

    max_waiting: int = option("points that wait to be sent at most; what exceeds them is dropped", low=1)
    drain_seconds: float = option("how long the end of a run waits for what is not sent yet", low=0, high=600)


class Tracker(Sink):
    """A sink that may be slow or fail, such as a service in the network. An error ends only the tracker.

    Everything but `abandon` is called on one thread, the constructor included.
    """

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary of the run, which has ended; the last call."""

    @staticmethod
    def abandon() -> None:
        """End what would delay the end of the process: the tracker has failed, or its time is up."""


class Background(Sink):
    """Hands all points to a tracker on a thread of its own.

    Args:
        name: What messages call the tracker.
        options: The tracker's options.
        make: Makes the tracker, on the thread.
        abandon: The tracker's `abandon`.
        last_step: The last environment step that an earlier part of the run has sent, or -1. A resumed run
            repeats steps up to there, which are not sent again.
    """

    def __init__(
        self,
        name: str,
        options: TrackerOptions,
        make: Callable[[], Tracker],
        abandon: Callable[[], None],
        last_step: int = -1,
    ) -> None:
        self._name, self._seconds = name, options.drain_seconds
        self._make, self._abandon, self._last_step = make, abandon, last_step
        self._waiting: queue.Queue[tuple[Any, ...]] = queue.Queue(options.max_waiting)
        self._num_dropped = 0
        self._is_on, self._has_finished = True, False
        # A daemon, or the process would wait for a tracker that hangs.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, scalars: Scalars) -> None:
        """Hand over the scalars, if any, of an environment step."""
        if scalars:
            self._hand_over("write", step, scalars)

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Hand over images, histograms and films."""
        self._hand_over("show", step, exhibits)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hand over the summary of the run, and wait for what is not sent yet, up to the time limit."""
        deadline = time.monotonic() + self._seconds
        if self._is_on:
            try:
                self._waiting.put(("finish", summary), timeout=self._seconds)
            except queue.Full:  # the thread must end some time, in place of the oldest point
                with suppress(queue.Empty, queue.Full):
                    self._waiting.get_nowait()
                    self._num_dropped += 1
                    self._waiting.put_nowait(("finish", summary))
            self._thread.join(max(deadline - time.monotonic(), 0))
        if self._num_dropped:
            log.warning("%s: %d points were dropped", self._name, self._num_dropped)
        if not self._has_finished:
            if self._is_on:
                self._is_on = False
                log.warning("%s: not everything was sent within %g s", self._name, self._seconds)
            self._abandon()

    def _hand_over(self, method: str, step: int, contents: Any) -> None:
        if step <= self._last_step or not self._is_on:
            return
        try:
            self._waiting.put_nowait((method, step, contents))
        except queue.Full:
            if self._num_dropped == 0:
                log.warning("%s: is too slow; points are dropped from step %d on", self._name, step)
            self._num_dropped += 1

    def _serve(self) -> None:
        try:
            tracker = self._make()
            while not self._has_finished:
                method, *arguments = self._waiting.get()
                getattr(tracker, method)(*arguments)
                self._has_finished = method == "finish"
        except BaseException as error:  # a library may even try to exit the process
            if self._is_on:  # and not abandoned
                self._is_on = False
                reason = one_line(f"{type(error).__name__}: {error}")
                log.error("%s: %s; the run continues without it", self._name, reason)
