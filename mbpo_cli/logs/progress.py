"""What a person sees while a run trains: a live bar on a terminal, plain lines elsewhere.

A sink of the logger. It changes nothing and knows only the tags it shows.
"""

from __future__ import annotations

import logging
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mbpo_cli.logs.logger import Scalars

log = logging.getLogger(__name__)

SHOWN = {
    "train/episodes": ("episode", "{:.0f}"),
    "train/episode_return": ("return", "{:.1f}"),
    "eval/return_mean": ("evaluation", "{:.1f}"),
    "model/transition_loss": ("model loss", "{:.3g}"),
}


class Progress:
    """Shows steps, speed, time left, and the last values of the tags in `SHOWN`."""

    def __init__(self, num_env_steps: int, start_step: int = 0, seconds_between_lines: float = 10.0) -> None:
        """Show progress from one step to the last; off a terminal, at most one line per interval."""
        self._num_env_steps = num_env_steps
        self._start_step = start_step
        self._interval = seconds_between_lines
        self._values: dict[str, str] = {}
        self._start = self._last_line = time.monotonic()
        self._redirect = logging_redirect_tqdm()
        self._redirect.__enter__()
        # disable=None: silent where stderr is not a terminal. Speed is smoothed over evaluations.
        self._bar = tqdm(
            total=num_env_steps,
            initial=start_step,
            unit=" steps",
            dynamic_ncols=True,
            disable=None,
            smoothing=0.05,
        )

    def write(self, step: int, scalars: Scalars) -> None:
        """Show where the run is."""
        for tag, (name, form) in SHOWN.items():
            if tag in scalars:
                self._values[name] = form.format(scalars[tag])
        if "eval/return_mean" in scalars:
            mean, std = scalars["eval/return_mean"], scalars["eval/return_std"]
            log.info("step %d: evaluation return %.1f +- %.1f", step, mean, std)
        if not self._bar.disable:
            if scalars:
                self._bar.set_postfix(self._values, refresh=False)
            self._bar.update(step - self._bar.n)
        elif (now := time.monotonic()) - self._last_line >= self._interval:
            self._last_line = now
            seconds_left = (now - self._start) * (self._num_env_steps - step) / (step - self._start_step)
            values = ", ".join(f"{name} {value}" for name, value in self._values.items())
            log.info("step %d of %d, %.0f s left: %s", step, self._num_env_steps, seconds_left, values)

    def commit(self) -> dict[str, int]:
        """Return nothing; it leaves no file."""
        return {}

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()
        self._redirect.__exit__(None, None, None)
