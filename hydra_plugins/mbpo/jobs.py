"""Jobs of a sweep as Hydra sees them: composed, checked and launched, with failures recorded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from mbpo_cli.config.compose import typed_config
from mbpo_cli.failures import ConfigError, RunFailed, one_line
from mbpo_cli.sweeps.jobs import Job

log = logging.getLogger(__name__)


class JobPlugin:
    """What sweepers and launchers share: Hydra's objects, and jobs composed with them."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's objects."""
        self.hydra_context: Any = hydra_context  # which Hydra's own classes declare as optional
        self.task_function = task_function
        self.config: Any = config

    def job(self, overrides: Sequence[str], number: int) -> Job:
        """Compose a job; raise `ConfigError` if it is wrong, or its directory holds another run."""
        if any(override.startswith("resume=") for override in overrides):
            raise ConfigError("resume: continues a single run; leave out --multirun")
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.num = number
        name = str(composed.hydra.sweep.subdir)
        job = Job(name, tuple(overrides), Path(composed.hydra.sweep.dir) / name, typed_config(composed))
        job.check()
        return job


def parallel_jobs(threads: int | str, device: str) -> int:
    """Return the number of parallel jobs for this machine when the launcher cannot assign GPUs."""
    from mbpo_cli.nn.machine import num_cores, visible_gpus

    if device != "cpu" and visible_gpus():
        return 1
    return max(num_cores() // (1 if threads == "auto" else int(threads)), 1)


def launch(launcher: Launcher, jobs: Sequence[Job]) -> dict[Path, str]:
    """Run jobs and record their failures; return by directory why a job may have no summary."""
    if not jobs:
        return {}
    broken = "it was not started"
    try:
        returns = launcher.launch([list(job.overrides) for job in jobs], initial_job_idx=0)
        for job, ended in zip(jobs, returns, strict=True):
            if ended.status == JobStatus.FAILED:
                job.record_failure(ended._return_value)
    except (ConfigError, RunFailed):
        raise
    except Exception as error:  # for example a launcher that has lost its workers
        broken = one_line(f"{type(error).__name__}: {error}")
        log.error("the launcher failed: %s", broken)
        for job in jobs:
            if job.path.exists():
                job.record_failure(broken)
    return {job.path: broken for job in jobs}
