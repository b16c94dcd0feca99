"""The picture of the learning curve in the directory of a run, drawn anew at evaluations.

Knows when to draw; does not know how.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from mbpo_cli.evaluation.curve import TAGS, picture
from mbpo_cli.logs.logger import Scalars, Sink
from mbpo_cli.storage.files import write_whole
from mbpo_cli.storage.records import CURVE, EVALUATION, history

log = logging.getLogger(__name__)

MAX_SHARE = 0.02  # of a run's time, for drawing


class CurvePicture(Sink):
    """A sink that keeps the picture of a run's learning curve up to date.

    It is drawn after an evaluation, or later if drawing would take more than `MAX_SHARE` of the time, and
    at the end. A resumed run goes on with the curve in its metrics. An error ends the drawing, not the run.
    """

    def __init__(self, path: Path, title: str) -> None:
        self._path, self._title = path, title
        self._curves = history(path, TAGS)
        self._is_due, self._works, self._next_time = False, True, 0.0

    def write(self, step: int, scalars: Scalars) -> None:
        """Draw the curve if it has a new evaluation, or had one when it was too early to draw."""
        for tag, curve in self._curves.items():
            if tag in scalars:
                curve[step] = scalars[tag]
        self._is_due = self._is_due or EVALUATION in scalars
        if time.monotonic() >= self._next_time:
            self._draw_if_due()

    def close(self) -> None:
        """Draw what is not drawn yet."""
        self._draw_if_due()

    def _draw_if_due(self) -> None:
        if not (self._is_due and self._works):
            return
        self._is_due, start = False, time.monotonic()
        try:
            write_whole(self._path / CURVE, picture(self._curves, self._title))
        except Exception as error:  # a run is worth more than its picture
            self._works = False
            log.warning("the run continues without %s: %s: %s", CURVE, type(error).__name__, error)
        end = time.monotonic()
        self._next_time = end + (end - start) / MAX_SHARE
