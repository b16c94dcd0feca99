"""Fitting the environment model to real experience: hold-out set, epochs, mini-batches and elites.

Knows learned functions only by their examples and losses, and experience only as transitions.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mbpo_cli.failures import Diverged, Stopped
from mbpo_cli.models.bootstrap import Bootstrap
from mbpo_cli.models.early_stopping import EarlyStopping, SignificantStopping, Stopping
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.function import LearnedFunction
from mbpo_cli.models.regression import Regression
from mbpo_cli.nn.compilation import interruptible
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
        "fraction of the real transitions in the hold-out set, which measures errors and ranks members",
        low=0,
        high=0.9,
    )
    holdout_max: int = option("largest size of the hold-out set", low=1)
    patience: int | None = option(
        "early stopping: epochs in a row without a smaller hold-out error of any member, more than which end "
        "a function's fit and restore each member's best weights; null = no early stopping",
        low=0,
    )
    improvement: float = option(
        "fraction by which a hold-out error must be below the member's best to count as smaller",
        low=0,
        high=1,
    )
    min_epochs: int = option("early stopping: epochs before it may end a fit", low=1)
    keep_small_gains: bool = option(
        "early stopping: best weights are those of the smallest hold-out error; false = of the last one that "
        "counts as smaller, as in MBPO's code"
    )

    significance: float | None = option(
        "early stopping of transition and reward functions by a paired test on the hold-out set: weights are "
        "better if the ensemble's errors are lower with a p-value below this, epochs are in vain if that is "
        "0.5 or more; null = by the error of each member",
        above=0,
        high=0.5,
    )
    restart_optimizer: bool = option("begin each fit with a new optimizer; false = it keeps its state")
    bootstrap: bool = option(
        "weight each transition in the loss of each transition function by a number that is drawn once from "
        "an exponential distribution, so that members differ where data are few"
    )

    def __post_init__(self) -> None:
        if self.patience is not None and self.holdout_ratio == 0:
            raise ValueError(f"patience={self.patience}: early stopping needs holdout_ratio greater than 0")

    def least_epochs(self, num_epochs: int) -> int:
        """Return how many of at most `num_epochs` epochs a fit takes at least."""
        return (
            num_epochs if self.patience is None else min(num_epochs, max(self.patience + 1, self.min_epochs))
        )


class ModelFitter:
    """Fits models to the contents of the real buffer.

    Every member of an ensemble is trained on all training data, each in its own order, and maybe with weights
    of its own.

    Every buffer slot draws a random number once, and the slots with the smallest numbers are held out. As the
    buffer grows, `holdout_max` may move a slot from the hold-out set to the training data, but never back: a
    warm-started model is never tested on what it was trained on.
    """

    def __init__(self, options: ModelTrainingOptions, capacity: int, generator: torch.Generator) -> None:
        self.options = options
        self.generator = generator
        self._number_of_slot = torch.rand(capacity, generator=generator, device=generator.device)
        self._bootstrap = Bootstrap(generator) if options.bootstrap else None

    def fit(
        self,
        model: EnvironmentModel,
        data: Transitions,
        num_epochs: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Metrics:
        """Train every learned function of the model, from its present weights, and choose the elites.

        `data` holds all real transitions by slot. Each of at most `num_epochs` epochs trains the transition
        functions, then reward, then is-done. `should_stop` is asked before every mini-batch.

        Returns:
            The loss of each function, averaged over its members and its last epoch; its number of epochs; the
            hold-out error of each transition function; and how well ends are predicted on the hold-out set.

        Raises:
            Stopped: `should_stop` returned True; model and fitter are as they were before.
            Diverged: A loss is not finite.
        """
        training, held_out = self.split(len(data))
        model_before, fitter_before = copy.deepcopy((model.state_dict(), self.state_dict()))
        try:
            with interruptible(should_stop):
                metrics = self._train(model, data, (training, held_out), num_epochs, should_stop)
        except Stopped:
            model.load_state_dict(model_before)
            self.load_state_dict(fitter_before)
            raise
        metrics |= model.calibrate(data, data[held_out])
        if len(held_out) > 0:
            with torch.no_grad():
                error_M = model.transition.network.errors(*model.transition.examples(data[held_out]))
                if model.transition.is_trained:
                    model.transition.elect(error_M)
                metrics |= model.relative_errors(data, data[held_out], error_M)
            metrics["model/holdout_error"] = error_M.mean()
            metrics |= {f"model/holdout_error_member_{m}": error for m, error in enumerate(error_M)}
        return metrics

    def split(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return the training slots and the hold-out slots among the first `num_rows`."""
        numbers = self._number_of_slot[:num_rows]
        low = (numbers < self.options.holdout_ratio).nonzero()[:, 0]
        is_held_out = torch.zeros(num_rows, dtype=torch.bool, device=numbers.device)
        is_held_out[low[numbers[low].argsort()[: self.options.holdout_max]]] = True
        training, held_out = (~is_held_out).nonzero()[:, 0], is_held_out.nonzero()[:, 0]
        # A few rows may all be in the hold-out set; then they are the training data.
        return (training, held_out) if len(training) > 0 else (held_out, training)

    def _train(
        self,
        model: EnvironmentModel,
        data: Transitions,
        split: tuple[Tensor, Tensor],
        num_epochs: int,
        should_stop: Callable[[], bool],
    ) -> dict[str, Tensor | float]:
        """Train every learned function until its last epoch or its early stopping."""
        running, (training, held_out) = model.learned, split
        examples = {name: part.examples(data[training]) for name, part in running.items()}
        importance = {}
        if self._bootstrap is not None and "transition" in running:
            weights_NM = self._bootstrap.weights(len(data), model.transition.network.num_members)
            importance["transition"] = weights_NM[training].T
        for name, part in running.items():
            if not part.is_pretrained:  # its weights fit its normalization
                part.fit_normalizers(*examples[name])
            if self.options.restart_optimizer:
                part.optimizer.reset()
        found = {name: self._stopping(part, data[held_out]) for name, part in running.items()}
        stopping = {name: stop for name, stop in found.items() if stop is not None}
        metrics: dict[str, Tensor | float] = {}
        for epoch in range(num_epochs):
            for name, part in list(running.items()):
                losses_M = self._train_epoch(part, *examples[name], importance.get(name), should_stop)
                metrics[f"model/{name}_loss"] = losses_M.mean()
                metrics[f"model/{name}_epochs"] = epoch + 1
                if name in stopping and stopping[name].is_over():
                    del running[name]
        for stop in stopping.values():
            stop.restore_best()
        return metrics

    def _stopping(self, part: LearnedFunction, held_out: Transitions) -> Stopping | None:
        """Return what ends the fit of a function early, or None."""
        options = self.options
        if options.patience is None or not part.stops_early or len(held_out) == 0:
            return None
        examples = part.examples(held_out)
        if options.significance is not None and isinstance(part.network, Regression):
            return SignificantStopping(part.network, examples, options.patience, options.significance)
        limits = options.patience, options.improvement, options.min_epochs, options.keep_small_gains
        return EarlyStopping(part.network, examples, *limits)

    def _train_epoch(
        self,
        part: LearnedFunction,
        inputs_NI: Tensor,
        targets_ND: Tensor,
        importance_MN: Tensor | None,
        should_stop: Callable[[], bool],
    ) -> Tensor:
        """Train one function for an epoch and return each member's mean loss, shape (M,)."""
        losses = []
        for index_MB in self.mini_batches(len(inputs_NI), part.network.num_members):
            if should_stop():
                raise Stopped
            importance_MB = None if importance_MN is None else importance_MN.gather(1, index_MB)
            batch = inputs_NI[index_MB], targets_ND[index_MB]
            losses.append(part.learn(*batch, self.generator, importance_MB))
        loss_M = torch.stack(losses).mean(0)
        if not bool(torch.isfinite(loss_M).all()):  # once per epoch, because it synchronizes a GPU
            raise Diverged(f"a loss of the model is not finite: {loss_M.tolist()}")
        return loss_M

    def mini_batches(self, num_rows: int, num_members: int) -> Iterator[Tensor]:
        """Return one epoch's row numbers, shape (M, B): slices of one shuffle per member.

        'all' yields every row once; the last batch may be smaller. A number yields that many full batches,
        with a new shuffle whenever the rows are used up.
        """
        size, count = min(self.options.mini_batch_size, num_rows), self.options.num_mini_batches
        shuffles = (self._shuffle(num_rows, num_members) for _ in itertools.count())
        if count == "all":
            return iter(torch.split(next(shuffles), size, dim=1))
        num_used = num_rows // size * size
        batches = (torch.split(shuffled[:, :num_used], size, dim=1) for shuffled in shuffles)
        return itertools.islice(itertools.chain.from_iterable(batches), count)

    def _shuffle(self, num_rows: int, num_members: int) -> Tensor:
        keys = torch.rand(num_members, num_rows, generator=self.generator, device=self.generator.device)
        return keys.argsort(dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random stream; the split follows from the seed."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.generator.set_state(state["generator"])
