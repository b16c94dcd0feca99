"""Launchers run the jobs of a sweep, each as a command of its own; here as processes on this machine."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from hydra_plugins.mbpo.jobs import SILENT, JobPlugin
from mbpo_cli.config.values import quoted
from mbpo_cli.failures import ConfigError, RunFailed
from mbpo_cli.sweeps.jobs import Job, is_number
from mbpo_cli.sweeps.lines import SweepLines
from mbpo_cli.sweeps.processes import OnEnd, run_commands, slots_of

if TYPE_CHECKING:
    from mbpo_cli.sweeps.view import SweepView

log = logging.getLogger(__name__)

# Parts of Hydra's own configuration that a job does not inherit from its sweep.
OF_A_SWEEP = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")

# This process needs Hydra's exceptions; a job ends with one line instead.
VARIABLES = {"HYDRA_FULL_ERROR": "0"}


class CommandLauncher(JobPlugin, Launcher):
    """Runs each job as a command of its own, so that a failure affects no other job."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and return their results."""
        from mbpo_cli.logs.progress import on_terminal

        setup_globals()
        jobs = [self.job(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        self.check_directories(jobs)
        earlier = [job.summary for job in jobs]
        returns = [JobReturn(overrides=job.overrides) for job in jobs]
        view: SweepView | SweepLines = SweepLines(jobs)
        if on_terminal():
            from mbpo_cli.sweeps.view import SweepView

            view = SweepView(jobs)
        num_ended = itertools.count(1)

        def on_end(index: int, failure: str | None) -> None:
            view.end(index)
            job, returned = jobs[index], returns[index]
            score, text = job.result()
            if score is not None:
                returned.status, returned.return_value = JobStatus.COMPLETED, score
                seconds = (job.summary or {}).get("wall_seconds")
                text = f"score {score:.1f}" + (f" after {seconds:.0f} s" if is_number(seconds) else "")
            else:
                reason = failure or SILENT
                returned.status, returned.return_value = JobStatus.FAILED, RunFailed(reason)
                is_recorded = job.record_failure(reason, earlier[index])
                text = job.result()[1] if is_recorded else f"failed: {reason}"
                if is_recorded and failure and failure != text and not (job.summary or {}).get("error"):
                    text = f"{text}: {failure}"
            log.info("%d of %d: %s: %s", next(num_ended), len(jobs), job.name, text)

        with view:
            self._run(jobs, [self._command(job) for job in jobs], on_end)
        return returns

    @abstractmethod
    def _run(self, jobs: Sequence[Job], commands: Sequence[list[str]], on_end: OnEnd) -> None:
        """Run the commands of the jobs."""

    def _command(self, job: Job) -> list[str]:
        """Return the command that runs the job as a single run."""
        # The user's modules are imported from the same places as in this process.
        flags = [] if sys.path[0] in ("", os.getcwd()) else ["-P"]
        places = []
        for source in self.config.hydra.runtime.config_sources:
            if source.provider == "main":
                is_folder = source.schema == "file"
                places += ["--config-path", source.path if is_folder else f"pkg://{source.path}"]
            elif source.provider == "command-line":
                places += ["--config-dir", source.path]
        given: Any = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        inherited = [item for item in given if not item.startswith(OF_A_SWEEP)]
        own = [item for item in job.overrides if not item.startswith("hydra.sweep")]
        threads = ["threads=1"] if job.config.threads == "auto" else []
        return [
            *(sys.executable, *flags, "-m", "mbpo_cli"),
            *(*places, "--config-name", str(self.config.hydra.job.config_name)),
            *(*own, *threads, *inherited, "hydra.mode=RUN", f"hydra.run.dir={quoted(job.path)}"),
        ]


class ProcessLauncher(CommandLauncher):
    """Runs the jobs on this machine; conf/hydra/launcher/processes.yaml explains its option."""

    def __init__(self, n_jobs: int | str) -> None:
        if n_jobs != "auto" and not (isinstance(n_jobs, int) and n_jobs > 0):
            raise ConfigError(f"hydra.launcher.n_jobs={n_jobs}: must be a whole number from 1, or auto")
        self.n_jobs = n_jobs

    def _run(self, jobs: Sequence[Job], commands: Sequence[list[str]], on_end: OnEnd) -> None:
        from mbpo_cli.nn.machine import num_cores, visible_gpus

        slots = slots_of(
            None if self.n_jobs == "auto" else int(self.n_jobs),
            max(1 if job.config.threads == "auto" else job.config.threads for job in jobs),
            {job.config.device for job in jobs},
            visible_gpus(),
            num_cores(),
        )
        log.info("%d at a time, each in a process of its own", min(len(slots), len(jobs)))
        run_commands(commands, [{**slot, **VARIABLES} for slot in slots], on_end)
