"""A search for the values with the highest score, with Optuna, which is asked for values and told scores.

Knows studies and the directories of trials; does not know Hydra, or what runs the trials.
"""

from __future__ import annotations

import logging
import re
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mbpo_cli.failures import Busy, ConfigError
from mbpo_cli.nn.seeding import sequence
from mbpo_cli.storage.files import lock, unlock, write_whole
from mbpo_cli.storage.records import METRICS, STOP, evaluations
from mbpo_cli.sweeps.jobs import Job, brief, is_file

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)

ASK_LOCK, TRIAL_LOCK = "search.lock", "trial.lock"
# User attributes of a trial: its directory, and the number of the dead trial that it continues.
FOLDER, CONTINUES = "folder", "continues"
WATCH_SECONDS = 1.0

JobsOf = Callable[[str, Mapping[str, Any]], list[Job]]
"""From the name of a trial's directory and its values to its jobs."""

LaunchAndWait = Callable[[list[Job]], object]
"""Runs jobs, and returns when all have ended."""


@dataclass
class Trial:
    """Values that are being tried, with one job per seed.

    Attributes:
        folder: The name of its directory.
        last_step: The last environment step whose evaluations were reported to the study.
        is_pruned: True if its jobs were asked to stop.
    """

    trial: optuna.Trial
    folder: str
    jobs: list[Job] = field(default_factory=list)
    last_step: int = -1
    is_pruned: bool = False


@dataclass(frozen=True)
class Best:
    """The best trial of a search: its mean score over the seeds, its directory, and its values by key."""

    score: float
    path: Path
    values: dict[str, Any]


@dataclass
class Search:
    """A study, new or existing, which any number of processes may share.

    Attributes:
        storage: URL of a database, or a path that ends in `.journal`.
        constants: Overrides of all trials.
        num_unpruned_steps: Number of environment steps before which no trial is pruned.

    Raises:
        ConfigError: The study has other constants or another space, or cannot be opened; or there is a link
            in its directory.
    """

    path: Path
    storage: str
    study_name: str
    space: dict[str, BaseDistribution]
    constants: Sequence[str]
    sampler_seed: int
    num_unpruned_steps: int

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for file in self.path.iterdir():
            if file.is_symlink() and not file.is_dir():
                raise ConfigError(f"hydra.sweep.dir={self.path}: {file.name} is a link; use a copy (cp -rL)")
        backend: Any = self.storage
        try:
            if self.storage.endswith(".journal"):
                backend = optuna.storages.JournalStorage(JournalFileBackend(self.storage))
            self.study = optuna.create_study(
                storage=backend,
                study_name=self.study_name,
                direction="maximize",
                load_if_exists=True,
                # The first trials have too few others to compare with, and early steps predict little.
                pruner=optuna.pruners.MedianPruner(5, n_warmup_steps=self.num_unpruned_steps),
            )
        except Exception as error:  # each storage has its own exceptions
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"hydra.sweeper.storage={self.storage}: {reason}") from error
        to_json = optuna.distributions.distribution_to_json
        asked: dict[str, Any] = {
            "constants": sorted(self.constants),
            "space": {key: to_json(values) for key, values in sorted(self.space.items())},
        }
        known = self.study.user_attrs.get("asked")
        if known is None:
            self.study.set_user_attr("asked", asked)
        elif known != asked:
            old, new = ({*each["constants"], *map(str, each["space"].items())} for each in (known, asked))
            difference = ", ".join([f"not {item}" for item in sorted(old - new)] + sorted(new - old))
            raise ConfigError(
                f"hydra.sweep.dir={self.path}: already holds a search with other values: {difference}"
            )

    def run(
        self, num_trials: int, num_parallel: int, jobs_of: JobsOf, launch: LaunchAndWait, prune: bool
    ) -> None:
        """Run trials until the study has `num_trials`, over all processes and restarts.

        Trials count whether completed, pruned or failed. With `prune`, trials that are worse than the median
        of the others are stopped.
        """
        while True:
            with self._asked(num_trials, num_parallel) as trials:
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
        """Number of trials so far; a trial that died and was queued again counts once."""
        trials = self.study.get_trials(deepcopy=False)
        died = {trial.user_attrs.get(CONTINUES) for trial in trials}
        return sum(trial.state != TrialState.WAITING and trial.number not in died for trial in trials)

    def best(self) -> Best | None:
        """Return the trial with the highest score, also written to `best.yaml`; None before the first."""
        try:
            trial = self.study.best_trial
        except ValueError:  # no trial is complete
            return None
        best = Best(self.study.best_value, self.path / _folder(trial), dict(trial.params))
        write_whole(self.path / "best.yaml", yaml.safe_dump(asdict(best) | {"path": str(best.path)}).encode())
        return best

    @contextmanager
    def _asked(self, num_trials: int, num_parallel: int) -> Iterator[list[Trial]]:
        """Ask the study for new trials, if it needs more; they stay locked inside the block."""
        trials: list[Trial] = []
        with ExitStack() as locks:
            with ExitStack() as asking:
                asking.callback(unlock, lock(self.path / ASK_LOCK, wait=True))
                self._queue_dead_again()
                for _ in range(min(num_parallel, num_trials - self.num_trials)):
                    # A seed per trial makes an interrupted search choose the same values.
                    seed = sequence(self.sampler_seed, "search", self.num_trials).generate_state(1)
                    self.study.sampler = optuna.samplers.TPESampler(seed=int(seed[0]))
                    trial = self.study.ask(self.space)
                    folder = _folder(trial)
                    trial.set_user_attr(FOLDER, folder)
                    locks.callback(unlock, self._lock(folder))
                    trials.append(Trial(trial, folder))
            yield trials

    def _lock(self, folder: str) -> int:
        (self.path / folder).mkdir(exist_ok=True)
        return lock(self.path / folder / TRIAL_LOCK)

    def _queue_dead_again(self) -> None:
        """Queue again the trials whose process has died; their jobs resume from their checkpoints."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            folder = _folder(trial)
            try:
                unlock(self._lock(folder))
            except Busy:
                continue
            self.study.enqueue_trial(trial.params, {FOLDER: folder, CONTINUES: trial.number})
            self.study.tell(trial.number, state=TrialState.FAIL)
            log.info("trial %d had died and is queued again", trial.number)

    def _has_jobs(self, trial: Trial, jobs_of: JobsOf) -> bool:
        """Make the jobs of a trial; return False and end the trial if its values are invalid together."""
        try:
            trial.jobs = jobs_of(trial.folder, trial.trial.params)
        except ConfigError as error:
            folder = self.path / trial.folder
            if any(folder.glob("*/config.yaml")):  # started with other values
                raise ConfigError(f"{error}; remove {folder} to start the trial again") from error
            self.study.tell(trial.trial, state=TrialState.FAIL)
            log.warning("trial %d: failed: %s", trial.trial.number, error)
        return bool(trial.jobs)

    def _tell(self, trial: Trial) -> None:
        scores = [job.score for job in trial.jobs if job.score is not None]
        score = None
        if len(scores) == len(trial.jobs):
            score = statistics.fmean(scores)
            state, outcome = TrialState.COMPLETE, f"score {score:.1f}"
        elif trial.is_pruned:
            state, outcome = TrialState.PRUNED, "pruned,"
        else:
            job = next(job for job in trial.jobs if job.score is None)
            state, outcome = TrialState.FAIL, f"{job.name} {job.result()[1]},"
        self.study.tell(trial.trial, score, state)
        log.info("trial %d: %s with %s", trial.trial.number, outcome, trial.trial.params)


def _folder(trial: optuna.Trial | optuna.trial.FrozenTrial) -> str:
    folder = str(trial.user_attrs.get(FOLDER, f"trial_{trial.number:04d}"))
    if not re.fullmatch(r"trial_\d+", folder):
        raise ConfigError(f"hydra.sweeper.storage: trial {trial.number} has a directory of another: {folder}")
    return folder


@contextmanager
def _watched(trials: Sequence[Trial], prune: bool) -> Iterator[None]:
    """Report the evaluations of running trials to their study, and stop trials that it prunes."""
    is_over = threading.Event()
    warnings: set[str] = set()

    def watch() -> None:
        while not is_over.wait(WATCH_SECONDS):
            for trial in trials:
                try:
                    _report(trial, prune)
                except Exception as error:  # a job may write anything; other trials are still watched
                    warning = brief(f"{trial.folder} cannot be pruned: {type(error).__name__}: {error}")
                    if warning not in warnings:
                        log.warning("%s", warning)
                    warnings.add(warning)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _report(trial: Trial, prune: bool) -> None:
    if trial.is_pruned or not all(is_file(job.path / METRICS) for job in trial.jobs):
        return
    curves = [evaluations(job.path) for job in trial.jobs]
    common = sorted(set.intersection(*map(set, curves)))
    for step in (step for step in common if step > trial.last_step):
        trial.last_step = step
        trial.trial.report(statistics.fmean(curve[step] for curve in curves), step)
        if prune and trial.trial.should_prune():
            trial.is_pruned = True
            for job in trial.jobs:
                if job.score is None and job.path.exists():
                    (job.path / STOP).touch()
            return
