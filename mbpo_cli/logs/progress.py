"""What a person sees while a run trains: a live bar on a terminal, plain lines elsewhere.

A sink of the logger. Knows only the tags it shows; does not know what draws the bar.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from mbpo_cli.logs.logger import Scalars, Sink
from mbpo_cli.logs.stopwatch import duration

log = logging.getLogger(__name__)

TYPICAL_STEPS = 250

# In this order. The model's error is 1 for one that is no better than knowing nothing.
SHOWN = {
    "eval/return_mean": ("evaluation", "{:.1f}"),
    "train/episodes": ("episode", "{:.0f}"),
    "train/episode_return": ("return", "{:.1f}"),
    "model/relative_error": ("model error", "{:.2g}"),
}


def on_terminal() -> bool:
    """Return True if standard error is a terminal on which lines can be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


class Progress(Sink):
    """Shows the step, time left, and the last values of the tags in `SHOWN`.

    The time left follows from the steps since the first gradient step: those before are faster, and compiling
    the first takes long.
    """

    def __init__(self, num_env_steps: int, start_step: int = 0, seconds_between_lines: float = 10.0) -> None:
        self._num_env_steps = num_env_steps
        self._step = start_step
        self._values: dict[str, str] = {}
        self._last_shown = time.monotonic()
        self._first_trained: tuple[int, float] | None = None
        self._interval = seconds_between_lines
        self._bar = None
        if on_terminal():
            from mbpo_cli.logs.terminal import LiveRows

            self._interval = 0.1
            self._bar = LiveRows()
            self._bar.add_task("", total=num_env_steps, completed=start_step, note="", left="")
            self._bar.start()

    def write(self, step: int, scalars: Scalars) -> None:
        """Show the progress at a step."""
        self._step = step
        if self._first_trained is None and scalars.get("train/gradient_steps", 0) > 0:
            self._first_trained = step, time.monotonic()
        for tag, (name, form) in SHOWN.items():
            if tag in scalars:
                self._values[name] = form.format(scalars[tag])
        if "eval/return_mean" in scalars:
            mean, std = scalars["eval/return_mean"], scalars["eval/return_std"]
            log.info("step %d: evaluation return %.1f ± %.1f", step, mean, std)
        if (now := time.monotonic()) - self._last_shown >= self._interval:
            self._last_shown = now
            self._show(now)

    def _show(self, now: float) -> None:
        names = [name for name, _ in SHOWN.values() if name in self._values]
        values = ", ".join(f"{name} {self._values[name]}" for name in names)
        start_step, start = self._first_trained or (self._step, now)
        num_steps = self._step - start_step
        # Fewer may hold a fit of the model, or none.
        is_typical = num_steps >= min(TYPICAL_STEPS, 0.1 * self._num_env_steps)
        speed = num_steps / (now - start) if is_typical and now > start else 0.0
        left = f"{duration((self._num_env_steps - self._step) / speed)} left" if speed > 0 else ""
        if self._bar is not None:
            self._bar.caption = values
            note = f"{speed:.1f} steps/s" if speed > 0 else ""
            self._bar.update(self._bar.task_ids[0], completed=self._step, note=note, left=left)
        else:
            so_far = ", ".join(filter(None, (f"step {self._step} of {self._num_env_steps}", left)))
            log.info("%s: %s", so_far, values)

    def close(self) -> None:
        """Show the last step and leave the terminal as it was."""
        if self._bar is not None:
            self._show(time.monotonic())
            self._bar.stop()
