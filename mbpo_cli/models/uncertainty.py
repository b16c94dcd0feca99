"""Where the ensemble is too uncertain for rollouts: where the predictions of its elites are too far apart.

Knows the elites; does not know rollouts or agents.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbpo_cli.models.environment_model import EnvironmentModel, Groups
from mbpo_cli.models.regions import Region
from mbpo_cli.models.regression import drawn
from mbpo_cli.options import option
from mbpo_cli.types import Metrics, Policy, Transitions

# Generations in the mean of the limit. Source: MACURA's public code.
NUM_RECENT = 2_000
# Rollouts whose first steps set the limit: enough for a quantile, and cheap.
NUM_FIRST = 1_000

# What follows is Infoprop's. Source: its public code, where information is in the units of observations.
# The precision, in deviations of the change in a step, to which a state has no more information.
PRECISION = 1e-6
# Quantiles of the information that steps from real observations lose: the limit of a step, and what the
# limit of a rollout is a multiple of.
STEP_QUANTILE, ROLLOUT_QUANTILE = 0.9999, 0.01
NUM_REAL = 10_000  # of these steps, as many as the first quantile needs

LARGEST = torch.finfo(torch.float32).max


@dataclass
class UncertaintyOptions:
    """How uncertain the model may be in rollouts."""

    max_divergence: float | None = option(
        "xi of MACURA: a rollout ends without its last prediction, and a path of training_horizon steps in "
        "front of it, where the predictions of the elites diverge more than this many times as much as at "
        "divergence_quantile of the first steps; null = no limit",
        above=0,
    )
    divergence_quantile: float = option(
        "zeta of MACURA: quantile of the divergences in the first steps of a generation, which is averaged "
        "over the last 2,000 generations",
        low=0,
        high=1,
    )
    max_lost_information: float | None = option(
        "of Infoprop: rollouts draw from the fused prediction of the elites, and end without their last "
        "prediction, and paths in front of it, where a step loses more information than all but 0.01 % of "
        "the real ones, or all steps more than this many times what 1 % of the real ones lose at most; "
        "published: 100; null = neither",
        above=0,
    )
    num_compared: int | None = option(
        "elites whose predictions are compared and fused for each row: the one that predicts it and others; "
        "null = all, as in MACURA and Infoprop, which takes longer",
        low=2,
    )


def divergence(mean_MNO: Tensor, log_variance_MNO: Tensor) -> Tensor:
    """Return the geometric Jensen-Shannon divergence of two members, averaged over all pairs, shape (N,).

    Members are Gaussians with diagonal covariance. For means m and n and variances v and w, elements sum up
    1/2 ((m - n)^2 / (2 (v + w)) + log((v + w) / 2) - (log v + log w) / 2). There may be several dimensions N.
    Source: Frauenknecht et al. 2024, "Trust the Model Where It Trusts Itself" (MACURA), simplified: means and
    variances of a pair's middle cancel out.
    """
    count = len(mean_MNO)
    one, two = torch.triu_indices(count, count, offset=1, device=mean_MNO.device)
    log_v, log_w = log_variance_MNO[one], log_variance_MNO[two]
    distance = (mean_MNO[one] - mean_MNO[two]).square() / (2 * (log_v.exp() + log_w.exp()))
    half = (log_v - log_w) / 2
    spread = (torch.logaddexp(half, -half) - math.log(2)).clamp(min=0)
    return (distance + spread).sum(-1).mean(0) / 2


class Fused(NamedTuple):
    """What members together know of the next observation, each of shape (N, O).

    Attributes:
        mean: The mean, in which members with a small variance weigh more.
        variance: The noise of the environment: the harmonic mean of the members' variances.
        between: The mean squared distance of the members' means from it: what the model does not know.
    """

    mean: Tensor
    variance: Tensor
    between: Tensor

    @property
    def remaining(self) -> Tensor:
        """The variance that is left when one member's prediction is known."""
        return self.variance * self.between / (self.variance + self.between)

    def given(self, drawn_NO: Tensor, noise_NO: Tensor) -> Tensor:
        """Draw the next observation, given a draw from one member's prediction and standard normal noise."""
        gain = self.variance / (self.variance + self.between)
        return self.mean + gain * (drawn_NO - self.mean) + noise_NO * self.remaining.sqrt()


def fused(mean_MNO: Tensor, log_variance_MNO: Tensor) -> Fused:
    """Fuse Gaussian predictions of members; there may be several dimensions N.

    Source: Frauenknecht et al. 2025, "On Rollouts in Model-Based Reinforcement Learning" (Infoprop).
    """
    precision_MNO = torch.exp(-log_variance_MNO)
    variance = 1 / precision_MNO.mean(0)
    mean = variance * (precision_MNO * mean_MNO).mean(0)
    between = (mean_MNO - mean).square().mean(0)
    return Fused(mean, variance.expand_as(mean), between)


def lost_information(remaining_NO: Tensor, unit_O: Tensor) -> Tensor:
    """Return the bits of information that a step loses by the model, shape (N, O).

    That is the entropy of a Gaussian with the remaining variance, `unit_O` being one, above `PRECISION`.
    """
    squares = 2 * math.pi * math.e * remaining_NO / (unit_O * PRECISION).square()
    return (0.5 * squares.log2()).clamp(min=0)


class Uncertainty:
    """Limits how uncertain the steps of a rollout may be, by how uncertain the model is of real ones.

    Up to two things are measured, in this order: the divergence, which is limited to `max_divergence` times a
    quantile of the divergences in the first steps of a generation, averaged over the latest generations
    (Source: MACURA, its factor xi and its quantile zeta), and the lost information of each element, which is
    limited in a step and in all steps together (Source: Infoprop).

    Args:
        options: None sets no limit.
        obs_size: O, the elements of an observation.
        device: Where the model is.
    """

    def __init__(
        self,
        options: UncertaintyOptions | None = None,
        obs_size: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self._options = options
        self.max_divergence = None if options is None else options.max_divergence
        self.max_lost_information = None if options is None else options.max_lost_information
        size = (self.max_divergence is not None) + obs_size * (self.max_lost_information is not None)
        self._obs_size, self.is_limited = obs_size, size > 0
        # They keep their place in memory, which compiled steps rely on.
        self.step_limit, self.rollout_limit = (torch.full((size,), LARGEST, device=device) for _ in range(2))
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)

    def num_compared(self, num_elites: int) -> int:
        """Return the number of elites whose predictions are compared for each row."""
        wanted = None if self._options is None else self._options.num_compared
        return min(wanted or num_elites, num_elites)

    def measured(self, mean_KNO: Tensor, log_variance_KNO: Tensor, unit_O: Tensor) -> Tensor:
        """Return how uncertain K predictions are, shape (N, C); there may be several dimensions N."""
        found = []
        if self.max_divergence is not None:
            found.append(divergence(mean_KNO, log_variance_KNO)[..., None])
        if self.max_lost_information is not None:
            found.append(lost_information(fused(mean_KNO, log_variance_KNO).remaining, unit_O))
        return torch.cat(found, -1)

    def is_certain(self, measured_NC: Tensor, earlier_NC: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return a mask of the steps within the limits, shape (N,), and the sums of their rollouts, (N, C).

        `earlier_NC` are the sums before, None in first steps. What is not finite never is within.
        """
        sum_NC = measured_NC if earlier_NC is None else earlier_NC + measured_NC
        is_within_NC = (measured_NC <= self.step_limit) & (sum_NC <= self.rollout_limit)
        return is_within_NC.all(-1), sum_NC

    @torch.no_grad()
    def fit(self, model: EnvironmentModel, real: Transitions) -> None:
        """Renew the limits of lost information after a fit, by real transitions."""
        if self.max_lost_information is None:
            return
        elites, unit_O = model.transition.elites, model.transition.network.targets.std
        rows = torch.arange(0, len(real), math.ceil(len(real) / NUM_REAL), device=elites.device)
        rows_MG = rows[: len(rows) // len(elites) * len(elites)].view(-1, len(elites)).T
        count = self.num_compared(len(elites))
        compared = model.transition.compared(real.obs[rows_MG], real.action[rows_MG], count, elites)
        lost_NO = self.measured(*compared, unit_O)[..., -self._obs_size :].flatten(0, 1)
        lost_NO = lost_NO[lost_NO.isfinite().all(1)]
        if len(lost_NO) > 0:
            for limit, quantile, factor in (
                (self.step_limit, STEP_QUANTILE, 1.0),
                (self.rollout_limit, ROLLOUT_QUANTILE, self.max_lost_information),
            ):
                # Element by element, as the number of values of a quantile is limited.
                found = torch.stack([lost_N.quantile(quantile) for lost_N in lost_NO.T])
                limit[-self._obs_size :] = factor * found

    @torch.no_grad()
    def begin(
        self, model: EnvironmentModel, policy: Policy, starts_NO: Tensor, generator: torch.Generator
    ) -> tuple[EnvironmentModel, dict[str, Region]]:
        """Begin a generation: renew the limit of the divergence.

        Returns:
            The model for its rollouts, and the region that they may not leave, by the word for those that do.
        """
        if not self.is_limited:
            return model, {}
        comparing = ComparingModel(model.transition, model.reward, model.is_done, self, len(starts_NO))
        if self._options is not None and self.max_divergence is not None:
            first = starts_NO[:NUM_FIRST]
            comparing.next_obs(first, policy(first, explore=generator), generator)
            found = comparing.measured_NC[:, 0]
            found = found[found.isfinite()]
            if len(found) > 0:
                quantile = float(found.quantile(self._options.divergence_quantile))
                self._recent.append(self.max_divergence * quantile)
                self.step_limit[0] = fmean(self._recent)
        return comparing, {"uncertain": comparing}

    @property
    def metrics(self) -> Metrics:
        """The limits; those of lost information averaged over the elements."""
        found = {}
        if self.max_divergence is not None:
            found["rollout/divergence_limit"] = self.step_limit[0].clone()
        if self.max_lost_information is not None:
            found["rollout/lost_information_limit"] = self.step_limit[-self._obs_size :].mean()
            found["rollout/lost_information_budget"] = self.rollout_limit[-self._obs_size :].mean()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the limits, and what that of the divergence is averaged from."""
        limits = {"step": self.step_limit.clone(), "rollout": self.rollout_limit.clone()}
        return {"recent": list(self._recent), **limits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._recent.clear()
        self._recent.extend(state["recent"])
        self.step_limit.copy_(state["step"])
        self.rollout_limit.copy_(state["rollout"])


@dataclass
class ComparingModel(EnvironmentModel):
    """An environment model that compares what several elites predict for each row, in one generation.

    With a limit of lost information it draws from the fused predictions, else it predicts the same as
    without. It also is the region of the steps that are certain enough, which is asked before others, right
    after each step.

    Attributes:
        measured_NC: How uncertain the last step was, shape (N, C).
    """

    uncertainty: Uncertainty
    num_rollouts: int
    measured_NC: Tensor = field(init=False)

    def __post_init__(self) -> None:
        limit = self.uncertainty.step_limit
        self._sums = torch.zeros(self.num_rollouts, len(limit), device=limit.device)

    def next_obs(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Predict the next observations, shape (N, O)."""
        elites, network = self.transition.elites, self.transition.network
        groups, count = Groups(len(obs), len(elites), generator), self.uncertainty.num_compared(len(elites))
        rows_MG = groups.rows_MG
        compared = self.transition.compared(obs[rows_MG], action[rows_MG], count, elites)
        self.measured_NC = groups.joined(self.uncertainty.measured(*compared, network.targets.std))
        (predicted_MGO, *_), (log_variance, *_) = compared
        predicted_MGO = drawn(predicted_MGO, log_variance if network.is_random else None, generator)
        if self.uncertainty.max_lost_information is not None:
            noise = torch.randn(predicted_MGO.shape, generator=generator, device=obs.device)
            predicted_MGO = fused(*compared).given(predicted_MGO, noise)
        return groups.joined(predicted_MGO)

    def contains(self, transitions: Transitions, number: Tensor) -> Tensor:
        """Return a mask of the transitions of the last step that are certain enough, shape (N,)."""
        is_certain, self._sums[number] = self.uncertainty.is_certain(self.measured_NC, self._sums[number])
        return is_certain


def penalized(
    sink: Callable[[Transitions], None], model: EnvironmentModel, penalty: float
) -> Callable[[Transitions], None]:
    """Return a sink that first lowers rewards by `penalty` times the spread of the members' predictions.

    Source: Yu et al. 2020, "MOPO: Model-based Offline Policy Optimization", section 4.2.
    """
    if penalty == 0:
        return sink

    def lowered(transitions: Transitions) -> None:
        spread = model.spread(transitions.obs, transitions.action)
        sink(replace(transitions, reward=transitions.reward - penalty * spread))

    return lowered
