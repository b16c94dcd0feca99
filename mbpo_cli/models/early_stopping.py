"""Early stopping: every member keeps the weights with which it erred least on what it was not trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from mbpo_cli.models.function import LearnedFunction


class EarlyStopping:
    """Watches one learned function during one fit.

    Source: MBPO's code, which compares a member's hold-out error with its best of this fit, counts what
    improves on it by more than a share, and stops when too many epochs have passed without any.
    """

    def __init__(
        self, part: LearnedFunction, examples: tuple[Tensor, Tensor], patience: int, improvement: float
    ) -> None:
        """Watch `part`.

        Args:
            part: What is fitted.
            examples: Inputs (N, I) and targets (N, D) that were held out.
            patience: Epochs that may pass without an improvement of any member.
            improvement: Share of its best error by which a member must improve.
        """
        self._part, self._examples = part, examples
        self._patience, self._share = patience, 1 - improvement
        self._parameters = list(part.network.parameters())
        self._best = [parameter.detach().clone() for parameter in self._parameters]
        device = self._parameters[0].device
        self._best_error_M = torch.full((part.network.num_members,), torch.inf, device=device)
        self._epochs_without = 0

    @torch.no_grad()
    def is_over(self) -> bool:
        """Look at the members after an epoch; tell whether to stop."""
        error_M = self._part.network.errors(*self._examples)
        improved_M = error_M < self._best_error_M * self._share
        self._best_error_M = torch.where(improved_M, error_M, self._best_error_M)
        for best, parameter in zip(self._best, self._parameters, strict=True):
            best[improved_M] = parameter[improved_M]
        self._epochs_without = 0 if bool(improved_M.any()) else self._epochs_without + 1
        return self._epochs_without > self._patience

    @torch.no_grad()
    def restore_best(self) -> None:
        """Give every member its best weights back; the optimiser stays as it is."""
        for best, parameter in zip(self._best, self._parameters, strict=True):
            parameter.copy_(best)
