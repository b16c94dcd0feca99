"""Fitting the environment model to real experience: epochs, mini-batches, hold-out and elites.

Knows learned functions only by their examples and losses, and experience only as transitions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mbpo_cli.failures import Diverged
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.function import LearnedFunction
from mbpo_cli.options import option
from mbpo_cli.types import Metrics, Transitions


@dataclass
class ModelTrainingOptions:
    """How the environment model is fitted: MATLAB's training options of the model."""

    num_mini_batches: int | Literal["all"] = option(
        "mini-batches per epoch, or 'all': one pass through the data", low=1, matlab="NumMiniBatches"
    )
    mini_batch_size: int = option(
        "transitions in a mini-batch of each network", low=1, matlab="MiniBatchSize"
    )
    holdout_ratio: float = option(
        "share of real transitions kept from training, to measure the error and choose elites",
        low=0,
        high=0.9,
    )
    holdout_max: int = option("at most so many transitions are held out", low=1)


class Stopped(Exception):
    """A fit was told to stop."""


class ModelFitter:
    """Fits models to the contents of the real buffer.

    Every network of an ensemble is trained on all training data, each in its own order (no
    bootstrap). Which slots of the buffer are held out is drawn once: a transition keeps its role
    for life, or a warm-started model would be tested on what it was trained on.
    """

    def __init__(self, options: ModelTrainingOptions, capacity: int, generator: torch.Generator) -> None:
        """Draw the hold-out slots of a buffer of that capacity, on the generator's device."""
        self.options = options
        self.generator = generator
        lots = torch.rand(capacity, generator=generator, device=generator.device)
        self._held_out = lots < options.holdout_ratio

    def split(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return the slots for training and those held out, of the first `num_rows`."""
        held_out = self._held_out[:num_rows].nonzero()[:, 0][: self.options.holdout_max]
        is_training = torch.ones(num_rows, dtype=torch.bool, device=held_out.device)
        is_training[held_out] = False
        training = is_training.nonzero()[:, 0]
        return (training, held_out) if len(training) > 0 else (held_out, training)

    def fit(
        self,
        model: EnvironmentModel,
        data: Transitions,
        num_epochs: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Metrics:
        """Train every learned function of the model, warm-started, and choose the elites.

        Args:
            model: The model; parts that are known or whose learn rate is 0 are left alone.
            data: All real transitions by slot.
            num_epochs: Epochs, each: transition functions, then reward, then is-done.
            should_stop: Asked before every mini-batch.

        Returns:
            Each function's loss, averaged over members and the last epoch, and each transition
            function's hold-out error.

        Raises:
            Stopped: It was to stop; model and fitter are as they were before.
        """
        training, held_out = self.split(len(data))
        examples = {name: part.examples(data[training]) for name, part in model.learned.items()}
        before = copy.deepcopy((model.state_dict(), self.state_dict()))
        for name, part in model.learned.items():
            part.network.fit_normalizers(*examples[name])
        metrics: dict[str, Tensor | float] = {}
        try:
            for _ in range(num_epochs):
                for name, part in model.learned.items():
                    loss_M = self._train_epoch(part, *examples[name], should_stop)
                    metrics[f"model/{name}_loss"] = loss_M.mean()
        except Stopped:
            model.load_state_dict(before[0])
            self.load_state_dict(before[1])
            raise
        if len(held_out) > 0:
            with torch.no_grad():
                error_M = model.transition.network.squared_error(*model.transition.examples(data[held_out]))
            model.transition.elect(error_M)
            metrics["model/holdout_error"] = error_M.mean()
            metrics |= {f"model/holdout_error_member_{m}": error for m, error in enumerate(error_M)}
        return metrics

    def _train_epoch(
        self,
        part: LearnedFunction,
        inputs_NI: Tensor,
        targets_ND: Tensor,
        should_stop: Callable[[], bool],
    ) -> Tensor:
        """Train one function for an epoch and return each member's mean loss, shape (M,)."""
        losses = []
        for index_MB in self.mini_batches(len(inputs_NI), part.network.num_members):
            if should_stop():
                raise Stopped
            loss_M, objective = part.network.losses(inputs_NI[index_MB], targets_ND[index_MB])
            part.optimizer.minimize(objective)
            losses.append(loss_M.detach())
            if not bool(torch.isfinite(losses[-1]).all()):
                raise Diverged(f"a loss in the model is not finite: {losses[-1].tolist()}")
        return torch.stack(losses).mean(0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random stream; the held-out slots follow from the seed."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.generator.set_state(state["generator"])

    def mini_batches(self, num_rows: int, num_members: int) -> Iterator[Tensor]:
        """Yield one epoch's row numbers, shape (M, B): slices of a shuffle per member.

        'all' yields every row once, the last batch being smaller; a number yields so many full
        batches, shuffling anew when the rows are used up.
        """
        size = min(self.options.mini_batch_size, num_rows)
        if self.options.num_mini_batches == "all":
            yield from torch.split(self._shuffle(num_rows, num_members), size, dim=1)
            return
        remaining = self.options.num_mini_batches
        while remaining > 0:
            shuffled = self._shuffle(num_rows, num_members)
            batches = torch.split(shuffled[:, : num_rows // size * size], size, dim=1)[:remaining]
            yield from batches
            remaining -= len(batches)

    def _shuffle(self, num_rows: int, num_members: int) -> Tensor:
        lots = torch.rand(num_members, num_rows, generator=self.generator, device=self.generator.device)
        return lots.argsort(dim=1)
