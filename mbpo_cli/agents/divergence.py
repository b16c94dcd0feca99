"""Detection of agents whose training has diverged, from the metrics of their updates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mbpo_cli.failures import Diverged
from mbpo_cli.types import Metrics


def check_updates(
    updates: Sequence[Metrics],
    num_earlier_updates: int,
    max_reward: float,
    discount_factor: float,
    device: torch.device,
) -> None:
    """Check the metrics of consecutive updates all at once, so that a GPU is synchronized only once.

    `max_reward` is the largest absolute reward so far; `device` holds the metrics.

    Raises:
        Diverged: A number is not finite, or a Q-value is far beyond any possible return.
    """
    named = {
        (number, tag): torch.as_tensor(value, dtype=torch.float32, device=device)
        for number, metrics in enumerate(updates, num_earlier_updates + 1)
        for tag, value in metrics.items()
    }
    values = torch.stack(list(named.values())).tolist() if named else []
    gap = 1 - discount_factor
    # A critic whose Q-values exceed the largest possible return by a factor of 100 does not recover.
    limit = 100.0 * max(max_reward, 1.0) / gap if gap > 0 else math.inf
    for (number, tag), value in zip(named, values, strict=True):
        if not math.isfinite(value):
            raise Diverged(f"{tag} is {value} in update {number:,}")
        if tag == "agent/q_value" and abs(value) > limit:
            raise Diverged(
                f"agent/q_value is {value:.3g} in update {number:,}, "
                f"but rewards of up to {max_reward:.3g} cannot add up to that"
            )
