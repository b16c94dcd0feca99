"""Detection of agents whose training has diverged, from the metrics of their updates, and of the cause."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mbpo_cli.agents.options import AgentOptions
from mbpo_cli.failures import Diverged
from mbpo_cli.types import Metrics, SpaceSpec, Transitions

# Networks with usual initial weights and learning rates are made for inputs and targets of about 1.
LARGE = 100.0


def check_updates(
    updates: Sequence[Metrics],
    num_earlier_updates: int,
    batches: Sequence[Transitions],
    spaces: SpaceSpec,
    max_reward: float,
    options: AgentOptions,
) -> None:
    """Check the metrics of consecutive updates all at once, so that a GPU is synchronized only once.

    `batches` are the mini-batches of the updates; `max_reward` is the largest absolute reward so far.

    Raises:
        Diverged: A number is not finite, or a Q-value is far beyond any possible return.
    """
    device = batches[0].obs.device
    named = {
        (number, tag): torch.as_tensor(value, dtype=torch.float32, device=device)
        for number, metrics in enumerate(updates, num_earlier_updates + 1)
        for tag, value in metrics.items()
    }
    values = torch.stack(list(named.values())).tolist() if named else []
    gap = 1 - options.discount_factor
    largest_return = max(max_reward, 1.0) / gap if gap > 0 else math.inf
    for (number, tag), value in zip(named, values, strict=True):
        what = None
        if not math.isfinite(value):
            what = f"{tag} is {value} in update {number:,}"
        # A critic whose Q-values exceed the largest possible return by a factor of 100 does not recover.
        elif tag == "agent/q_value" and abs(value) > 100 * largest_return:
            what = f"{tag} is {value:.3g} in update {number:,}, but no return exceeds {largest_return:.3g}"
        if what is not None:
            raise Diverged(f"{what}: {_cause(batches, spaces, max_reward, options)}")


def _cause(
    batches: Sequence[Transitions], spaces: SpaceSpec, max_reward: float, options: AgentOptions
) -> str:
    """Return the likely cause in words, with what to do."""
    size_O = torch.cat([batch.obs for batch in batches]).abs().amax(0)
    element = int(size_O.nan_to_num(torch.inf).argmax())
    causes = []
    if not (size_O[element] <= LARGE or getattr(options, "normalize_observations", False)):
        name, size = spaces.element_name(element), float(size_O[element])
        causes.append(
            f"{name} of the observation reaches {size:.3g}; scale it to about 1, with "
            "agent.normalize_observations=true, gymnasium.wrappers.RescaleObservation or a "
            "TransformObservation of your own"
        )
    if max_reward > LARGE:
        remedy = "scale them, with a gymnasium.wrappers.TransformReward of your own"
        causes.append(f"rewards reach {max_reward:.3g}; {remedy}")
    critics = getattr(options, "critics", None)  # an agent of one's own may have others
    missing = [name for name in ("layer_norm", "bound_targets") if not getattr(critics, name, True)]
    if missing:
        causes.append(" ".join(f"agent.critics.{name}=true" for name in missing) + " may prevent it")
    return "; ".join(causes) or "lower the learning rates of the agent, or set their gradient_threshold"
