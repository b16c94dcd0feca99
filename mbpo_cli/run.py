"""One run from its directory to its summary, whatever way it ends.

Knows the order of a run's life; the algorithm is the trainer's.
"""

from __future__ import annotations

import errno
import logging
import math
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mbpo_cli.build import build_trainer, num_threads
from mbpo_cli.config.typed import Config, options_in
from mbpo_cli.failures import (
    Busy,
    Interrupted,
    NoUsableCheckpoint,
    RunFailed,
    StopOnSignal,
    StorageFailed,
    one_line,
)
from mbpo_cli.logs.logger import Dispensable, JsonLines, Logger, Sink, TensorBoardEvents
from mbpo_cli.logs.progress import Progress
from mbpo_cli.storage.checkpoint import CheckpointOptions, Checkpoints
from mbpo_cli.storage.directory import RunDirectory
from mbpo_cli.storage.records import EVENTS
from mbpo_cli.trainer import Trainer

log = logging.getLogger(__name__)

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def run(config: Config, path: Path, in_sweep: bool = False) -> float:
    """Train as configured, writing into the directory `path`; beside other jobs, if in a sweep.

    Where that directory holds a run of the same configuration, it goes on from its last checkpoint, as
    if it had never stopped.

    Returns:
        The score: the mean return of the last evaluations.

    Raises:
        ConfigError: The directory holds a run of another configuration.
        RunFailed: Anything else went wrong; the log tells it.
        Interrupted: The run was told to stop; checkpoint, summary and policy are written.
        KeyboardInterrupt: Ctrl-C was pressed twice; the last checkpoint stays.
    """
    torch.set_num_threads(num_threads(config, in_sweep))
    # Moments of Adam decay into denormal numbers, which are slow and too small to matter.
    torch.set_flush_denormal(True)
    try:
        directory = RunDirectory(path, asdict(config))
    except Busy as error:
        log.error("%s", error)
        raise
    with directory:
        return _run(config, directory)


def _run(config: Config, directory: RunDirectory) -> float:
    start = time.monotonic()
    if config.trainer.num_env_steps <= config.agent.num_warm_start_steps:
        log.warning("nothing will be trained: the warm start is as long as trainer.num_env_steps")
    keeper = Keeper(config.checkpoint, directory)
    trainer: Trainer | None = None
    status, error = "failed", None
    try:
        with ExitStack() as stack, StopOnSignal() as signals:
            hours = config.trainer.max_hours
            deadline = math.inf if hours is None else start + 3600 * hours

            def should_stop() -> bool:
                return signals.requested or directory.stop_requested or time.monotonic() >= deadline

            logger = stack.enter_context(Logger())
            trainer = build_trainer(config, logger, stack, should_stop, keeper.keep_if_due)
            logs = keeper.restore(trainer)
            for sink in open_sinks(config, directory, logs, trainer.env_steps):
                logger.add(sink)
            is_done = trainer.train()
            keeper.keep(trainer)
            directory.save_policy(trainer.agent.policy_state())
            status = "done" if is_done else "interrupted"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except Exception as caught:
        failure = _failure(caught, directory.path)
        error = one_line(failure)
        log.error("run failed: %s", error, exc_info=True)
        if failure is caught:
            raise
        raise failure from caught
    finally:
        earlier = keeper.earlier_seconds
        score = directory.score(config.trainer.num_score_evaluations)
        summary = summarize(config, trainer, status, earlier + time.monotonic() - start, error, score)
        try:
            directory.write_summary(summary)
        except OSError as caught:
            log.error("no summary: %s", caught)
    log.info("%s", closing_table(summary, directory.path))
    if status == "interrupted":
        signals.pass_on()
        raise Interrupted(signals.received)
    return float(summary["score"])


def _failure(error: Exception, path: Path) -> RunFailed:
    """Return what a run that writes into `path` fails with, where something raised an error."""
    if isinstance(error, RunFailed):
        return error
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        free = shutil.disk_usage(path).free
        return StorageFailed(f"{error}; {path} has {free / 1e6:,.1f} MB left")
    return RunFailed(f"{type(error).__name__}: {error}")


class Keeper:
    """Keeps the state of a run in its directory, and brings it back."""

    def __init__(self, options: CheckpointOptions, directory: RunDirectory) -> None:
        """Look for checkpoints in a run's directory."""
        self.earlier_seconds = 0.0
        self._options = options
        self._directory = directory
        self._last_time = time.monotonic()
        self._checkpoints = Checkpoints(directory.path, options.keep)

    def restore(self, trainer: Trainer) -> dict[str, int]:
        """Bring a trainer to the last checkpoint; return the bytes of each log file that belong to it.

        Raises:
            NoUsableCheckpoint: The run has got somewhere, and there is no way back to it.
        """
        checkpoint = self._checkpoints.load(trainer.buffers)
        if checkpoint is None:
            if self._directory.has_metrics:
                raise NoUsableCheckpoint(f"{self._directory.path}: its checkpoints are gone")
            if not self._directory.is_new:
                log.info("the run had not begun yet")
            return {}
        is_exact = trainer.load_state_dict(checkpoint.state)
        self.earlier_seconds = checkpoint.state["stopwatch"]["total_seconds"]
        log.info("the run goes on from step %d", checkpoint.step)
        if not is_exact:
            log.warning("the environment does not repeat its episode: a new one begins, and the rest differs")
        return checkpoint.logs

    def keep_if_due(self, trainer: Trainer) -> None:
        """Make a checkpoint at the times that the options say, and after the best evaluation so far."""
        if self._is_due(trainer.env_steps) or trainer.best_step == trainer.env_steps:
            self.keep(trainer)

    def _is_due(self, step: int) -> bool:
        last = self._checkpoints.last_step
        if last is None:
            return True
        steps, minutes = self._options.every_steps, self._options.every_minutes
        return (steps is not None and step - last >= steps) or (
            minutes is not None and time.monotonic() - self._last_time >= 60 * minutes
        )

    def keep(self, trainer: Trainer) -> None:
        """Make a checkpoint."""
        self._checkpoints.save(
            trainer.env_steps,
            trainer.state_dict(),
            trainer.buffers,
            trainer.logger.commit(),
            is_best=trainer.best_step == trainer.env_steps,
        )
        self._last_time = time.monotonic()


def open_sinks(config: Config, directory: RunDirectory, logs: dict[str, int], step: int) -> list[Sink]:
    """Open the logs, each cut to what the checkpoint knows of it."""
    path = next((directory.path / name for name in logs if name.startswith(EVENTS)), directory.new_events())
    events = TensorBoardEvents(path, logs.get(path.name, 0), hyperparameters(config))
    return [
        JsonLines(directory.metrics, logs.get(directory.metrics.name, 0)),
        events if config.trainer.events_required else Dispensable(events),
        Progress(config.trainer.num_env_steps, step),
    ]


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """Return the options that are set, by key, as values that TensorBoard's HParams can show."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, _, _, value in options_in(config)
        if value is not None and not key.endswith("_target_")
    }


def summarize(
    config: Config,
    trainer: Trainer | None,
    status: str,
    wall_seconds: float,
    error: str | None,
    score: float | None,
) -> dict[str, Any]:
    """Return what one wants to know of a run afterwards."""
    last = trainer.evaluation if trainer is not None else None
    best = trainer.best_evaluation if trainer is not None else None
    return {
        "status": status,
        "error": error,
        "agent": config.agent.name,
        "env": config.env.name,
        "seed": config.seed,
        "threads": torch.get_num_threads(),
        "env_steps": trainer.env_steps if trainer is not None else 0,
        "episodes": trainer.collector.episodes if trainer is not None else 0,
        "gradient_steps": trainer.gradient_steps if trainer is not None else 0,
        "wall_seconds": wall_seconds,
        "phase_seconds": trainer.phase_seconds if trainer is not None else {},
        "score": score,
        "eval_return_mean": last.return_mean if last is not None else None,
        "eval_return_std": last.return_std if last is not None else None,
        "eval_episodes": len(last.returns) if last is not None else 0,
        "best_eval_return_mean": best.return_mean if best is not None else None,
    }


def closing_table(summary: dict[str, Any], path: Path) -> str:
    """Return the table that ends a run, with the command that opens TensorBoard."""
    rows = [
        ("status", summary["status"]),
        ("real steps", f"{summary['env_steps']:,} in {summary['episodes']:,} episodes"),
        ("gradient steps", f"{summary['gradient_steps']:,}"),
        ("wall time", f"{summary['wall_seconds']:.1f} s"),
        (
            "time by phase",
            ", ".join(f"{name} {spent:.1f} s" for name, spent in summary["phase_seconds"].items()),
        ),
    ]
    if summary["eval_episodes"]:
        mean, std, best = (
            summary[k] for k in ("eval_return_mean", "eval_return_std", "best_eval_return_mean")
        )
        rows.append(("last evaluation", f"{mean:.1f} +- {std:.1f} over {summary['eval_episodes']} episodes"))
        rows.append(("best evaluation", f"{best:.1f}"))
        rows.append(("score", f"{summary['score']:.1f}"))
    rows.append(("run directory", str(path)))
    rows.append(("look at it", f"tensorboard --logdir {path}"))
    width = max(len(name) for name, _ in rows)
    title = f"{summary['agent']} on {summary['env']}, seed {summary['seed']}"
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])
