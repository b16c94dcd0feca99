"""Where the ensemble is too uncertain for rollouts: where the predictions of its elites diverge.

Knows the elites; does not know rollouts or agents.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.models.environment_model import EnvironmentModel, Groups
from mbpo_cli.models.regions import Region
from mbpo_cli.options import option
from mbpo_cli.types import Metrics, Policy, Transitions

# Generations in the mean of the limit. Source: MACURA's public code.
NUM_RECENT = 2_000
# Rollouts whose first steps set the limit: enough for a quantile, and cheap.
NUM_FIRST = 1_000


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
    num_compared: int | None = option(
        "elites whose predictions are compared for each row: the one that predicts it and others; "
        "null = all, as in MACURA, which takes longer",
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


class Uncertainty:
    """Limits how far the elites' predictions may diverge, by what is usual in first steps of rollouts.

    The limit is `max_divergence` times a quantile of the divergences in the first steps of a generation,
    averaged over the latest generations. Source: MACURA, its factor xi and its quantile zeta.

    Args:
        options: None sets no limit.
        device: Where the model is.
    """

    def __init__(self, options: UncertaintyOptions | None = None, device: torch.device | None = None) -> None:
        self._options = options
        # It keeps its place in memory, which compiled steps rely on.
        self._limit = torch.full((), math.inf, device=device)
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)

    @property
    def is_limited(self) -> bool:
        """True if rollouts can end."""
        return self._options is not None and self._options.max_divergence is not None

    def num_compared(self, num_elites: int) -> int:
        """Return the number of elites whose predictions are compared for each row."""
        wanted = None if self._options is None else self._options.num_compared
        return min(wanted or num_elites, num_elites)

    def is_certain(self, divergence_N: Tensor) -> Tensor:
        """Return a mask of the divergences within the limit, shape (N,); NaN never is."""
        return divergence_N <= self._limit

    @torch.no_grad()
    def begin(
        self, model: EnvironmentModel, policy: Policy, starts_NO: Tensor, generator: torch.Generator
    ) -> tuple[EnvironmentModel, dict[str, Region]]:
        """Begin a generation: renew the limit.

        Returns:
            The model for its rollouts, and the region that they may not leave, by the word for those that do.
        """
        if self._options is None or self._options.max_divergence is None:
            return model, {}
        comparing = ComparingModel(model.transition, model.reward, model.is_done, self)
        first = starts_NO[:NUM_FIRST]
        comparing.next_obs(first, policy(first, explore=generator), generator)
        found = comparing.divergence_N[comparing.divergence_N.isfinite()]
        if len(found) > 0:
            quantile = float(found.quantile(self._options.divergence_quantile))
            self._recent.append(self._options.max_divergence * quantile)
            self._limit.fill_(fmean(self._recent))
        return comparing, {"uncertain": comparing}

    @property
    def metrics(self) -> Metrics:
        """The limit."""
        return {"rollout/divergence_limit": self._limit.clone()} if self._recent else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what the limit follows from."""
        return {"recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._recent.clear()
        self._recent.extend(state["recent"])
        self._limit.fill_(fmean(self._recent) if self._recent else math.inf)


@dataclass
class ComparingModel(EnvironmentModel):
    """An environment model that predicts the same, and compares what several elites predict for each row.

    It also is the region in which its last prediction is certain enough.

    Attributes:
        divergence_N: How far the elites' predictions in the last step diverge, shape (N,).
    """

    uncertainty: Uncertainty
    divergence_N: Tensor = field(init=False)

    def next_obs(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Predict the next observations, shape (N, O), as without the comparison."""
        elites = self.transition.elites
        groups, count = Groups(len(obs), len(elites), generator), self.uncertainty.num_compared(len(elites))
        mean_KMGO, log_variance = self.transition.compared(
            obs[groups.rows_MG], action[groups.rows_MG], count, elites
        )
        self.divergence_N = groups.joined(divergence(mean_KMGO, log_variance))
        predicted_MGO = mean_KMGO[0]
        if self.transition.network.is_random:
            noise = torch.randn(predicted_MGO.shape, generator=generator, device=obs.device)
            predicted_MGO = predicted_MGO + noise * torch.exp(0.5 * log_variance[0])
        return groups.joined(predicted_MGO)

    def contains(self, transitions: Transitions) -> Tensor:
        """Return a mask of the transitions of the last step that are certain enough, shape (N,)."""
        return self.uncertainty.is_certain(self.divergence_N)
