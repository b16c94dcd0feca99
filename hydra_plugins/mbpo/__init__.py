"""What Hydra calls for a sweep: who decides on jobs, and who runs them.

Translates between Hydra and `mbpo_cli.sweeps`, which knows nothing of Hydra. Imports little, as Hydra loads
this module at every start.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from mbpo_cli.compose import typed_config
from mbpo_cli.failures import ConfigError, RunFailed

if TYPE_CHECKING:
    from mbpo_cli.sweeps.jobs import Job

log = logging.getLogger(__name__)

# Parts of Hydra's own configuration that a single job is not to inherit from its sweep.
OF_A_SWEEP = ("hydra.mode", "hydra.sweep", "hydra.run", "hydra.launcher", "hydra/launcher")


def register() -> None:
    """Make the plugins known, as Hydra does not find those of an editable installation."""
    for plugin in (ProcessLauncher, GridSweeper):
        Plugins.instance().register(plugin)


def parallel_jobs(threads: int | str, device: str) -> int:
    """Return how many jobs at a time suit this machine, where a launcher cannot give each a GPU."""
    from mbpo_cli.machine import num_cores, visible_gpus

    if device != "cpu" and visible_gpus():
        return 1
    return max(num_cores() // (1 if threads == "auto" else int(threads)), 1)


class GridSweeper(Sweeper):
    """Runs every combination of the values given, but those that are done; one failure stops no other job."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> list[float]:
        """Run the jobs that are not done; return the scores of all.

        Raises:
            ConfigError: A job's configuration is wrong, or another run is in its directory.
            SweepFailed: Some jobs have no score in the end.
        """
        from mbpo_cli.sweeps.jobs import SweepFailed, closing_table

        jobs = [
            job_of(self.hydra_context, self.config, overrides, number)
            for number, overrides in enumerate(combinations(arguments))
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
    from mbpo_cli.sweeps.jobs import Job, name_of

    if any(override.startswith("resume=") for override in overrides):
        raise ConfigError("resume: goes on with one run; leave out --multirun")
    hydra_overrides = [*config.hydra.overrides.hydra, *overrides]
    if not any(item.startswith("hydra.sweep.subdir=") for item in hydra_overrides):
        overrides = [*overrides, f"hydra.sweep.subdir='{name_of(overrides)}'"]
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.num = number
    path = Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir
    job = Job(tuple(overrides), path, typed_config(composed))
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
        broken = f"{type(error).__name__}: {error}"
        log.error("the launcher failed: %s", broken)
        for job in jobs:
            if job.path.exists():
                job.record_failure(broken)
    return {job.path: broken for job in jobs}


class ProcessLauncher(Launcher):
    """Runs each job as a command of its own, some at a time; one that is killed takes no other along."""

    def __init__(self, n_jobs: int | str) -> None:
        """Run so many jobs at a time; auto = as many as there are cores, or GPUs if jobs use them."""
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed.

        Raises:
            ConfigError: The number of jobs is none.
        """
        if self.n_jobs != "auto" and not (isinstance(self.n_jobs, int) and self.n_jobs > 0):
            raise ConfigError(f"hydra.launcher.n_jobs={self.n_jobs}: must be a whole number from 1, or auto")
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; return how each ended."""
        from mbpo_cli.sweeps.jobs import summary_in
        from mbpo_cli.sweeps.processes import run_commands

        setup_globals()
        jobs = [
            job_of(self.hydra_context, self.config, overrides, initial_job_idx + number)
            for number, overrides in enumerate(job_overrides)
        ]
        returns = [JobReturn(overrides=job.overrides) for job in jobs]
        # This process wants exceptions from Hydra; a job is to end with one line.
        slots = [{**variables, "HYDRA_FULL_ERROR": "0"} for variables in self._slots(jobs)]
        log.info("%d at a time, each in a process of its own", min(len(slots), len(jobs)))
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

        run_commands([self._command(job) for job in jobs], slots, on_end)
        return returns

    def _slots(self, jobs: Sequence[Job]) -> list[dict[str, str]]:
        from mbpo_cli.machine import num_cores, visible_gpus
        from mbpo_cli.sweeps.processes import slots_of

        return slots_of(
            None if self.n_jobs == "auto" else int(self.n_jobs),
            max(1 if job.config.threads == "auto" else job.config.threads for job in jobs),
            any(job.config.device != "cpu" for job in jobs),
            visible_gpus(),
            num_cores(),
        )

    def _command(self, job: Job) -> list[str]:
        """Return the command of a single run that is this job."""
        # Where the user's modules are found, as in this process.
        flags = [] if sys.path[0] in ("", os.getcwd()) else ["-P"]
        sources = self.config.hydra.runtime.config_sources
        folders = [source.path for source in sources if source.provider == "command-line"]
        inherited = [item for item in self.config.hydra.overrides.hydra if not item.startswith(OF_A_SWEEP)]
        own = [item for item in job.overrides if not item.startswith("hydra.sweep")]
        threads = ["threads=1"] if job.config.threads == "auto" else []
        path = str(job.path).replace("'", "\\'")
        return [
            *(sys.executable, *flags, "-m", "mbpo_cli"),
            *itertools.chain.from_iterable(("--config-dir", folder) for folder in folders),
            *(*own, *threads, *inherited, f"hydra.run.dir='{path}'"),
        ]
