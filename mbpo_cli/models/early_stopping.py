"""Early stopping of a fit on the hold-out set, with the best weights: of every member, or of the ensemble."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mbpo_cli.models.function import Network
from mbpo_cli.models.regression import Regression


class Stopping(ABC):
    """Decides after each epoch of a fit whether it should stop, and keeps the best weights."""

    def __init__(self, network: Network) -> None:
        self._parameters = list(network.parameters())
        self._best = [parameter.detach().clone() for parameter in self._parameters]

    @abstractmethod
    def is_over(self) -> bool:
        """Evaluate the network after an epoch; return True if the fit should stop."""

    @torch.no_grad()
    def restore_best(self) -> None:
        """Restore the best weights; the optimizer keeps its state."""
        for best, parameter in zip(self._best, self._parameters, strict=True):
            parameter.copy_(best)


class EarlyStopping(Stopping):
    """Tracks each member's error on hold-out inputs (N, I) and targets (N, D) during one fit.

    Source: MBPO's code. A member improves if its error falls below its best of this fit by the fraction
    `improvement`. The fit stops if no member improves for more than `patience` epochs in a row, but not
    before its epoch `min_epochs`. With `keep_small_gains`, weights of a smaller error are kept also if the
    gain is smaller: otherwise the slow progress of a long series of fits is lost.
    """

    def __init__(
        self,
        network: Network,
        examples: tuple[Tensor, Tensor],
        patience: int,
        improvement: float,
        min_epochs: int = 1,
        keep_small_gains: bool = False,
    ) -> None:
        super().__init__(network)
        self._network, self._examples = network, examples
        self._patience, self._factor = patience, 1 - improvement
        self._min_epochs, self._keep_small_gains = min_epochs, keep_small_gains
        self._num_epochs = 0
        self._best_error_M = torch.full((network.num_members,), torch.inf, device=self._parameters[0].device)
        self._kept_error_M = self._best_error_M
        self._num_bad_epochs = 0

    @torch.no_grad()
    def is_over(self) -> bool:
        """Evaluate the members after an epoch; return True if the fit should stop."""
        error_M = self._network.errors(*self._examples)
        improved_M = error_M < self._best_error_M * self._factor
        self._best_error_M = torch.where(improved_M, error_M, self._best_error_M)
        kept_M = error_M < self._kept_error_M if self._keep_small_gains else improved_M
        self._kept_error_M = torch.where(kept_M, error_M, self._kept_error_M)
        for best, parameter in zip(self._best, self._parameters, strict=True):
            best[kept_M] = parameter[kept_M]
        self._num_epochs += 1
        self._num_bad_epochs = 0 if bool(improved_M.any()) else self._num_bad_epochs + 1
        return self._num_bad_epochs > self._patience and self._num_epochs >= self._min_epochs


class SignificantStopping(Stopping):
    """Tracks the scores of an ensemble on hold-out rows during one fit.

    After each epoch, a one-sided paired test compares them with those of the best weights. If they are lower
    with a p-value below `significance`, the weights of all members become the best. The fit stops after more
    than `patience` epochs in a row whose p-value is 0.5 or more. Source: Kubo et al. 2025, public code.
    """

    def __init__(
        self, network: Regression, examples: tuple[Tensor, Tensor], patience: int, significance: float
    ) -> None:
        super().__init__(network)
        self._network, self._examples = network, examples
        self._patience, self._significance = patience, significance
        self._num_bad_epochs = 0
        self._best_scores_N = self._scores()

    @torch.no_grad()
    def is_over(self) -> bool:
        """Evaluate the ensemble after an epoch; return True if the fit should stop."""
        scores_N = self._scores()
        p_value = probability_of_no_gain(self._best_scores_N - scores_N)
        if p_value < self._significance:
            self._best = [parameter.detach().clone() for parameter in self._parameters]
            self._best_scores_N = scores_N
        self._num_bad_epochs = 0 if p_value < 0.5 else self._num_bad_epochs + 1
        return self._num_bad_epochs > self._patience

    @torch.no_grad()
    def _scores(self) -> Tensor:
        return self._network.scores(*self._examples)


def probability_of_no_gain(gains_N: Tensor) -> float:
    """Return the p-value of a one-sided z-test of whether the mean of `gains_N` is above 0."""
    count = len(gains_N)
    deviation = float(gains_N.double().std()) if count > 1 else math.nan
    mean = float(gains_N.double().mean())
    if not deviation > 0:  # equal gains, or a single row
        return 0.0 if mean > 0 else 1.0
    return 0.5 * math.erfc(mean / deviation * math.sqrt(count / 2))
