"""Short rollouts branched from real states in the learned model, and how long they may be.

Knows a model, a policy and a place to put transitions; does not know that the place is a buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mbpo_cli.failures import Diverged
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.options import Component, option
from mbpo_cli.types import Policy, Transitions

# So many rows and what the networks make of them stay in a CPU's cache; a GPU takes all at once.
ROWS_AT_ONCE_ON_CPU = 4_000


@dataclass
class ModelRolloutOptions:
    """How experience is generated: MATLAB's rlModelRolloutOptions."""

    num_rollout: int = option(
        "N_R, rollouts started per generation", low=1, high=10_000_000, matlab="NumRollout"
    )
    horizon: int = option("steps of a rollout, at first", low=1, high=1000, matlab="Horizon")
    horizon_update_schedule: Literal["none", "piecewise", "linear"] = option(
        "how the horizon grows: not at all; by 1 every horizon_update_frequency model trainings; or "
        "linearly to horizon_max between two epochs of 1000 environment steps, as in the paper",
        matlab="HorizonUpdateSchedule",
    )
    horizon_update_frequency: int = option(
        "piecewise: model trainings between two increments", low=1, matlab="HorizonUpdateFrequency"
    )
    horizon_update_start_epoch: int = option(
        "first epoch of the growth: in model trainings (piecewise) or 1000 environment steps (linear)",
        low=0,
        matlab="HorizonUpdateStartEpoch",
    )
    horizon_update_end_epoch: int = option(
        "linear: epoch, in 1000 environment steps, at which horizon_max is reached", low=1
    )
    horizon_max: int = option("the horizon never grows beyond this", low=1, high=1000, matlab="HorizonMax")
    max_departure: float | None = option(
        "a rollout ends, and its last prediction is dropped, where an element leaves the range seen in "
        "reality by more than so many times that range's width, or is not finite; null = all predictions "
        "are kept, and one that is not finite ends the run",
        low=0,
    )
    noise_options: Component = option(
        "exploration within rollouts (group mbpo/model_rollout_options/noise_options)", matlab="NoiseOptions"
    )

    def __post_init__(self) -> None:
        """Check what no single option can tell."""
        if self.horizon_update_schedule == "none":
            return
        if self.horizon_max < self.horizon:
            raise ValueError(f"horizon_max={self.horizon_max}: must be at least horizon={self.horizon}")
        if (
            self.horizon_update_schedule == "linear"
            and self.horizon_update_end_epoch <= self.horizon_update_start_epoch
        ):
            raise ValueError(
                f"horizon_update_end_epoch={self.horizon_update_end_epoch}: must be greater than "
                f"horizon_update_start_epoch={self.horizon_update_start_epoch}"
            )


def horizon_at(options: ModelRolloutOptions, num_model_trainings: int, num_env_steps: int) -> int:
    """Return the horizon after so many model trainings and real environment steps.

    Piecewise counts model trainings (Source: the page, HorizonUpdateFrequency); linear counts
    epochs of 1000 environment steps and rounds down (Source: the paper, appendix: x -> y over
    epochs a -> b).
    """
    low, high, start = options.horizon, options.horizon_max, options.horizon_update_start_epoch
    match options.horizon_update_schedule:
        case "none":
            return low
        case "piecewise":
            increments = max(num_model_trainings - start, 0) // options.horizon_update_frequency
            return min(low + increments, high)
        case "linear":
            # Whole steps, so that rounding down is exact.
            passed = max(num_env_steps - 1000 * start, 0)
            duration = 1000 * (options.horizon_update_end_epoch - start)
            return min(low + passed * (high - low) // duration, high)


class Region(Protocol):
    """Where rollouts may go: one ends with the first prediction that lies outside, which is dropped."""

    def contains(self, transitions: Transitions) -> Tensor:
        """Tell of each predicted transition whether it lies within, shape (N,)."""
        ...


class PlausibleRange:
    """What the outcomes of real experience suggest that a prediction may be."""

    def __init__(self, real: Transitions, max_departure: float, knows_reward: bool = False) -> None:
        """Allow the range of each element, wider by `max_departure` times its width on either side.

        Where the reward is known, any that is finite is: a first success may earn what was never seen.
        """
        outcomes = _outcomes(real)
        low, high = outcomes.amin(0), outcomes.amax(0)
        width = high - low
        margin = max_departure * torch.where(width > 0, width, 1.0)  # what never varied has no width
        self._low, self._high = low - margin, high + margin
        if knows_reward:
            largest = torch.finfo(real.reward.dtype).max
            self._low[_REWARD], self._high[_REWARD] = -largest, largest

    def contains(self, transitions: Transitions) -> Tensor:
        """Tell of each row whether it is plausible, shape (N,); what is not finite never is."""
        outcomes = _outcomes(transitions)
        return ((outcomes >= self._low) & (outcomes <= self._high)).all(1)


def _outcomes(transitions: Transitions) -> Tensor:
    columns = (transitions.next_obs, transitions.reward[:, None], transitions.terminated[:, None])
    return torch.cat(columns, dim=1)


_REWARD = -2  # its column there


class Generated(NamedTuple):
    """What became of a generation.

    Attributes:
        num_transitions: Those handed on.
        num_implausible: Rollouts that ended with a prediction that was dropped.
    """

    num_transitions: int
    num_implausible: int


def generate(
    model: EnvironmentModel,
    policy: Policy,
    starts: Tensor,
    horizon: int,
    sink: Callable[[Transitions], None],
    generator: torch.Generator,
    plausible: Region | None = None,
) -> Generated:
    """Roll the policy out in the model and hand every step's transitions to `sink`.

    A rollout that is predicted to terminate is not continued (Source: the page, step 3.2), nor is one
    whose prediction is not plausible.

    Args:
        model: The environment model.
        policy: Chooses the actions, with exploration.
        starts: Start observations, shape (N, O).
        horizon: Largest number of steps of a rollout.
        sink: Called with every step's transitions of the rollouts still running, a share of them at a time.
        generator: Random stream of groups, actions and predictions.
        plausible: Where predictions may lie; None allows every finite one.

    Raises:
        Diverged: A prediction is not finite where all are allowed, or no prediction is plausible.
    """
    count = num_implausible = 0
    num_rows = ROWS_AT_ONCE_ON_CPU if starts.device.type == "cpu" else len(starts)
    with torch.inference_mode():
        for obs in torch.split(starts, num_rows):
            for _ in range(horizon):
                transitions = model.step(obs, policy(obs, explore=generator), generator)
                if plausible is None:
                    check_finite(transitions)
                else:
                    kept = plausible.contains(transitions)
                    num_dropped = len(kept) - int(kept.sum())
                    num_implausible += num_dropped
                    transitions = transitions[kept] if num_dropped > 0 else transitions
                sink(transitions)
                count += len(transitions)
                obs = transitions.next_obs[transitions.terminated == 0]
                if len(obs) == 0:
                    break
    if count == 0:
        raise Diverged(f"none of {num_implausible} predictions of the model is plausible")
    return Generated(count, num_implausible)


def check_finite(transitions: Transitions) -> None:
    """Check what the model predicted.

    Raises:
        Diverged: Something is not finite.
    """
    for name in ("action", "next_obs", "reward", "terminated"):
        # One sum is not finite if any of its numbers is not, and costs less than looking at each.
        if not math.isfinite(getattr(transitions, name).double().sum()):
            raise Diverged(f"{name} is not finite in a rollout")
