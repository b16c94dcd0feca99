"""Short rollouts in the learned model, branched from real states, and the schedule of their horizon.

Knows a model and a policy; does not know where the generated transitions are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mbpo_cli.failures import Diverged
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.regions import EVERYWHERE, Region
from mbpo_cli.models.uncertainty import UncertaintyOptions
from mbpo_cli.options import Component, option
from mbpo_cli.types import ActionSpec, Policy, Transitions

# Rows whose intermediate results fit into a CPU's cache. A GPU takes all rollouts at once.
ROWS_AT_ONCE_ON_CPU = 4_000


@dataclass
class ModelRolloutOptions(UncertaintyOptions):
    """How experience is generated: MATLAB's rlModelRolloutOptions."""

    num_rollout: int = option(
        "N_R, rollouts started per generation", low=1, high=10_000_000, matlab="NumRollout"
    )
    horizon: int = option("initial number of steps of a rollout", low=1, high=1000, matlab="Horizon")
    horizon_update_schedule: Literal["none", "piecewise", "linear"] = option(
        "how the horizon grows: none = it stays; piecewise = by 1 every horizon_update_frequency model "
        "trainings; linear = to horizon_max between two epochs of 1000 environment steps, as in the paper",
        matlab="HorizonUpdateSchedule",
    )
    horizon_update_frequency: int = option(
        "piecewise: model trainings between two increments", low=1, matlab="HorizonUpdateFrequency"
    )
    horizon_update_start_epoch: int = option(
        "epoch at which the growth starts, in model trainings (piecewise) or 1000 environment steps (linear)",
        low=0,
        matlab="HorizonUpdateStartEpoch",
    )
    horizon_update_end_epoch: int = option(
        "linear: epoch, in 1000 environment steps, at which horizon_max is reached", low=1
    )
    horizon_max: int = option(
        "horizon at which its growth ends; of no effect if horizon_update_schedule is none",
        low=1,
        high=1000,
        matlab="HorizonMax",
    )
    max_departure: float | None = option(
        "a rollout ends without its last prediction if an element of it is not finite, or outside the range "
        "of real experience by more than this many times the width of that range; null = every prediction "
        "is kept, and one that is not finite ends the run",
        low=0,
    )
    max_disagreement: float | None = option(
        "a rollout ends without its last prediction where the mean predictions of the two best members "
        "differ by more than this fraction of the change from one real observation to the next, both "
        "squared; null = no limit",
        above=0,
    )
    random_fraction: float = option(
        "fraction of the rollouts whose first half has random actions, each held as in the warm start: from "
        "states that the agent avoids by now, the second half shows how to come back",
        low=0,
        high=1,
    )
    reward_penalty: float = option(
        "MOPO's lambda: generated rewards are lowered by this times the uncertainty of the transition, the "
        "largest norm of a member's standard deviations; without deviations that depend on the inputs, the "
        "largest distance of a member's prediction from the mean of all; 0 = none",
        low=0,
    )
    noise_options: Component = option(
        "exploration within rollouts (group mbpo/model_rollout_options/noise_options)", matlab="NoiseOptions"
    )

    def __post_init__(self) -> None:
        start, end = self.horizon_update_start_epoch, self.horizon_update_end_epoch
        if self.horizon_update_schedule != "none" and self.horizon_max < self.horizon:
            raise ValueError(f"horizon_max={self.horizon_max}: must be at least horizon={self.horizon}")
        if self.horizon_update_schedule == "linear" and end <= start:
            raise ValueError(
                f"horizon_update_end_epoch={end}: must be greater than horizon_update_start_epoch={start}"
            )


@dataclass
class MBPOOptions:
    """What turns the base agent into an MBPO agent: MATLAB's rlMBPOAgentOptions."""

    use_model: bool = option("false = the base agent alone: all experience is real, and no model is built")
    generate_every: int | Literal["episode"] = option(
        "when the model is fitted and used: 'episode' = at the start of each episode, as in MATLAB; "
        "k = every k environment steps, as in the paper",
        low=1,
    )
    fit_every: int | None = option(
        "environment steps between two fits of the model, each with a new generation after it; null = it is "
        "fitted before each generation",
        low=1,
    )
    first_updates: int = option(
        "gradient steps as soon as there is a model that can be used, before the next environment step; all "
        "that there are with trainer.num_env_steps=0",
        low=0,
    )
    training_horizon: int = option(
        "T, steps that each update takes in the model from the observations of its mini-batch: critics learn "
        "the rewards on the way, the actor follows the gradient through them; 0 = updates learn from the "
        "transitions of the mini-batch",
        low=0,
        high=100,
    )
    critic_share: float = option(
        "with training_horizon > 0, the share in the actor's gradient of the critics' values of its first "
        "actions, which know of ends: no gradient flows through those on the way",
        low=0,
        high=1,
    )
    num_epoch_for_training_model: int = option(
        "epochs of model training before each generation", low=1, matlab="NumEpochForTrainingModel"
    )
    mini_batch_size: int = option(
        "M, transitions in the agent's mixed mini-batch", low=1, high=1_000_000, matlab="MiniBatchSize"
    )
    real_ratio: float = option(
        "R, fraction of real transitions in the mini-batch: ceil(M R) of M; with 1 no model is built",
        low=0,
        high=1,
        matlab=("RealRatio", "RealSampleRatio"),
    )
    data_ratio: float | None = option(
        "fraction of the real transitions in it that are drawn from data, the others from the run's own "
        "steps, as in RLPD; null = all real transitions are drawn alike",
        low=0,
        high=1,
    )
    model_experience_buffer_length: int = option(
        "capacity of the replay buffer of generated experience",
        low=1,
        high=1_000_000_000,
        matlab="ModelExperienceBufferLength",
    )
    retained_generations: int | None = option("latest generations to keep; null = all that fit", low=1)
    max_relative_error: float | None = option(
        "no experience is generated, and none is in the mini-batches, while the hold-out error of the elite "
        "transition functions is more than this fraction of the error of 'nothing changes', or the reward "
        "function's more than that of the mean reward, or it misses half of the largest rewards; null = the "
        "model is used however bad it is",
        above=0,
    )
    model_rollout_options: ModelRolloutOptions = option(
        "how experience is generated", matlab="ModelRolloutOptions"
    )

    def __post_init__(self) -> None:
        if self.generate_every == "episode" and (self.first_updates > 0 or self.fit_every is not None):
            raise ValueError("generate_every=episode: must be a number with fit_every and first_updates")
        if self.critic_share > 0 and self.training_horizon == 0:
            raise ValueError(f"critic_share={self.critic_share:g}: needs training_horizon > 0")
        penalty = self.model_rollout_options.reward_penalty
        if penalty > 0 and self.training_horizon > 0:
            raise ValueError(
                f"model_rollout_options.reward_penalty={penalty:g}: is for generated transitions, from which "
                "updates with training_horizon > 0 do not learn; use 0, or algorithm=mbpo"
            )


def horizon_at(options: ModelRolloutOptions, num_model_trainings: int, num_env_steps: int) -> int:
    """Return the horizon after a number of model trainings and real environment steps.

    Piecewise counts model trainings (Source: the page, HorizonUpdateFrequency). Linear counts epochs of 1000
    environment steps and rounds down (Source: the paper, appendix: x -> y over epochs a -> b).
    """
    low, high, start = options.horizon, options.horizon_max, options.horizon_update_start_epoch
    match options.horizon_update_schedule:
        case "none":
            return low
        case "piecewise":
            num_increments = max(num_model_trainings - start, 0) // options.horizon_update_frequency
            return min(low + num_increments, high)
        case "linear":
            # In whole environment steps, so that rounding down is exact.
            passed = max(num_env_steps - 1000 * start, 0)
            duration = 1000 * (options.horizon_update_end_epoch - start)
            return min(low + passed * (high - low) // duration, high)


def lost_experience(options: MBPOOptions, num_env_steps: int, num_warm_start_steps: int) -> str | None:
    """Return in words what the model buffer is too small for in a run, or None if it is large enough."""
    rollouts, length = options.model_rollout_options, options.model_experience_buffer_length
    every = 1 if options.generate_every == "episode" else options.generate_every
    num_trainings = max(num_env_steps - 1 - num_warm_start_steps, 0) // every + 1  # at most
    horizon = horizon_at(rollouts, num_trainings, num_env_steps - 1)
    retained = options.retained_generations or 1
    needed = retained * rollouts.num_rollout * horizon
    if needed <= length:
        return None
    what = "a generation" if retained == 1 else f"mbpo.retained_generations={retained}"
    return (
        f"mbpo.model_experience_buffer_length={length:,}: does not hold {what}, so the oldest transitions "
        f"are lost; mbpo.model_rollout_options.num_rollout={rollouts.num_rollout:,} and horizons of up to "
        f"{horizon:,} need up to {needed:,}"
    )


class Rows(NamedTuple):
    """Rollouts that go on: their observations, numbers and last actions."""

    obs: Tensor
    number: Tensor
    action: Tensor | None

    def split(self, size: int) -> Iterator[Rows]:
        """Yield the rows in chunks."""
        for start in range(0, len(self.obs), size):
            part = slice(start, start + size)
            yield Rows(self.obs[part], self.number[part], None if self.action is None else self.action[part])


@dataclass
class Wandering:
    """Random actions of some rollouts in their first steps.

    Attributes:
        actions: The space of the actions.
        num_rollouts: The rollouts with smaller numbers wander.
        num_steps: Their first steps, with random actions.
        hold_steps: Steps for which each random action is held.
    """

    actions: ActionSpec
    num_rollouts: int
    num_steps: int
    hold_steps: int

    def replace(self, action: Tensor, rows: Rows, step: int, generator: torch.Generator) -> Tensor:
        """Return the actions of a step, in which the rollouts that wander have random ones."""
        wanders = rows.number < self.num_rollouts
        if step >= self.num_steps or not bool(wanders.any()):
            return action
        random = rows.action
        if random is None or step % self.hold_steps == 0:
            random = self.actions.sample_rows(len(action), generator)
        return torch.where(wanders[:, None], random, action)


def wandering(
    options: ModelRolloutOptions, horizon: int, actions: ActionSpec, hold_steps: int
) -> Wandering | None:
    """Return how some rollouts wander in their first half, or None if none does."""
    count = round(options.random_fraction * options.num_rollout)
    return Wandering(actions, count, horizon // 2, hold_steps) if count > 0 and horizon > 1 else None


def generate(
    model: EnvironmentModel,
    policy: Policy,
    starts: Tensor,
    horizon: int,
    sink: Callable[[Transitions], None],
    generator: torch.Generator,
    regions: Mapping[str, Region] = EVERYWHERE,
    wandering: Wandering | None = None,
) -> dict[str, float]:
    """Roll the policy out in the model and pass the transitions of every step to `sink`.

    A rollout ends with a predicted termination (Source: the page, step 3.2), and before a prediction outside
    of a region. `starts` are observations of shape (N, O); the first rollouts may wander. `sink` gets the
    first step of all rollouts, then the second and so on, each in one or more chunks.

    Returns:
        The number of generated transitions, and of rollouts that ended at the border of each region; with a
        region of certain predictions also how long rollouts are.

    Raises:
        Diverged: A prediction is not finite and no region of plausible ones is given, or none is plausible.
    """
    counts = {"generated": 0, "implausible": 0, **dict.fromkeys(regions, 0)}
    chunk_size = ROWS_AT_ONCE_ON_CPU if starts.device.type == "cpu" else len(starts)
    rows = Rows(starts, torch.arange(len(starts), device=starts.device), None)
    num_generated = []
    with torch.inference_mode():
        for step in range(horizon):
            survivors, num_before = [], counts["generated"]
            for chunk in rows.split(chunk_size):
                action, number = policy(chunk.obs, explore=generator), chunk.number
                if wandering is not None:
                    action = wandering.replace(action, chunk, step, generator)
                transitions = model.step(chunk.obs, action, generator)
                if "implausible" not in regions:
                    _check_finite(transitions)
                transitions, number = _inside(regions, transitions, number, counts)
                sink(transitions)
                counts["generated"] += len(transitions)
                on = transitions.terminated == 0
                survivors.append(Rows(transitions.next_obs[on], number[on], transitions.action[on]))
            num_generated.append(counts["generated"] - num_before)
            rows = Rows(*map(torch.cat, zip(*survivors, strict=True)))
            if len(rows.obs) == 0:
                break
    if counts["generated"] == 0 and counts["implausible"] == len(starts):
        raise Diverged(f"none of the model's {len(starts)} predictions is plausible")
    by_name = {f"rollout/num_{name}": count for name, count in counts.items()}
    return by_name | lengths(num_generated, counts.get("uncertain"), len(starts))


def _inside(
    regions: Mapping[str, Region], transitions: Transitions, number: Tensor, counts: dict[str, int]
) -> tuple[Transitions, Tensor]:
    """Return the transitions within all regions, and their rollouts; count those outside of each."""
    for name, region in regions.items():
        inside = region.contains(transitions, number)
        if not bool(inside.all()):  # else there is nothing to copy
            transitions, number = transitions[inside], number[inside]
            counts[name] += len(inside) - len(transitions)
    return transitions, number


def lengths(num_generated: Sequence[int], num_uncertain: int | None, num_rollouts: int) -> dict[str, float]:
    """Return the share of uncertain rollouts, and mean, median, first and last decile of all lengths.

    `num_generated` are the transitions by step: as many rollouts are longer than the number of the step.
    Empty if uncertainty has no limit.
    """
    if num_uncertain is None:
        return {}
    quantiles = {
        f"rollout/length_quantile_{percent}": sum(
            100 * count > (100 - percent) * num_rollouts for count in num_generated
        )
        for percent in (10, 50, 90)
    }
    mean, share = sum(num_generated) / num_rollouts, num_uncertain / num_rollouts
    return {"rollout/uncertain_share": share, "rollout/length_mean": mean, **quantiles}


def _check_finite(transitions: Transitions) -> None:
    for name in ("action", "next_obs", "reward", "terminated"):
        # A sum is not finite if any of its terms is not, and costs less than a test of each.
        if not math.isfinite(getattr(transitions, name).double().sum()):
            raise Diverged(f"{name} is not finite in a rollout")
