"""What a model makes of episodes of random actions: known functions, and a first fit.

Knows a configuration and episodes; does not know where they come from.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from mbpo_cli.build import build_model, num_threads
from mbpo_cli.config.typed import Config
from mbpo_cli.envs.lint import Finding, Random
from mbpo_cli.evaluation.diagnostics import joined
from mbpo_cli.evaluation.evaluate import Episode
from mbpo_cli.failures import Diverged, EnvironmentFailed, Stopped
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.fit import ModelFitter
from mbpo_cli.models.guard import Guard
from mbpo_cli.models.known import Comparison
from mbpo_cli.nn.seeding import generator
from mbpo_cli.trained import model_errors
from mbpo_cli.types import Metrics, SpaceSpec

CPU = torch.device("cpu")
STEPS_AHEAD = 10
# Every fifth piece of an episode of so many steps is for the test.
PIECE, TESTED = 50, 5
# Fits of so many epochs follow each other until one of them ends early.
EPOCHS = 10


def of_known(config: Config, spaces: SpaceSpec, played: Sequence[Random]) -> Iterator[Finding]:
    """Hold the known functions of a configuration to what has happened."""
    rows = joined(_pieces(played))
    for part, function in build_model(config, spaces, CPU).known.items():
        text = f"{function.name} gives what happened in {len(rows):,} steps"
        try:
            Comparison({part: function}, allow_mismatch=False)(rows, 1)
        except EnvironmentFailed as error:
            yield Finding("error", part, str(error))
        else:
            if part == "is_done" and not rows.terminated.any():
                yield Finding("note", part, f"{text}, none of them terminal; test it where episodes end")
            else:
                yield Finding("ok", part, text)


def of_fit(
    config: Config, spaces: SpaceSpec, played: Sequence[Random], seconds: float
) -> tuple[Finding, dict[str, Any], bytes | None]:
    """Fit the configuration's model for so many seconds at most, and test it on steps that it has not seen.

    Returns:
        What to say about it, the errors as JSON values, and a picture of them as PNG, if there are any.
    """
    torch.set_num_threads(num_threads(config, in_sweep=False))
    pieces = _pieces(played)
    training = [piece for number, piece in enumerate(pieces) if number % TESTED]
    if not training:
        return Finding("note", "model", "there are too few steps for one"), {}, None
    model, begin = build_model(config, spaces, CPU), time.monotonic()
    try:
        metrics = _fit(config, model, training, begin + seconds)
    except Diverged as error:
        remedy = "scale observations and rewards to about 1"
        return Finding("warning", "model", f"{error}; {remedy}"), {}, None
    took = time.monotonic() - begin
    if not metrics:
        return Finding("note", "model", f"not fitted within {seconds:g} s; raise --seconds"), {}, None
    stream = generator(config.seed, "first model", "outcomes")
    errors, picture = model_errors.measure(model, pieces[::TESTED], STEPS_AHEAD, stream, spaces)
    level, verdict = "ok", "a run would use it"
    if reason := Guard(config.mbpo.max_relative_error).reason(metrics):
        level, verdict = "note", f"a run would not use it yet, because {reason}"
    text = f"fitted to {sum(map(len, training)):,} steps in {took:.0f} s; errs by {_sizes(errors)}; {verdict}"
    return Finding(level, "model", text), errors, picture


def _pieces(played: Sequence[Random]) -> list[Episode]:
    """Return the episodes in pieces of `PIECE` steps at most."""
    found = []
    for start, steps in played:
        for first in range(0, len(steps), PIECE):
            obs = steps[first - 1][1].obs if first else start
            found.append(Episode.of(obs, steps[first : first + PIECE]))
    return found


def _fit(config: Config, model: EnvironmentModel, training: Sequence[Episode], deadline: float) -> Metrics:
    """Fit a model until it is as good as it gets, or time is up; return the metrics of the last whole fit."""
    rows = joined(training)
    fitter = ModelFitter(config.model.training, len(rows), generator(config.seed, "first model"))
    metrics: Metrics = {}
    with suppress(Stopped):
        while not metrics or metrics["model/transition_epochs"] == EPOCHS:
            metrics = fitter.fit(model, rows, EPOCHS, lambda: time.monotonic() > deadline)
    return metrics


def _sizes(errors: dict[str, Any]) -> str:
    """Return in words how far predictions are from what happened."""
    by_name = dict(zip(errors["elements"], errors["error_by_element"], strict=True))
    mean, worst = statistics.fmean(by_name.values()), max(by_name, key=lambda name: by_name[name])
    said = f"{mean:.2g} of the change after one step (most in {worst}: {by_name[worst]:.2g})"
    if ahead := errors["error_by_steps_ahead"]:
        said += f", and {ahead[-1]:.2g} standard deviations of the observations after {len(ahead)}"
    return said
