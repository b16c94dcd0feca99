"""What Hydra calls for a sweep: who decides on jobs, and who runs them.

Translates between Hydra and `mbpo_cli.sweeps`, which knows nothing of Hydra. Imports little, as Hydra loads
this module at every start.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from mbpo_cli.compose import typed_config
from mbpo_cli.failures import ConfigError, RunFailed, one_line

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from mbpo_cli.sweeps.jobs import Job

log = logging.getLogger(__name__)

# Parts of Hydra's own configuration that a single job is not to inherit from its sweep.
OF_A_SWEEP = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")

# A search stops no run within this part of its steps, which tell little of the rest: 4 = a quarter.
PRUNED_AFTER = 4

# This process wants exceptions from Hydra; a job is to end with one line.
VARIABLES = {"HYDRA_FULL_ERROR": "0"}

# What launchers need that comes with the extra of their name.
MODULES = {"joblib": "hydra_plugins.hydra_joblib_launcher", "ray": "ray", "slurm": "submitit"}


def register() -> None:
    """Make known the plugins, as Hydra finds none of an editable installation, and the presets."""
    from hydra_plugins.mbpo.clusters import RayLauncher, SlurmLauncher

    for plugin in (ProcessLauncher, RayLauncher, SlurmLauncher, GridSweeper, SearchSweeper):
        Plugins.instance().register(plugin)
    # In the place of these launchers' own defaults: YAML in conf/ would be checked against those, and Hydra
    # warns of that.
    for preset in sorted((files(__package__) / "presets").iterdir(), key=str):
        node = OmegaConf.create(preset.read_text())
        ConfigStore.instance().store(
            group="hydra/launcher", name=preset.name.removesuffix(".yaml"), node=node
        )
    # There is one store; Hydra copies it for each group that its help lists, which took half of the time.
    setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010 - unknown to type checkers
    OmegaConf.register_new_resolver("parallel_jobs", parallel_jobs, replace=True)


def launcher_of(context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Launcher:
    """Return the launcher that was chosen.

    Raises:
        ConfigError: The extra that it needs is not installed.
    """
    choice = str(config.hydra.runtime.choices["hydra/launcher"])
    if choice in MODULES and find_spec(MODULES[choice]) is None:
        raise ConfigError(f"hydra/launcher={choice}: needs pip install 'mbpo-cli[{choice}]'")
    return Plugins.instance().instantiate_launcher(context, task_function, config)


def parallel_jobs(threads: int | str, device: str) -> int:
    """Return how many jobs at a time suit this machine, where a launcher cannot give each a GPU."""
    from mbpo_cli.machine import num_cores, visible_gpus

    if device != "cpu" and visible_gpus():
        return 1
    return max(num_cores() // (1 if threads == "auto" else int(threads)), 1)


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


def job_of(context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int) -> Job:
    """Return a job of a sweep, after a check of its configuration.

    Raises:
        ConfigError: The configuration is wrong, or another run is in its directory.
    """
    from mbpo_cli.sweeps.jobs import Job

    if any(override.startswith("resume=") for override in overrides):
        raise ConfigError("resume: goes on with one run; leave out --multirun")
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.num = number
    name = str(composed.hydra.sweep.subdir)
    job = Job(name, tuple(overrides), Path(composed.hydra.sweep.dir) / name, typed_config(composed))
    job.check()
    return job


def launch(launcher: Launcher, jobs: Sequence[Job]) -> dict[Path, str]:
    """Run jobs, and record every failure; return why jobs have no summary, by directory."""
    if not jobs:
        return {}
    broken = "it was not started"
    try:
        for job, ended in zip(
            jobs, launcher.launch([list(job.overrides) for job in jobs], initial_job_idx=0), strict=True
        ):
            if ended.status == JobStatus.FAILED:
                job.record_failure(ended._return_value)
    except (ConfigError, RunFailed):
        raise
    except Exception as error:  # a launcher that has lost its workers, for one
        broken = one_line(f"{type(error).__name__}: {error}")
        log.error("the launcher failed: %s", broken)
        for job in jobs:
            if job.path.exists():
                job.record_failure(broken)
    return {job.path: broken for job in jobs}


class CommandLauncher(Launcher):
    """Runs each job as a command of its own, so that none takes another along."""

    hydra_context: HydraContext
    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; return how each ended."""
        from mbpo_cli.sweeps.jobs import summary_in

        setup_globals()
        jobs = [
            job_of(self.hydra_context, self.config, overrides, initial_job_idx + number)
            for number, overrides in enumerate(job_overrides)
        ]
        returns = [JobReturn(overrides=job.overrides) for job in jobs]
        num_ended = 0

        def on_end(index: int, failure: str | None) -> None:
            nonlocal num_ended
            num_ended += 1
            summary = summary_in(jobs[index].path) or {}
            if failure is None:
                returns[index].status, returns[index].return_value = JobStatus.COMPLETED, summary["score"]
                text = f"score {summary['score']:.1f} after {summary['wall_seconds']:.0f} s"
            else:
                error = summary.get("error") or failure
                returns[index].status, returns[index].return_value = JobStatus.FAILED, RunFailed(error)
                text = f"{summary.get('status', 'failed')}: {error}"
            log.info("%d of %d: %s: %s", num_ended, len(jobs), jobs[index].name, text)

        self._run(jobs, [self._command(job) for job in jobs], on_end)
        return returns

    @abstractmethod
    def _run(
        self, jobs: Sequence[Job], commands: Sequence[list[str]], on_end: Callable[[int, str | None], None]
    ) -> None:
        """Run the jobs' commands; when one has ended, say its index, and None or how it failed."""

    def _command(self, job: Job) -> list[str]:
        """Return the command of a single run that is this job."""
        # Where the user's modules are found, as in this process.
        flags = [] if sys.path[0] in ("", os.getcwd()) else ["-P"]
        sources = self.config.hydra.runtime.config_sources
        folders = [source.path for source in sources if source.provider == "command-line"]
        mains = [source for source in sources if source.provider == "main"]
        own_main = [each.path if each.schema == "file" else f"pkg://{each.path}" for each in mains]
        inherited = [item for item in self.config.hydra.overrides.hydra if not item.startswith(OF_A_SWEEP)]
        own = [item for item in job.overrides if not item.startswith("hydra.sweep")]
        threads = ["threads=1"] if job.config.threads == "auto" else []
        path = str(job.path).replace("'", "\\'")
        return [
            *(sys.executable, *flags, "-m", "mbpo_cli"),
            *itertools.chain.from_iterable(("--config-path", folder) for folder in own_main),
            *itertools.chain.from_iterable(("--config-dir", folder) for folder in folders),
            *("--config-name", str(self.config.hydra.job.config_name)),
            *(*own, *threads, *inherited, "hydra.mode=RUN", f"hydra.run.dir='{path}'"),
        ]


class ProcessLauncher(CommandLauncher):
    """Runs the jobs on this machine, some at a time."""

    def __init__(self, n_jobs: int | str) -> None:
        """Run so many jobs at a time; auto = as many as there are cores, or GPUs if jobs use them.

        Raises:
            ConfigError: The number of jobs is none.
        """
        if n_jobs != "auto" and not (isinstance(n_jobs, int) and n_jobs > 0):
            raise ConfigError(f"hydra.launcher.n_jobs={n_jobs}: must be a whole number from 1, or auto")
        self.n_jobs = n_jobs

    def _run(
        self, jobs: Sequence[Job], commands: Sequence[list[str]], on_end: Callable[[int, str | None], None]
    ) -> None:
        from mbpo_cli.machine import num_cores, visible_gpus
        from mbpo_cli.sweeps.processes import run_commands, slots_of

        slots = slots_of(
            None if self.n_jobs == "auto" else int(self.n_jobs),
            max(1 if job.config.threads == "auto" else job.config.threads for job in jobs),
            {job.config.device for job in jobs},
            visible_gpus(),
            num_cores(),
        )
        log.info("%d at a time, each in a process of its own", min(len(slots), len(jobs)))
        run_commands(commands, [{**slot, **VARIABLES} for slot in slots], on_end)
