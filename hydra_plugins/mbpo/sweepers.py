"""Who decides on the jobs of a sweep: a grid of all combinations, or a search.

Translates between Hydra and `mbpo_cli.sweeps`, which knows nothing of Hydra.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, RangeSweep
from hydra.core.utils import configure_log
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.mbpo.jobs import job_of, launch, launcher_of, parallel_jobs
from mbpo_cli.failures import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from mbpo_cli.sweeps.jobs import Job

log = logging.getLogger(__name__)

# A search stops no run within this part of its steps, which tell little of the rest: 4 = a quarter.
PRUNED_AFTER = 4


class JobSweeper(Sweeper):
    """Decides on jobs, which the launcher that was chosen runs."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = launcher_of(hydra_context, task_function, config)


class GridSweeper(JobSweeper):
    """Runs every combination of the values given, but those that are done; one failure stops no other job."""

    def sweep(self, arguments: list[str]) -> list[float]:
        """Run the jobs that are not done; return the scores of all.

        Raises:
            ConfigError: A job's configuration is wrong, or another run is in its directory.
            SweepFailed: Some jobs have no score in the end.
        """
        from mbpo_cli.sweeps.jobs import SweepFailed, closing_table

        jobs = [
            job_of(self.hydra_context, self.config, overrides, number)
            for number, overrides in enumerate(self._named(combinations(arguments)))
        ]
        missing = [job for job in jobs if job.score is None]
        num_earlier = len(jobs) - len(missing)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        log.info("%d jobs in %s, %d of them done", len(jobs), self.config.hydra.sweep.dir, num_earlier)
        reasons: dict[Path, str] = {}
        try:
            reasons = launch(self.launcher, missing)
        finally:
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
            log.info("%s", closing_table(jobs, num_earlier, reasons))
        scores = [job.score for job in jobs]
        if None in scores:
            raise SweepFailed(f"{scores.count(None)} of {len(jobs)} jobs have no score")
        return [score for score in scores if score is not None]

    def _named(self, jobs: list[list[str]]) -> list[list[str]]:
        """Give each job a directory that says what sets it apart from the others, unless the user does."""
        from mbpo_cli.sweeps.jobs import name_of

        if any(item.startswith("hydra.sweep.subdir=") for item in self.config.hydra.overrides.hydra):
            return jobs
        common = set.intersection(*map(set, jobs))
        names = [name_of([item for item in job if item not in common] or job) for job in jobs]
        return [[*job, f"hydra.sweep.subdir='{name}'"] for job, name in zip(jobs, names, strict=True)]


class SearchSweeper(JobSweeper):
    """Searches for the values with the greatest score."""

    def __init__(
        self,
        n_trials: int,
        n_jobs: int | str,
        seeds: Sequence[int],
        prune: bool,
        sampler_seed: int,
        storage: str,
        study_name: str,
        params: Mapping[str, Any],
    ) -> None:
        """Take the options, which `conf/hydra/sweeper/optuna.yaml` explains."""
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.seeds = list(seeds)
        self.prune = prune
        self.sampler_seed = sampler_seed
        self.storage = storage
        self.study_name = study_name
        self.params = dict(params)

    def sweep(self, arguments: list[str]) -> float:
        """Try values until there are so many trials; return the greatest score.

        Raises:
            ConfigError: An option or the space is wrong, or the directory holds another search.
            SweepFailed: No trial has a score.
        """
        try:
            from mbpo_cli.sweeps.search import Search
        except ModuleNotFoundError as error:
            raise ConfigError("hydra/sweeper=optuna: needs pip install 'mbpo-cli[search]'") from error
        from mbpo_cli.sweeps.jobs import SweepFailed

        self.check_options()
        overrides = [f"{key}={value}" for key, value in self.params.items()]
        constants, space = space_of([*overrides, *arguments])
        if not space:
            raise ConfigError("hydra.sweeper.params: nothing is searched; take hparams_search=sac, for one")
        folder = Path(self.config.hydra.sweep.dir)

        def job(name: str, values: Mapping[str, Any], seed: int) -> Job:
            chosen = [*constants, *(f"{key}={value}" for key, value in values.items())]
            place = (f"seed={seed}", f"hydra.sweep.subdir='{name}/seed={seed}'")
            return job_of(self.hydra_context, self.config, [*chosen, *place], 0)

        def jobs_of(name: str, values: Mapping[str, Any]) -> list[Job]:
            return [job(name, values, seed) for seed in self.seeds]

        config = tried(space, lambda values: job("trial", values, self.seeds[0])).config
        at_a_time = self.n_jobs
        if at_a_time == "auto":
            at_a_time = max(parallel_jobs(config.threads, config.device) // len(self.seeds), 1)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        search = Search(
            folder,
            self.storage,
            self.study_name,
            space,
            [*constants, f"hydra.sweeper.seeds={self.seeds}"],
            self.sampler_seed,
            config.trainer.num_env_steps // PRUNED_AFTER,
        )
        log.info("%d of %d trials in %s", search.num_trials, self.n_trials, folder)
        search.run(
            self.n_trials, int(at_a_time), jobs_of, lambda jobs: launch(self.launcher, jobs), self.prune
        )
        best = search.best()
        if best is None:
            raise SweepFailed("no trial has a score")
        log.info("%s", best.text)
        return best.score

    def check_options(self) -> None:
        """Check the options.

        Raises:
            ConfigError: One is wrong.
        """
        for key in ("n_trials", "n_jobs"):
            value = getattr(self, key)
            if not ((isinstance(value, int) and value > 0) or (key, value) == ("n_jobs", "auto")):
                raise ConfigError(f"hydra.sweeper.{key}={value}: must be a whole number, 1 or more")
        if not (isinstance(self.sampler_seed, int) and self.sampler_seed >= 0):
            reason = "must be a whole number, 0 or more"
            raise ConfigError(f"hydra.sweeper.sampler_seed={self.sampler_seed}: {reason}")
        if not isinstance(self.prune, bool):
            raise ConfigError(f"hydra.sweeper.prune={self.prune}: must be true or false")
        if not ("://" in self.storage or self.storage.endswith(".journal")):
            reason = f"must be a database, as in sqlite:///{self.storage}, or a path that ends in .journal"
            raise ConfigError(f"hydra.sweeper.storage={self.storage}: {reason}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"hydra.sweeper.seeds={self.seeds}: must be one seed or more, each once")


def space_of(overrides: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Return what all trials share, and what is searched, by key; later overrides win.

    Raises:
        ConfigError: An override makes no sense in a search.
    """
    from optuna.distributions import CategoricalDistribution

    constants: dict[str, str] = {}
    space: dict[str, BaseDistribution] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.get_key_element(), override.value()
        if key == "seed":
            raise ConfigError(f"{override.input_line}: a search takes hydra.sweeper.seeds, a list")
        constants.pop(key, None)
        space.pop(key, None)
        if isinstance(value, IntervalSweep | RangeSweep):
            try:
                space[key] = _distribution(value)
            except ValueError as error:
                raise ConfigError(f"{override.input_line}: {error}") from error
        elif override.is_sweep_override():
            space[key] = CategoricalDistribution(list(override.sweep_string_iterator()))
        else:
            constants[key] = f"{key}={override.get_value_element_as_str()}"
    return list(constants.values()), space


def _distribution(sweep: IntervalSweep | RangeSweep) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    is_log = "log" in sweep.tags
    low, high, step = sweep.start, None, None
    if isinstance(sweep, IntervalSweep):
        high = sweep.end
    elif low is not None and sweep.stop is not None:  # a range ends before its last number
        step = sweep.step
        high = low + (math.ceil((sweep.stop - low) / step) - 1) * step
    if low is None or high is None:
        raise ValueError("needs both ends")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, is_log, int(step or 1))
    return FloatDistribution(low, high, is_log, step)


def tried(space: Mapping[str, BaseDistribution], job: Callable[[Mapping[str, Any]], Job]) -> Job:
    """Try every choice, and the ends of every range, which tell of all that lies between; return one job.

    Each is tried beside the first of all others, and if that is wrong beside the last: some values need not
    go together.

    Raises:
        ConfigError: A value is wrong.
    """
    ends = {key: ends_of(distribution) for key, distribution in space.items()}
    first, last = ({key: values[end] for key, values in ends.items()} for end in (0, -1))
    for key, values in ends.items():
        for value in values:
            try:
                made = job({**first, key: value})
            except ConfigError:
                made = job({**last, key: value})
    return made


def ends_of(distribution: BaseDistribution) -> list[Any]:
    """Return the extreme values of a range, or all values that there are to choose from."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [getattr(distribution, end) for end in ("low", "high")]


def combinations(arguments: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every job, the last sweep varying fastest.

    Raises:
        ConfigError: A sweep is not over a list of values.
    """
    choices = []
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices.append([f"{key}={override.get_value_element_as_str()}"])
        elif override.is_discrete_sweep():
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise ConfigError(f"{override.input_line}: only a search (hydra/sweeper=optuna) takes intervals")
    return [list(combination) for combination in itertools.product(*choices)]
