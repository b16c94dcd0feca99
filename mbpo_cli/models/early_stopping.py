"""Early stopping of a fit on the hold-out error, with the best weights of every member."""

from __future__ import annotations

import torch
from torch import Tensor

from mbpo_cli.models.function import LearnedFunction


class EarlyStopping:
    """Tracks the hold-out error of each member of a learned function during one fit.

    Source: MBPO's code. A member improves if its error falls below its best of this fit by a given fraction.
    The fit stops if no member improves for too many epochs.

    Args:
        part: The function that is fitted.
        examples: Hold-out inputs (N, I) and targets (N, D).
        patience: Largest number of epochs in a row without an improvement of any member.
        improvement: Fraction of its best error by which a member must improve.
    """

    def __init__(
        self, part: LearnedFunction, examples: tuple[Tensor, Tensor], patience: int, improvement: float
    ) -> None:
        self._network, self._examples = part.network, examples
        self._patience, self._factor = patience, 1 - improvement
        self._parameters = list(part.network.parameters())
        self._best = [parameter.detach().clone() for parameter in self._parameters]
        device = self._parameters[0].device
        self._best_error_M = torch.full((part.network.num_members,), torch.inf, device=device)
        self._num_bad_epochs = 0

    @torch.no_grad()
    def is_over(self) -> bool:
        """Evaluate the members after an epoch; return True if the fit should stop."""
        error_M = self._network.errors(*self._examples)
        improved_M = error_M < self._best_error_M * self._factor
        self._best_error_M = torch.where(improved_M, error_M, self._best_error_M)
        for best, parameter in zip(self._best, self._parameters, strict=True):
            best[improved_M] = parameter[improved_M]
        self._num_bad_epochs = 0 if bool(improved_M.any()) else self._num_bad_epochs + 1
        return self._num_bad_epochs > self._patience

    @torch.no_grad()
    def restore_best(self) -> None:
        """Restore the best weights of every member; the optimizer keeps its state."""
        for best, parameter in zip(self._best, self._parameters, strict=True):
            parameter.copy_(best)
