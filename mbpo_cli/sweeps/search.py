"""A search for the values with the greatest score: Optuna's studies, asked and told.

Knows studies and the directories of trials; does not know what runs them, nor Hydra.
"""

from __future__ import annotations

import logging
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mbpo_cli.failures import Busy, ConfigError
from mbpo_cli.seeding import sequence
from mbpo_cli.storage.files import lock, unlock, write_whole
from mbpo_cli.storage.records import STOP, evaluations
from mbpo_cli.sweeps.jobs import Job

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)

ASK_LOCK, TRIAL_LOCK = "search.lock", "trial.lock"
# What is noted with a trial: its directory, and the number of a dead one that it goes on with.
FOLDER, CONTINUES = "folder", "continues"
WATCH_SECONDS = 1.0


@dataclass
class Trial:
    """Values that are being tried, one run for each seed.

    Attributes:
        trial: Optuna's part.
        folder: The name of its directory, where those of its runs are.
        jobs: Its runs.
        is_pruned: Whether its runs were told to stop.
    """

    trial: optuna.Trial
    folder: str
    jobs: list[Job] = field(default_factory=list)
    is_pruned: bool = False

    def score(self) -> float | None:
        """Return the mean score of its runs, or None while one has none."""
        scores = [job.score for job in self.jobs]
        return statistics.fmean(scores) if None not in scores else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Best:
    """The best of a search.

    Attributes:
        score: Mean over its seeds.
        path: Where its runs are.
        values: What was found.
    """

    score: float
    path: Path
    values: dict[str, Any]

    @property
    def text(self) -> str:
        """What ends a search."""
        chosen = " ".join(f"{key}={value}" for key, value in self.values.items())
        return f"best score {self.score:.1f} in {self.path}\n  {chosen}"


class Search:
    """A study that any number of processes work on, now or later.

    Attributes:
        study: Optuna's study.
    """

    def __init__(
        self,
        path: Path,
        storage: str,
        study_name: str,
        space: Mapping[str, BaseDistribution],
        constants: Sequence[str],
        sampler_seed: int,
        num_unpruned_steps: int,
    ) -> None:
        """Open the study, or begin it.

        Args:
            path: Directory of the search.
            storage: URL of a database, or a path that ends in `.journal`.
            study_name: Its name there.
            space: What is searched, by key.
            constants: Overrides of all trials, which must be those with which the study began.
            sampler_seed: Feeds the choice of values.
            num_unpruned_steps: Environment steps before which nothing is pruned.

        Raises:
            ConfigError: The study has other constants, or other values to choose from, or cannot be opened.
        """
        self.path = path
        self._space = dict(space)
        self._sampler_seed = sampler_seed
        path.mkdir(parents=True, exist_ok=True)
        backend: Any = storage
        try:
            if storage.endswith(".journal"):
                backend = optuna.storages.JournalStorage(JournalFileBackend(storage))
            self.study = optuna.create_study(
                storage=backend,
                study_name=study_name,
                direction="maximize",
                load_if_exists=True,
                # The first trials are compared with nothing, and early steps say little about the end.
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=num_unpruned_steps),
            )
        except Exception as error:  # of whatever serves that storage
            raise ConfigError(f"hydra.sweeper.storage={storage}: {type(error).__name__}: {error}") from error
        asked = {
            "constants": sorted(constants),
            "space": {key: optuna.distributions.distribution_to_json(d) for key, d in sorted(space.items())},
        }
        known = self.study.user_attrs.get("asked")
        if known is None:
            self.study.set_user_attr("asked", asked)
        elif known != asked:
            raise ConfigError(
                f"hydra.sweep.dir={path}: holds a search over other values: {_difference(known, asked)}"
            )

    def run(
        self,
        num_trials: int,
        num_at_a_time: int,
        jobs_of: Callable[[str, Mapping[str, Any]], list[Job]],
        launch: Callable[[list[Job]], object],
        prune: bool,
    ) -> None:
        """Try values until there are so many trials, over all processes and starts.

        Args:
            num_trials: Trials in the end: completed, pruned and failed ones.
            num_at_a_time: Trials at a time.
            jobs_of: From the name of a trial's directory and its values to its runs.
            launch: Runs jobs, and returns when all have ended.
            prune: Whether to stop trials that are worse than the median of the others.
        """
        while True:
            with self._asked(num_trials, num_at_a_time) as trials:
                if not trials:
                    return
                trials = [trial for trial in trials if self._has_jobs(trial, jobs_of)]
                jobs = [job for trial in trials for job in trial.jobs if job.score is None]
                with _watched(trials, prune):
                    launch(jobs)
                for trial in trials:
                    self._tell(trial)

    @property
    def num_trials(self) -> int:
        """Trials so far; one that died and was queued again counts once."""
        trials = self.study.get_trials(deepcopy=False)
        died = {trial.user_attrs.get(CONTINUES) for trial in trials}
        return sum(trial.state != TrialState.WAITING and trial.number not in died for trial in trials)

    def best(self) -> Best | None:
        """Return the trial with the greatest score, and write it to `best.yaml`; None before the first."""
        try:
            trial = self.study.best_trial
        except ValueError:  # none is complete
            return None
        best = Best(self.study.best_value, self.path / trial.user_attrs[FOLDER], dict(trial.params))
        write_whole(self.path / "best.yaml", yaml.safe_dump(asdict(best) | {"path": str(best.path)}).encode())
        return best

    @contextmanager
    def _asked(self, num_trials: int, num_at_a_time: int) -> Iterator[list[Trial]]:
        """Ask for trials as long as there are some left; nobody else works on them within the context."""
        locks: list[int] = []
        trials: list[Trial] = []
        try:
            guard = lock(self.path / ASK_LOCK, wait=True)
            try:
                self._queue_dead_again()
                for _ in range(min(num_at_a_time, num_trials - self.num_trials)):
                    seed = sequence(self._sampler_seed, "search", self.num_trials).generate_state(1)
                    # Seeded for each trial, the same values are asked for wherever a search was interrupted.
                    self.study.sampler = optuna.samplers.TPESampler(seed=int(seed[0]))
                    trial = self.study.ask(self._space)
                    folder = trial.user_attrs.get(FOLDER, _folder(trial.number))
                    trial.set_user_attr(FOLDER, folder)
                    (self.path / folder).mkdir(exist_ok=True)
                    locks.append(lock(self.path / folder / TRIAL_LOCK))
                    trials.append(Trial(trial, folder))
            finally:
                unlock(guard)
            yield trials
        finally:
            for descriptor in locks:
                unlock(descriptor)

    def _queue_dead_again(self) -> None:
        """Queue the trials again whose process is gone; their runs go on from their checkpoints."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            folder = trial.user_attrs.get(FOLDER, _folder(trial.number))
            try:
                (self.path / folder).mkdir(exist_ok=True)
                unlock(lock(self.path / folder / TRIAL_LOCK))
            except Busy:
                continue
            self.study.enqueue_trial(trial.params, {FOLDER: folder, CONTINUES: trial.number})
            self.study.tell(trial.number, state=TrialState.FAIL)
            log.info("trial %d had died, and is queued again", trial.number)

    def _has_jobs(self, trial: Trial, jobs_of: Callable[[str, Mapping[str, Any]], list[Job]]) -> bool:
        """Give a trial its runs; one whose values do not go together has failed."""
        try:
            trial.jobs = jobs_of(trial.folder, trial.trial.params)
        except ConfigError as error:
            folder = self.path / trial.folder
            if any(folder.glob("*/config.yaml")):  # begun with other values
                raise ConfigError(f"{error}; without {folder} the trial begins anew") from error
            self.study.tell(trial.trial, state=TrialState.FAIL)
            log.warning("trial %d: failed: %s", trial.trial.number, error)
        return bool(trial.jobs)

    def _tell(self, trial: Trial) -> None:
        score = trial.score()
        if score is not None:
            state, outcome = TrialState.COMPLETE, f"score {score:.1f}"
        elif trial.is_pruned:
            state, outcome = TrialState.PRUNED, "pruned,"
        else:
            state, outcome = TrialState.FAIL, "failed,"
        self.study.tell(trial.trial, score, state)
        log.info("trial %d: %s with %s", trial.trial.number, outcome, trial.trial.params)


def _folder(number: int) -> str:
    return f"trial_{number:04d}"


def _difference(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    old, new = (set(map(str, [*each["constants"], *each["space"].items()])) for each in (known, asked))
    return ", ".join([f"not {item}" for item in sorted(old - new)] + sorted(new - old))


@contextmanager
def _watched(trials: Sequence[Trial], prune: bool) -> Iterator[None]:
    """Report the evaluations of running trials to their study, and stop those to be pruned."""
    is_over = threading.Event()

    def watch() -> None:
        reported: dict[int, int] = {}
        while not is_over.wait(WATCH_SECONDS):
            for trial in trials:
                if not trial.is_pruned:
                    _report(trial, reported, prune)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _report(trial: Trial, reported: dict[int, int], prune: bool) -> None:
    curves = [evaluations(job.path) for job in trial.jobs]
    common = sorted(set.intersection(*map(set, curves)))
    last = reported.get(trial.trial.number, -1)
    for step in (step for step in common if step > last):
        reported[trial.trial.number] = step
        trial.trial.report(statistics.fmean(curve[step] for curve in curves), step)
        if prune and trial.trial.should_prune():
            trial.is_pruned = True
            for job in trial.jobs:
                if job.score is None:
                    (job.path / STOP).touch()
            return
