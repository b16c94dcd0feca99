"""Sweepers choose the jobs of a sweep: a grid of all combinations, or a search.

Translates between Hydra and `mbpo_cli.sweeps`, which does not know Hydra.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from hydra_plugins.mbpo.jobs import SUBDIR, JobPlugin, launch, parallel_jobs
from mbpo_cli.config.values import quoted
from mbpo_cli.failures import ConfigError
from mbpo_cli.sweeps.jobs import Job, SweepFailed, check_equal, closing_table, names_of

MAX_JOBS = 10_000

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

# Modules that launchers need, installed with the extra of the launcher's name.
MODULES = {"joblib": "hydra_plugins.hydra_joblib_launcher", "ray": "ray", "slurm": "submitit"}


class JobSweeper(JobPlugin, Sweeper):
    """Chooses jobs and runs them with the chosen launcher."""

    def make_launcher(self) -> Launcher:
        """Return the chosen launcher, or raise `ConfigError` if the extra that it needs is not installed."""
        choice = str(self.config.hydra.runtime.choices["hydra/launcher"])
        if choice in MODULES:
            require(MODULES[choice], choice, f"hydra/launcher={choice}")
        return Plugins.instance().instantiate_launcher(self.hydra_context, self.task_function, self.config)

    def configure_log(self) -> None:
        """Set up the log of the sweep; a job in this process has its own."""
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)


class GridSweeper(JobSweeper):
    """Runs every combination of the given values that is not done; a failure stops no other job."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def sweep(self, arguments: list[str]) -> list[float]:
        """Run the jobs that are not done; return all scores, or raise `SweepFailed` if one is missing."""
        launcher = self.make_launcher()
        loader = self.hydra_context.config_loader
        chosen = combinations([*lines_of(self.params), *arguments], loader)
        jobs = [self._checked(chosen, number, item) for number, item in enumerate(self._named(chosen))]
        check_equal(jobs)
        self.check_directories(jobs)
        missing = [job for job in jobs if job.score is None]
        num_earlier = len(jobs) - len(missing)
        self.configure_log()
        log.info("%d jobs in %s, %d of them done", len(jobs), self.config.hydra.sweep.dir, num_earlier)
        reasons: dict[Path, str] = {}
        try:
            reasons = launch(launcher, missing)
        finally:
            self.configure_log()
            log.info("%s", closing_table(jobs, num_earlier, reasons))
        scores = [score for score in (job.score for job in jobs) if score is not None]
        if len(scores) < len(jobs):
            raise SweepFailed(f"{len(jobs) - len(scores)} of {len(jobs)} jobs have no score")
        return scores

    def _checked(self, chosen: Sequence[list[str]], number: int, overrides: list[str]) -> Job:
        """Compose a job; errors name what distinguishes it from the others."""
        try:
            return self.job(overrides, number)
        except ConfigError as error:
            own = " ".join(item for item in chosen[number] if any(item not in other for other in chosen))
            raise ConfigError(f"{error}; in job {number}: {own}" if own else error) from error

    def _named(self, jobs: list[list[str]]) -> list[list[str]]:
        """Add a directory to each job, named by the overrides that not all jobs share."""
        if self.subdir_is_chosen:
            return jobs
        return [[*job, SUBDIR + quoted(name)] for job, name in zip(jobs, names_of(jobs), strict=True)]


class SearchSweeper(JobSweeper):
    """Searches for the values with the highest score; conf/hydra/sweeper/optuna.yaml explains its options."""

    def __init__(
        self,
        n_trials: int,
        n_jobs: int | str,
        seeds: list[int],
        prune: bool,
        sampler_seed: int,
        storage: str,
        study_name: str,
        params: dict[str, Any],
    ) -> None:
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.seeds = seeds
        self.prune = prune
        self.sampler_seed = sampler_seed
        self.storage = storage
        self.study_name = study_name
        self.params = params

    def sweep(self, arguments: list[str]) -> float:
        """Run trials until the study has `n_trials`; return the best score, or raise `SweepFailed`."""
        launcher = self.make_launcher()
        require("optuna", "search", "hydra/sweeper=optuna")
        from mbpo_cli.sweeps.search import Search

        self.check_options()
        if self.subdir_is_chosen:
            raise ConfigError("hydra.sweep.subdir: a search names its directories itself; leave it out")
        loader = self.hydra_context.config_loader
        constants, space = space_of([*lines_of(self.params), *arguments], loader)
        if not space:
            raise ConfigError("hydra.sweeper.params: the search space is empty; use e.g. hparams_search=sac")

        def job(name: str, values: Mapping[str, Any], seed: int) -> Job:
            chosen = [f"{key}={value}" for key, value in values.items()]
            directory = f"hydra.sweep.subdir='{name}/seed={seed}'"
            return self.job([*constants, *chosen, f"seed={seed}", directory], 0)

        config = check_space(space, lambda values: job("trial", values, self.seeds[0])).config
        num_parallel = self.n_jobs
        if num_parallel == "auto":
            num_parallel = max(parallel_jobs(config.threads, config.device) // len(self.seeds), 1)
        self.configure_log()
        search = Search(
            Path(self.config.hydra.sweep.dir),
            self.storage,
            self.study_name,
            space,
            [*constants, f"hydra.sweeper.seeds={self.seeds}"],
            self.sampler_seed,
            config.trainer.num_env_steps // 4,  # the steps before predict the result badly
        )
        log.info("%d of %d trials in %s", search.num_trials, self.n_trials, search.path)
        search.run(
            self.n_trials,
            int(num_parallel),
            lambda name, values: [job(name, values, seed) for seed in self.seeds],
            lambda jobs: launch(launcher, jobs),
            self.prune,
        )
        best = search.best()
        if best is None:
            raise SweepFailed("no trial has a score")
        chosen = " ".join(f"{key}={value}" for key, value in best.values.items())
        log.info("best score %.1f in %s\n  %s", best.score, best.path, chosen)
        return best.score

    def check_options(self) -> None:
        """Raise `ConfigError` if an option is wrong."""

        def is_whole(value: object, low: int) -> bool:
            return isinstance(value, int) and value >= low

        whole = "must be a whole number, {} or more"
        database = f"must be a database, as in sqlite:///{self.storage}, or a path that ends in .journal"
        is_storage = "://" in self.storage or self.storage.endswith(".journal")
        is_seeds = bool(self.seeds) and len(set(self.seeds)) == len(self.seeds)
        for key, is_valid, reason in (
            ("n_trials", is_whole(self.n_trials, 1), whole.format(1)),
            ("n_jobs", self.n_jobs == "auto" or is_whole(self.n_jobs, 1), f"{whole.format(1)}, or auto"),
            ("sampler_seed", is_whole(self.sampler_seed, 0), whole.format(0)),
            ("prune", isinstance(self.prune, bool), "must be true or false"),
            ("storage", is_storage, database),
            ("seeds", is_seeds, "must be one or more seeds, each of them once"),
        ):
            if not is_valid:
                raise ConfigError(f"hydra.sweeper.{key}={getattr(self, key)}: {reason}")


def require(module: str, extra: str, choice: str) -> None:
    """Raise `ConfigError` if the module that an option's choice needs is not installed."""
    if find_spec(module) is None:
        raise ConfigError(f"{choice}: needs pip install 'mbpo-cli[{extra}]'")


def space_of(
    overrides: Sequence[str], loader: ConfigLoader | None = None
) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Return the overrides that all trials share, and the search space by key; later overrides win."""
    from optuna.distributions import CategoricalDistribution

    constants: dict[str, str] = {}
    space: dict[str, BaseDistribution] = {}
    for override in OverridesParser.create(loader).parse_overrides(list(overrides)):
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
            space[key] = CategoricalDistribution(values_of(override))
        else:
            constants[key] = f"{key}={override.get_value_element_as_str()}"
    return list(constants.values()), space


def _distribution(sweep: IntervalSweep | RangeSweep) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    is_log = "log" in sweep.tags
    low, high, step = sweep.start, None, None
    if isinstance(sweep, IntervalSweep):
        high = sweep.end
    elif low is not None and sweep.stop is not None:  # a range excludes its end
        step = sweep.step
        high = low + (math.ceil((sweep.stop - low) / step) - 1) * step
    if low is None or high is None:
        raise ValueError("needs both ends")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, is_log, int(step or 1))
    return FloatDistribution(low, high, is_log, step)


def check_space(space: Mapping[str, BaseDistribution], job: Callable[[Mapping[str, Any]], Job]) -> Job:
    """Check every choice and both ends of every range by composing a job with it; return one of the jobs.

    Each value is combined with the first values of all other keys or, if that is wrong, with their last
    values: some combinations may be invalid, and then fail their trial alone.
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
    """Return both ends of a range, or all choices."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [getattr(distribution, end) for end in ("low", "high")]


def lines_of(params: Mapping[str, Any]) -> list[str]:
    """Return `hydra.sweeper.params` as overrides, which come before those of the command line."""
    return [f"{key}={'null' if value is None else value}" for key, value in params.items()]


def values_of(override: Override) -> list[str]:
    """Return the values of a sweep; those of `glob` lie as deep in the group's folder as its patterns."""
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1))
    except (ArithmeticError, ValueError) as error:  # such as range(0,1,0)
        raise ConfigError(f"{override.input_line}: {error}") from error
    pattern = override.value()
    if isinstance(pattern, Glob):
        depths = {text.count("/") for text in pattern.include}
        values = [value for value in values if value.count("/") in depths]
    if not values:
        raise ConfigError(f"{override.input_line}: has no values")
    return values


def combinations(arguments: Sequence[str], loader: ConfigLoader | None = None) -> list[list[str]]:
    """Return the overrides of every job; the last sweep varies fastest, and later overrides of a key win."""
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create(loader).parse_overrides(list(arguments)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            values = values_of(override)
        else:
            raise ConfigError(f"{override.input_line}: only a search (hydra/sweeper=optuna) takes intervals")
        choices[key] = [f"{key}={value}" for value in values]
    if (num_jobs := math.prod(map(len, choices.values()))) > MAX_JOBS:
        raise ConfigError(f"{' '.join(arguments)}: {num_jobs:,} jobs are more than {MAX_JOBS:,}")
    return [list(combination) for combination in itertools.product(*choices.values())]
