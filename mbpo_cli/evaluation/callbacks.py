"""What a script may do while a run trains: look at it, and end it.

Knows what is logged; cannot change a number, because it gets no part of the training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from mbpo_cli.evaluation.schedule import TrainingRecord
from mbpo_cli.failures import one_line

log = logging.getLogger(__name__)


class Callback:
    """Base class of callbacks, whose methods do nothing.

    Each of the first three returns True to end the run after this step, with a last evaluation. An error in
    one of them ends the run as failed. `metrics` are the scalars that are logged for the step.
    """

    def on_step(self, record: TrainingRecord) -> bool | None:
        """Look at the run after a real environment step and the updates that follow it."""
        return None

    def on_generation(self, record: TrainingRecord, metrics: Mapping[str, float]) -> bool | None:
        """Look at the run after the step that follows new rollouts: `model/...`, `rollout/...`."""
        return None

    def on_evaluation(self, record: TrainingRecord, metrics: Mapping[str, float]) -> bool | None:
        """Look at the run after an evaluation: `eval/...`, `diagnose/...`."""
        return None

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Look at the summary, as in `summary.json`, however the run has ended; an error is only logged."""


def reason_to_end(
    callbacks: Sequence[Callback], record: TrainingRecord, logged: Mapping[str, Tensor | float]
) -> str | None:
    """Call what a step calls for; return in words why the run ends, or None.

    Args:
        callbacks: All of them are called, whatever the others answer.
        record: The training so far.
        logged: What is logged for the step so far.
    """
    record = replace(record, last_episodes=tuple(record.last_episodes))
    is_generated, is_evaluated = "rollout/horizon" in logged, "eval/return_mean" in logged
    metrics = {tag: float(value) for tag, value in logged.items()} if is_generated or is_evaluated else {}
    reason = None
    for callback in callbacks:
        answers = [callback.on_step(record)]
        if is_generated:
            answers.append(callback.on_generation(record, metrics))
        if is_evaluated:
            answers.append(callback.on_evaluation(record, metrics))
        if any(answers):
            reason = reason or f"{type(callback).__name__} asked for it"
    return reason


def end(callbacks: Sequence[Callback], summary: Mapping[str, Any]) -> None:
    """Tell all callbacks how the run has ended."""
    for callback in callbacks:
        try:
            callback.on_end(summary)
        except Exception as error:
            log.error("%s.on_end: %s: %s", type(callback).__name__, type(error).__name__, one_line(error))
