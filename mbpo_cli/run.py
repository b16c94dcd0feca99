"""One run, from its directory to its summary, however it ends.

Knows the order of a run's life; does not know the algorithm.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mbpo_cli import failures
from mbpo_cli.build import build_component, build_env, build_trainer, num_threads
from mbpo_cli.config.stored import untrusted
from mbpo_cli.config.typed import Config, options_in
from mbpo_cli.envs.probe import unrepeated
from mbpo_cli.evaluation.callbacks import Callback, end, reason_to_end
from mbpo_cli.evaluation.curve_file import CurvePicture
from mbpo_cli.evaluation.schedule import CheckpointOptions, reason
from mbpo_cli.logs.background import Background, TrackerOptions
from mbpo_cli.logs.logger import JsonLines, Logger, RunInfo, Sink
from mbpo_cli.logs.progress import Progress
from mbpo_cli.nn.seeding import episode_seed, generator
from mbpo_cli.options import resolve
from mbpo_cli.storage.checkpoint import Checkpoints
from mbpo_cli.storage.directory import RunDirectory
from mbpo_cli.storage.records import (
    FILM,
    FROM_PYTHON,
    METRICS,
    STOP,
    evaluations,
    last_logged_step,
)
from mbpo_cli.storage.trainer_state import progress_of
from mbpo_cli.trained import pretrained, video
from mbpo_cli.trained.summary import closing_table, summarize
from mbpo_cli.trainer import Trainer

log = logging.getLogger(__name__)

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def run(
    config: Config,
    path: Path,
    in_sweep: bool = False,
    trust: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
) -> float:
    """Train in the run directory `path`, and return the score.

    Like `mbpo_cli.train`, which documents arguments and errors, without its checks beforehand. `in_sweep`:
    other jobs run, too.
    """
    torch.set_num_threads(num_threads(config, in_sweep))
    # Adam's moments decay to denormal numbers, which are slow to compute with and too small to matter.
    torch.set_flush_denormal(True)
    try:
        directory = RunDirectory(path, asdict(config))
    except failures.Busy as error:
        log.error("%s", error)
        raise
    with directory:
        if 0 < config.trainer.num_env_steps <= config.num_warm_start_steps:
            log.warning(
                "nothing will be trained: the first agent.num_warm_start_steps=%s actions are random, and "
                "the run has trainer.num_env_steps=%s; use more steps, or fewer random actions",
                f"{config.num_warm_start_steps:,}",
                f"{config.trainer.num_env_steps:,}",
            )
        return _run(config, directory, trust, callbacks)


def _run(
    config: Config, directory: RunDirectory, trust: Sequence[str], callbacks: Sequence[Callback]
) -> float:
    start = time.monotonic()
    checkpointer = Checkpointer(config.checkpoint, directory)
    trainer: Trainer | None = None
    logger = Logger()
    status, error, code = "failed", None, None
    try:
        with ExitStack() as stack, failures.StopOnSignal() as signals:
            deadline = start + 3600 * (config.trainer.max_hours or math.inf)
            stop_file = str(directory.path / STOP)

            def should_stop() -> bool:
                return signals.requested or os.path.exists(stop_file) or time.monotonic() >= deadline

            stack.enter_context(logger)
            trainer = build_trainer(config, logger, stack, should_stop, checkpointer.save_if_due)
            if callbacks:
                trainer.reason_to_end = lambda trainer: reason_to_end(
                    callbacks, trainer.record, trainer.logger.unwritten
                )
            is_done = _train(config, trainer, directory, checkpointer, trust)
            status = "done" if is_done else "interrupted"
    except failures.Stopped:  # before the environments were where the last checkpoint left them
        status = "interrupted"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except (Exception, SystemExit) as caught:  # a user's module may even try to exit the process
        failure = _failure(caught, directory.path)
        error, code = failures.one_line(failure), failure.exit_code
        log.error("run failed: %s", error, exc_info=_needs_traceback(failure, caught))
        if failure is caught:
            raise
        raise failure from caught
    finally:
        seconds = checkpointer.earlier_seconds + time.monotonic() - start
        ended = {"status": status, "error": error, "exit_code": code}
        summary = {**ended, **summarize(config, trainer, seconds, evaluations(directory.path))}
        _pass_on(summary, directory, logger, callbacks)
    named = {name for *_, name in untrusted(asdict(config))}
    is_from_python = config.env.id.startswith(FROM_PYTHON)
    log.info("%s", closing_table(summary, directory.path, named, is_from_python))
    if status == "interrupted":
        signals.pass_on()
        raise failures.Interrupted(signals.received)
    return float(summary["score"])


def _train(
    config: Config,
    trainer: Trainer,
    directory: RunDirectory,
    checkpointer: Checkpointer,
    trust: Sequence[str],
) -> bool:
    """Train from the last checkpoint on and save the result; return True unless it was stopped on request."""
    logs = checkpointer.restore(trainer)
    if logs is None:
        pretrained.begin(trainer, config, trust)
    seed, stream = episode_seed(config.seed, "environment", 0), generator(config.seed, "probe")
    difference = unrepeated(partial(build_env, config), seed, stream, trainer.should_stop)
    if difference is not None:
        log.warning("%s %s", config.env.id, difference)
    trainer.logger.sinks += open_sinks(config, directory, logs or {}, trainer.env_steps)
    is_done = trainer.train()
    checkpointer.save(trainer)
    directory.save_policy(trainer.agent.policy_state())
    if is_done and config.trainer.film_episodes:
        video.film(config, trainer, directory.path / FILM)
    if is_done and trainer.options.num_env_steps == 0 == trainer.gradient_steps:
        raise failures.RunFailed(
            "nothing was learned, as the model of the data was not good enough to be used"
        )
    return is_done


def _pass_on(
    summary: Mapping[str, Any], directory: RunDirectory, logger: Logger, callbacks: Sequence[Callback]
) -> None:
    """Write the summary, and give it to trackers and callbacks."""
    try:
        directory.write_summary(summary)
    except OSError as error:
        log.error("the summary cannot be written: %s", error)
        # A sweep finds it nowhere else.
        print(f"mbpo-train: error: {summary['error'] or error}", file=sys.stderr)
    for sink in logger.sinks:
        if isinstance(sink, Background):
            sink.finish(summary)
    end(callbacks, summary)


def _failure(error: BaseException, path: Path) -> failures.RunFailed:
    """Return the failure to report for an error in a run that writes into `path`."""
    if isinstance(error, failures.RunFailed):
        return error
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        free = shutil.disk_usage(path).free
        return failures.StorageFailed(f"{error}; {path} has {free / 1e6:,.1f} MB left")
    return failures.RunFailed(f"{type(error).__name__}: {error}")


def _needs_traceback(failure: failures.RunFailed, caught: BaseException) -> bool:
    """Return False if a message says all: that of an environment says where in its own files it failed."""
    if isinstance(failure, failures.EnvironmentFailed):
        return False
    return failure is not caught or caught.__cause__ is not None


class Checkpointer:
    """Saves a trainer to the checkpoints of its run, and restores it.

    Attributes:
        earlier_seconds: Wall-clock time of the run before it was resumed.
    """

    def __init__(self, options: CheckpointOptions, directory: RunDirectory) -> None:
        self.earlier_seconds = 0.0
        self._options = options
        self._directory = directory
        self._last_time = time.monotonic()
        self._progress: tuple[int | None, ...] | None = None
        self._checkpoints = Checkpoints(directory.path, options.keep, options.keep_saved)

    def restore(self, trainer: Trainer) -> dict[str, int] | None:
        """Restore the newest checkpoint; return the number of bytes of each log file that belong to it.

        None if there is no checkpoint yet.

        Raises:
            NoUsableCheckpoint: The run has made progress, but no checkpoint can be used.
        """
        checkpoint = self._checkpoints.load(trainer.buffers)
        if checkpoint is None:
            metrics = self._directory.path / METRICS
            if metrics.exists() and metrics.stat().st_size > 0:
                raise failures.NoUsableCheckpoint(f"{self._directory.path}: its checkpoints are gone")
            if not self._directory.is_new:
                log.info("the run has no checkpoint yet: starting from step 0")
            return None
        is_exact = trainer.load_state_dict(checkpoint.state)
        if "within_step" in checkpoint.state:  # the rest of the step will change the state
            self._checkpoints.last_step = None
        self._progress = progress_of(trainer)
        self.earlier_seconds = checkpoint.state["stopwatch"]["total_seconds"]
        log.info("resuming from step %d", checkpoint.step)
        num_envs = len(trainer.collector)
        if trainer.env_steps % num_envs > 0 and trainer.env_steps < trainer.options.num_env_steps:
            log.warning(
                "the run ended at step %d, in which not all of env.num_envs=%d took part, so results will "
                "differ from those of a run that is longer from the start",
                trainer.env_steps,
                num_envs,
            )
        if not is_exact:
            log.warning(
                "the environment does not repeat its episode: a new one begins, so results will differ "
                "from those of an uninterrupted run"
            )
        return checkpoint.logs

    def save_if_due(self, trainer: Trainer) -> None:
        """Make a checkpoint at the configured intervals, after the best evaluation, and by the criterion."""
        step, last = trainer.env_steps, self._checkpoints.last_step
        if (
            last is None
            or (last != step and (trainer.best_step == step or self._reason_to_keep(trainer) is not None))
            or step - last >= (self._options.every_steps or math.inf)
            or time.monotonic() - self._last_time >= 60 * (self._options.every_minutes or math.inf)
        ):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Make a checkpoint."""
        state = trainer.state_dict()
        why = None if "within_step" in state else self._reason_to_keep(trainer)
        if why is not None and self._checkpoints.last_step != trainer.env_steps:
            log.info("step %s: the agent is saved because %s", f"{trainer.env_steps:,}", why)
        self._checkpoints.save(
            trainer.env_steps,
            state,
            trainer.buffers,
            trainer.logger.commit(),
            is_best=trainer.best_step == trainer.env_steps,
            is_saved=why is not None,
            replaces=progress_of(trainer) != self._progress,
        )
        self._progress = progress_of(trainer)
        self._last_time = time.monotonic()

    def _reason_to_keep(self, trainer: Trainer) -> str | None:
        """Return why the checkpoint of this step is kept besides the latest and the best, or None."""
        criterion = self._options.save_agent_criteria
        if criterion == "none":  # asked at every step
            return None
        has_ended = bool(trainer.collector.first.any())
        has_evaluated = trainer.is_due(trainer.options.evaluate_every_steps)
        news = {"evaluation": has_evaluated, "custom": has_evaluated or has_ended}
        if trainer.env_steps == 0 or not news.get(criterion, has_ended):
            return None
        window = trainer.options.score_averaging_window_length
        return reason(criterion, self._options.save_agent_value, trainer.record, window)


def open_sinks(config: Config, directory: RunDirectory, logs: dict[str, int], step: int) -> list[Sink]:
    """Open the logs, each file truncated to the size recorded in the checkpoint, and start the trackers."""
    hyperparameters = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, _, _, value in options_in(config)
        if value is not None and not key.endswith("_target_")
    }
    has_trackers = any(isinstance(options, TrackerOptions) for options in config.logger.values())
    tracker_id = directory.tracker_id() if has_trackers else ""
    info = RunInfo(directory.path, tracker_id, asdict(config), hyperparameters, logs)
    last_step = last_logged_step(directory.path) if has_trackers else -1  # before the file is truncated
    sinks: list[Sink] = [JsonLines(directory.path / METRICS, logs.get(METRICS, 0))]
    for name, options in config.logger.items():
        make = partial(build_component, options, info)
        if isinstance(options, TrackerOptions):
            abandon = resolve(options._target_).abandon
            sinks.append(Background(f"logger.{name}", options, make, abandon, last_step))
        else:
            sinks.append(make())
    if config.trainer.diagnostics:  # after the metrics are truncated
        title = f"{config.agent.name} on {config.env.name}, seed {config.seed}"
        sinks.append(CurvePicture(directory.path, title))
    return [*sinks, Progress(config.trainer.num_env_steps, step)]
