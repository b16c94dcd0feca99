"""Jobs of a sweep on a cluster: Ray's or Slurm's. Each is the command that this machine would run.

Knows how Ray and Slurm are asked; imports them only when a sweep uses them.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig, OmegaConf

from hydra_plugins.mbpo.launchers import VARIABLES, CommandLauncher
from mbpo_cli.failures import Interrupted, one_line

if TYPE_CHECKING:
    from mbpo_cli.sweeps.jobs import Job

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5

# Options of submitit's that are not Slurm's alone.
SHARED = ("cpus_per_task", "gpus_per_node", "mem_gb", "name", "stderr_to_stdout", "timeout_min")


class Submitted(Protocol):
    """A job in the hands of a cluster."""

    def has_ended(self) -> bool:
        """Return whether nothing more will come of it."""

    def failure(self) -> str | None:
        """Return None, or one line that says how it failed, once it has ended."""

    def stop(self) -> None:
        """Ask it to keep its state and end, or not to begin."""


def wait_for(submitted: Sequence[Submitted], on_end: Callable[[int, str | None], None]) -> None:
    """Wait for all jobs; a first signal to this process stops them, Ctrl-C pressed twice leaves them alone.

    Raises:
        Interrupted: There was a signal; all jobs have ended.
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    from mbpo_cli.failures import StopOnSignal

    waiting = dict(enumerate(submitted))
    with StopOnSignal() as signals:
        are_stopped = False
        while waiting:
            if signals.requested and not are_stopped:
                are_stopped = True
                log.info("stopping %d jobs", len(waiting))
                for job in waiting.values():
                    job.stop()
            for index in [index for index, job in waiting.items() if job.has_ended()]:
                on_end(index, waiting.pop(index).failure())
            time.sleep(POLL_SECONDS)
    if signals.received is not None:
        raise Interrupted(signals.received)


class RayLauncher(CommandLauncher):
    """Runs the jobs as tasks of Ray."""

    def __init__(self, ray: DictConfig) -> None:
        """Take what `ray.init` and `ray.remote` are told."""
        self.ray = ray

    def _run(
        self, jobs: Sequence[Job], commands: Sequence[list[str]], on_end: Callable[[int, str | None], None]
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        from mbpo_cli.sweeps.processes import run_command

        options: Any = OmegaConf.to_container(self.ray, resolve=True)
        if not ray.is_initialized():
            # A cluster that runs already refuses what is for one that starts here.
            ray.init(**{key: value for key, value in options["init"].items() if value is not None})
        # Workers of such a cluster have its environment, not this process's.
        here = {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
        task = ray.remote(**options["remote"])(run_command)
        folder, variables = os.getcwd(), {**here, **VARIABLES}
        wait_for([RayTask(task.remote(folder, command, variables)) for command in commands], on_end)


class RayTask:
    """A job that Ray runs."""

    def __init__(self, result: Any) -> None:
        """Take Ray's reference to its result."""
        self.result = result

    def has_ended(self) -> bool:
        """Return whether nothing more will come of it."""
        import ray

        return bool(ray.wait([self.result], timeout=0)[0])

    def failure(self) -> str | None:
        """Return None, or one line that says how it failed."""
        import ray

        try:
            failure: str | None = ray.get(self.result)
        except ray.exceptions.TaskCancelledError:
            return "stopped"
        except ray.exceptions.RayError as error:
            return f"lost by Ray: {type(error).__name__}"
        return failure

    def stop(self) -> None:
        """Interrupt it."""
        import ray

        ray.cancel(self.result)


class SlurmLauncher(CommandLauncher):
    """Runs the jobs as an array of Slurm's, by way of submitit."""

    def __init__(self, submitit_folder: str, max_num_timeout: int, **options: Any) -> None:
        """Take what submitit is told of the executor, and of the jobs."""
        self.folder = submitit_folder
        self.max_num_timeout = max_num_timeout
        self.options = {
            key if key in SHARED else f"slurm_{key}": OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for key, value in options.items()
        }

    def _run(
        self, jobs: Sequence[Job], commands: Sequence[list[str]], on_end: Callable[[int, str | None], None]
    ) -> None:
        import submitit

        executor = submitit.AutoExecutor(
            self.folder, cluster="slurm", slurm_max_num_timeout=self.max_num_timeout
        )
        executor.update_parameters(**self.options)
        with executor.batch():
            submitted = [executor.submit(Requeued(), os.getcwd(), command, VARIABLES) for command in commands]
        log.info("Slurm's job %s", submitted[0].job_id.partition("_")[0])
        wait_for([SlurmTask(job) for job in submitted], on_end)


class Requeued:
    """Runs a command, and lets submitit queue it again when its place is taken; the run then goes on."""

    def __call__(self, *arguments: Any) -> str | None:
        """Run the command; return how it failed."""
        from mbpo_cli.sweeps.processes import run_command

        try:
            return run_command(*arguments)
        except Interrupted:
            # submitit has answered its own signal. Others come with Slurm's SIGTERM: who cancels a job has
            # changed its state before, who preempts it need not have.
            import submitit

            ask = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
            if subprocess.run(ask, capture_output=True, text=True).stdout.strip() == "RUNNING":
                signal.raise_signal(signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"])
            raise

    def checkpoint(self, *arguments: Any) -> Any:
        """Return what to queue: the same."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


class SlurmTask:
    """A job that Slurm runs."""

    def __init__(self, job: Any) -> None:
        """Take submitit's job."""
        self.job = job

    def has_ended(self) -> bool:
        """Return whether nothing more will come of it."""
        return bool(self.job.done())

    def failure(self) -> str | None:
        """Return None, or one line that says how it failed."""
        import submitit

        try:
            failure: str | None = self.job.result()
        except submitit.core.utils.FailedJobError as error:  # its trace is between two lines of dashes
            return one_line(str(error).split("-" * 22)[1].strip().split("\n")[-1])
        except submitit.core.utils.UncompletedJobError:
            return f"lost by Slurm: {self.job.state}"
        return failure

    def stop(self) -> None:
        """Cancel it; Slurm sends SIGTERM first."""
        self.job.cancel(check=False)
