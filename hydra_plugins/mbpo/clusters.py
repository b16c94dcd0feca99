"""Launchers for clusters: each job is a Ray task or part of a Slurm array, and runs the same command as here.

Imports Ray and submitit only when a sweep uses them. Nothing here is a dataclass: Hydra may load plugins
without entering them in `sys.modules`, where dataclasses look for their annotations.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from hydra_plugins.mbpo.launchers import VARIABLES, CommandLauncher
from mbpo_cli.failures import Interrupted, StopOnSignal, one_line
from mbpo_cli.sweeps.jobs import Job
from mbpo_cli.sweeps.processes import OnEnd, run_command

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5

# Options of submitit that are not specific to Slurm.
SHARED = ("cpus_per_task", "gpus_per_node", "mem_gb", "name", "stderr_to_stdout", "timeout_min")


class Submitted(Protocol):
    """A job that was submitted to a cluster."""

    def has_ended(self) -> bool:
        """Return True if the job no longer runs and will not be restarted."""

    def failure(self) -> str | None:
        """Return None, or one line with the reason of the failure; only after the job has ended."""

    def stop(self) -> None:
        """Ask the job to save its state and end, or not to start."""


def wait_for(submitted: Sequence[Submitted], on_end: OnEnd) -> None:
    """Wait for all jobs; a signal to this process stops them, and raises `Interrupted` when all have ended.

    A second Ctrl-C leaves them running.
    """
    waiting = dict(enumerate(submitted))
    with StopOnSignal() as signals:
        are_stopped = False
        while waiting:
            if signals.requested and not are_stopped:
                are_stopped = True
                log.info("stopping %d jobs", len(waiting))
                for job in waiting.values():
                    with suppress(Exception):  # the other jobs are stopped all the same
                        job.stop()
            for index, job in list(waiting.items()):
                has_ended, failure = _state(job)
                if has_ended:
                    del waiting[index]
                    on_end(index, failure)
            time.sleep(POLL_SECONDS)
    if signals.received is not None:
        raise Interrupted(signals.received)


def _state(job: Submitted) -> tuple[bool, str | None]:
    """Return whether a job has ended, and its failure; one whose state is unknown has failed."""
    try:
        return (True, job.failure()) if job.has_ended() else (False, None)
    except Exception as error:  # each cluster has its own, and the result of a job may hold any
        return True, one_line(f"{type(error).__name__}: {error}")


class RayLauncher(CommandLauncher):
    """Runs the jobs as Ray tasks; presets/ray.yaml explains its options."""

    def __init__(self, ray: dict[str, dict[str, Any]]) -> None:
        self.ray = ray

    def _run(self, jobs: Sequence[Job], commands: Sequence[list[str]], on_end: OnEnd) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if not ray.is_initialized():
            # A running cluster refuses options that only apply when a cluster is started here.
            ray.init(**{key: value for key, value in self.ray["init"].items() if value is not None})
        # The workers of a running cluster have its environment, not that of this process.
        here = {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
        task = ray.remote(**self.ray["remote"])(run_command)
        results = [task.remote(os.getcwd(), command, {**here, **VARIABLES}) for command in commands]
        wait_for([_RayTask(ray, result) for result in results], on_end)


class _RayTask(Submitted):
    def __init__(self, ray: Any, result: Any) -> None:
        self.ray, self.result = ray, result

    def has_ended(self) -> bool:
        return bool(self.ray.wait([self.result], timeout=0)[0])

    def failure(self) -> str | None:
        try:
            failure: str | None = self.ray.get(self.result)
        except self.ray.exceptions.TaskCancelledError:
            return "stopped"
        except self.ray.exceptions.RayError as error:
            return f"lost by Ray: {type(error).__name__}"
        return failure

    def stop(self) -> None:
        self.ray.cancel(self.result)


class SlurmLauncher(CommandLauncher):
    """Runs the jobs as a Slurm array, with submitit; conf/hydra/launcher/slurm.yaml explains its options."""

    def __init__(self, submitit_folder: str, max_num_timeout: int, **options: Any) -> None:
        self.folder = submitit_folder
        self.max_num_timeout = max_num_timeout
        self.options = {key if key in SHARED else f"slurm_{key}": value for key, value in options.items()}

    def _run(self, jobs: Sequence[Job], commands: Sequence[list[str]], on_end: OnEnd) -> None:
        import submitit

        executor = submitit.AutoExecutor(
            self.folder, cluster="slurm", slurm_max_num_timeout=self.max_num_timeout
        )
        executor.update_parameters(**self.options)
        with executor.batch():
            submitted = [executor.submit(Requeued(), os.getcwd(), command, VARIABLES) for command in commands]
        log.info("Slurm job %s", submitted[0].job_id.partition("_")[0])
        wait_for([_SlurmTask(job) for job in submitted], on_end)


class Requeued:
    """Runs a command; when Slurm preempts the job, submitit requeues it and the run resumes."""

    def __call__(self, *arguments: Any) -> str | None:
        """Run the command; return None, or the reason of its failure."""
        try:
            return run_command(*arguments)
        except Interrupted:
            # submitit handles its own signal. Slurm may also preempt with SIGTERM alone; unlike scancel, this
            # can leave the state of the job at RUNNING.
            import submitit

            ask = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
            if subprocess.run(ask, capture_output=True, text=True).stdout.strip() == "RUNNING":
                signal.raise_signal(signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"])
            raise

    def checkpoint(self, *arguments: Any) -> Any:
        """Return the submission that requeues the same command."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


class _SlurmTask(Submitted):
    def __init__(self, job: Any) -> None:
        self.job = job

    def has_ended(self) -> bool:
        return bool(self.job.done())

    def failure(self) -> str | None:
        import submitit

        try:
            failure: str | None = self.job.result()
        except submitit.core.utils.FailedJobError as error:  # its trace stands between two lines of dashes
            return one_line(str(error).split("-" * 22)[1].strip().split("\n")[-1])
        except submitit.core.utils.UncompletedJobError:
            return f"lost by Slurm: {self.job.state}"
        return failure

    def stop(self) -> None:
        self.job.cancel(check=False)  # Slurm sends SIGTERM first
