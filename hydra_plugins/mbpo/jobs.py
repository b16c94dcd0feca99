"""Jobs of a sweep as Hydra sees them: composed, checked and launched, with failures recorded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from mbpo_cli.config.values import quoted, typed_config
from mbpo_cli.failures import ConfigError, RunFailed
from mbpo_cli.sweeps.jobs import Job, brief, check_directories

log = logging.getLogger(__name__)

SUBDIR = "hydra.sweep.subdir="
SILENT = "exit code 0, but no summary"


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
        HydraConfig.instance().set_config(composed)  # for references such as ${hydra:job.num}
        name = str(composed.hydra.sweep.subdir)
        job = Job(name, tuple(overrides), Path(composed.hydra.sweep.dir) / name, typed_config(composed))
        job.check()
        return job

    @property
    def subdir_is_chosen(self) -> bool:
        """True if the user has set `hydra.sweep.subdir`, on the command line or in a file."""
        given: Any = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        on_command_line = any(item.startswith(SUBDIR) for item in given)
        return on_command_line or self._sweep["subdir"] != "${hydra.job.num}"

    def check_directories(self, jobs: Sequence[Job]) -> None:
        """Raise `ConfigError` if two jobs would write into the same directory, or one into another's."""
        key = "subdir" if self.subdir_is_chosen else "dir"
        check_directories(jobs, f"hydra.sweep.{key}={self._sweep[key]}")

    @property
    def _sweep(self) -> Any:
        return OmegaConf.to_container(self.config.hydra.sweep, resolve=False)


def parallel_jobs(threads: int | str, device: str) -> int:
    """Return the number of parallel jobs for this machine when the launcher cannot assign GPUs."""
    from mbpo_cli.nn.machine import num_cores, visible_gpus

    if device != "cpu" and visible_gpus():
        return 1
    return max(num_cores() // (1 if threads == "auto" else int(threads)), 1)


def launch(launcher: Launcher, jobs: Sequence[Job]) -> dict[Path, str]:
    """Run jobs and record their failures; return by directory what could not be recorded."""
    if not jobs:
        return {}
    earlier = [job.summary for job in jobs]
    reasons: dict[Path, str] = {}
    # The launcher numbers these jobs, and a directory may depend on the number among all jobs of the sweep.
    overrides = [[*job.overrides, SUBDIR + quoted(job.name)] for job in jobs]
    try:
        returns = launcher.launch(overrides, initial_job_idx=0)
        for job, before, ended in zip(jobs, earlier, returns, strict=True):
            if job.score is None:
                reason = brief(ended._return_value if ended.status == JobStatus.FAILED else SILENT)
                if not job.record_failure(reason, before):
                    reasons[job.path] = f"failed: {reason}"
    except (ConfigError, RunFailed):
        raise
    except (Exception, SystemExit) as error:  # for example a launcher that has lost its workers
        broken = brief(f"{type(error).__name__}: {error}")
        log.error("the launcher failed: %s", broken)
        for job, before in zip(jobs, earlier, strict=True):
            if job.path.exists():
                job.record_failure(broken)
            if job.summary == before:
                reasons[job.path] = f"not finished: {broken}"
    return reasons
