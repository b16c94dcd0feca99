"""A guard that holds generated experience back while the model is not clearly better than knowing nothing.

Knows the errors of a fit, not how they come about.
"""

from __future__ import annotations

import logging
from typing import Any

from mbpo_cli.types import Metrics

log = logging.getLogger(__name__)

# An agent that has learned without the model follows the gradients through it once it is used again, and
# unlearns what it can if the model is just good enough. Chosen on InvertedDoublePendulum (docs/algorithm.md).
REOPENING = 0.5
# A policy learns to stay where a goal of 100 was predicted as 8 rather than to reach it.
MAX_MISSED_REWARD = 0.5


class Guard:
    """Judges every fit by its errors on hold-out data; two lines in the log say when the judgment changes.

    Args:
        max_relative_error: The largest error of a model that may be used; None lets every model pass.
        through_model: Whether updates take steps in the model. Then the error must come down to half of the
            limit before the model is used again.

    Attributes:
        is_closed: Whether the model of the last fit must not be used.
        num_held_back: Generations that were held back so far.
    """

    def __init__(self, max_relative_error: float | None = None, through_model: bool = False) -> None:
        self._limit, self._through_model = max_relative_error, through_model
        self.is_closed = False
        self.num_held_back = 0

    def judge(self, metrics: Metrics, step: int) -> dict[str, int]:
        """Judge a fit by its metrics, and return those of the guard; `step` is for the log."""
        if self._limit is None:
            return {}
        reason = self.reason(metrics)
        if reason is not None:
            self.num_held_back += 1
        if (reason is not None) != self.is_closed:
            self.is_closed = reason is not None
            verdict = f"is not used, because {reason}" if reason else "is good enough, and is used"
            log.info("step %s: the model %s", f"{step:,}", verdict)
        return {"rollout/held_back": self.num_held_back}

    def reason(self, metrics: Metrics) -> str | None:
        """Return in words why the model of a fit should not be used, or None if it should."""
        if (limit := self._limit) is None:
            return None
        if "model/relative_error" not in metrics:
            return "there are too few real transitions to test it"
        error = float(metrics["model/relative_error"])
        again = REOPENING if self._through_model and self.is_closed else 1
        if not error <= limit * again:
            share = f" times {again:g} to be used again" if again < 1 else ""
            return (
                f"its error on hold-out data is {error:.2g} of that of 'nothing changes' "
                f"(mbpo.max_relative_error={limit:g}{share})"
            )
        reward_error = float(metrics.get("model/relative_reward_error", 0.0))
        if not reward_error <= 1:
            return f"its reward is worse than the mean reward ({reward_error:.2g} of the squared error)"
        missed = float(metrics.get("model/missed_reward", 0.0))
        if not missed <= MAX_MISSED_REWARD:
            return f"it misses the largest rewards ({missed:.2g} of their squares)"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the judgment and the count."""
        return {"is_closed": self.is_closed, "num_held_back": self.num_held_back}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.is_closed, self.num_held_back = state["is_closed"], state["num_held_back"]
