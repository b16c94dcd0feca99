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
from mbpo_cli.models.early_stopping import EarlyStopping
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
    patience: int | None = option(
        "epochs that may pass without a smaller hold-out error of any member before a function's fit "
        "stops; the best weights of each member are restored then; null = no early stopping",
        low=0,
    )
    improvement: float = option(
        "share by which an error must be below a member's best to count as smaller", low=0, high=1
    )

    def __post_init__(self) -> None:
        """Check what no single option can tell."""
        if self.patience is not None and self.holdout_ratio == 0:
            raise ValueError(f"patience={self.patience}: early stopping needs holdout_ratio greater than 0")


class Stopped(Exception):
    """A fit was told to stop."""


class ModelFitter:
    """Fits models to the contents of the real buffer.

    Every network of an ensemble is trained on all training data, each in its own order (no
    bootstrap). Each slot of the buffer draws a lot once, and the lowest are held out: among more
    data than that takes, some are trained on later, but what was trained on is never held out,
    or a warm-started model would be tested on it.
    """

    def __init__(self, options: ModelTrainingOptions, capacity: int, generator: torch.Generator) -> None:
        """Draw the lots of a buffer of that capacity, on the generator's device."""
        self.options = options
        self.generator = generator
        self._lots = torch.rand(capacity, generator=generator, device=generator.device)

    def split(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return the slots for training and those held out, of the first `num_rows`."""
        lots = self._lots[:num_rows]
        low = (lots < self.options.holdout_ratio).nonzero()[:, 0]
        held_out = low[lots[low].argsort()[: self.options.holdout_max]].sort().values
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
            num_epochs: Epochs at most, each: transition functions, then reward, then is-done.
            should_stop: Asked before every mini-batch.

        Returns:
            Each function's loss, averaged over members and its last epoch, the number of its epochs,
            and each transition function's hold-out error.

        Raises:
            Stopped: It was to stop; model and fitter are as they were before.
        """
        training, held_out = self.split(len(data))
        examples = {name: part.examples(data[training]) for name, part in model.learned.items()}
        before = copy.deepcopy((model.state_dict(), self.state_dict()))
        for name, part in model.learned.items():
            part.network.fit_normalizers(*examples[name])
        watched = self._watched(model, data[held_out])
        learning = dict(model.learned)
        metrics: dict[str, Tensor | float] = {}
        try:
            for epoch in range(num_epochs):
                for name, part in model.learned.items():
                    if name not in learning:
                        continue
                    loss_M = self._train_epoch(part, *examples[name], should_stop)
                    metrics[f"model/{name}_loss"] = loss_M.mean()
                    metrics[f"model/{name}_epochs"] = epoch + 1
                    if name in watched and watched[name].is_over():
                        del learning[name]
        except Stopped:
            model.load_state_dict(before[0])
            self.load_state_dict(before[1])
            raise
        for each in watched.values():
            each.restore_best()
        if len(held_out) > 0:
            with torch.no_grad():
                error_M = model.transition.network.errors(*model.transition.examples(data[held_out]))
            model.transition.elect(error_M)
            metrics["model/holdout_error"] = error_M.mean()
            metrics |= {f"model/holdout_error_member_{m}": error for m, error in enumerate(error_M)}
        return metrics

    def _watched(self, model: EnvironmentModel, held_out: Transitions) -> dict[str, EarlyStopping]:
        """Return what stops the fit of each function early, if anything does."""
        patience, improvement = self.options.patience, self.options.improvement
        if patience is None or len(held_out) == 0:
            return {}
        return {
            name: EarlyStopping(part, part.examples(held_out), patience, improvement)
            for name, part in model.learned.items()
        }

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
            losses.append(part.learn(inputs_NI[index_MB], targets_ND[index_MB]))
        loss_M = torch.stack(losses).mean(0)
        if not bool(torch.isfinite(loss_M).all()):  # asked once an epoch: a GPU has to be waited for
            raise Diverged(f"a loss in the model is not finite: {loss_M.tolist()}")
        return loss_M

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
