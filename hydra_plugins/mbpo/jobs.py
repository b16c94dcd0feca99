"""Jobs of a sweep as Hydra knows them: composed, checked, launched, and what is left of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from mbpo_cli.config.compose import typed_config
from mbpo_cli.failures import ConfigError, RunFailed, one_line

if TYPE_CHECKING:
    from mbpo_cli.sweeps.jobs import Job

log = logging.getLogger(__name__)

# What launchers need that comes with the extra of their name.
MODULES = {"joblib": "hydra_plugins.hydra_joblib_launcher", "ray": "ray", "slurm": "submitit"}


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
    from mbpo_cli.nn.machine import num_cores, visible_gpus

    if device != "cpu" and visible_gpus():
        return 1
    return max(num_cores() // (1 if threads == "auto" else int(threads)), 1)


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
