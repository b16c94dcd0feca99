"""What a person sees while a run trains: a live bar on a terminal, plain lines elsewhere.

A sink of the logger. Knows only the tags it shows; does not know what draws the bar.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from mbpo_cli.logs.logger import Scalars, Sink

log = logging.getLogger(__name__)

SHOWN = {
    "train/episodes": ("episode", "{:.0f}"),
    "train/episode_return": ("return", "{:.1f}"),
    "eval/return_mean": ("evaluation", "{:.1f}"),
    "model/transition_loss": ("model loss", "{:.3g}"),
}


def on_terminal() -> bool:
    """Return True if standard error is a terminal on which lines can be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


class Progress(Sink):
    """Shows the step, time left, and the last values of the tags in `SHOWN`."""

    def __init__(self, num_env_steps: int, start_step: int = 0, seconds_between_lines: float = 10.0) -> None:
        self._num_env_steps = num_env_steps
        self._start_step = self._step = start_step
        self._values: dict[str, str] = {}
        self._start = self._last_shown = time.monotonic()
        self._interval = seconds_between_lines
        self._bar = None
        if on_terminal():
            from mbpo_cli.logs.terminal import LiveRows

            self._interval = 0.1
            self._bar = LiveRows()
            self._bar.add_task("", total=num_env_steps, completed=start_step, note="")
            self._bar.start()

    def write(self, step: int, scalars: Scalars) -> None:
        """Show the progress at a step."""
        self._step = step
        for tag, (name, form) in SHOWN.items():
            if tag in scalars:
                self._values[name] = form.format(scalars[tag])
        if "eval/return_mean" in scalars:
            mean, std = scalars["eval/return_mean"], scalars["eval/return_std"]
            log.info("step %d: evaluation return %.1f +- %.1f", step, mean, std)
        if (now := time.monotonic()) - self._last_shown >= self._interval:
            self._last_shown = now
            self._show(now)

    def _show(self, now: float) -> None:
        values = ", ".join(f"{name} {value}" for name, value in self._values.items())
        steps_per_second = (self._step - self._start_step) / (now - self._start)
        if self._bar is not None:
            self._bar.caption = values
            note = f"{steps_per_second:.1f} steps/s"
            self._bar.update(self._bar.task_ids[0], completed=self._step, note=note)
        else:
            num_left = self._num_env_steps - self._step
            # A run that was stopped within an evaluation starts with it.
            left = f", {num_left / steps_per_second:.0f} s left" if steps_per_second > 0 else ""
            log.info("step %d of %d%s: %s", self._step, self._num_env_steps, left, values)

    def close(self) -> None:
        """Show the last step and leave the terminal as it was."""
        if self._bar is not None:
            self._show(time.monotonic())
            self._bar.stop()
