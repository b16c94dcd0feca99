"""One run from its directory to its summary, whatever way it ends.

Knows the order of a run's life; the algorithm is the trainer's.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from mbpo_cli.build import build_trainer, num_threads
from mbpo_cli.config import Config, options_in
from mbpo_cli.interrupt import StopOnInterrupt
from mbpo_cli.logger import JsonLines, Logger, TensorBoardEvents
from mbpo_cli.options import RunFailed, one_line
from mbpo_cli.progress import Progress
from mbpo_cli.run_directory import RunDirectory
from mbpo_cli.trainer import Trainer

log = logging.getLogger(__name__)


def run(config: Config, path: Path, in_sweep: bool = False) -> float:
    """Train as configured, writing into the directory `path`; beside other jobs, if in a sweep.

    Returns:
        The mean return of the last evaluation.

    Raises:
        ConfigError: The directory holds a run already.
        RunFailed: Anything else went wrong.
        KeyboardInterrupt: Ctrl-C was pressed; the summary is written, and the policy too
            unless it was pressed twice.
    """
    torch.set_num_threads(num_threads(config, in_sweep))
    # Moments of Adam decay into denormal numbers, which are slow and too small to matter.
    torch.set_flush_denormal(True)
    directory = RunDirectory(path, yaml.safe_dump(asdict(config), sort_keys=False))
    start = time.monotonic()
    if config.trainer.num_env_steps <= config.agent.num_warm_start_steps:
        log.warning("nothing will be trained: the warm start is as long as trainer.num_env_steps")
    trainer: Trainer | None = None
    status, error = "failed", None
    try:
        with ExitStack() as stack, StopOnInterrupt() as interrupt:
            logger = stack.enter_context(_logger(config, directory))
            trainer = build_trainer(config, logger, stack, lambda: interrupt.requested)
            status = "done" if trainer.train() else "interrupted"
            directory.save_policy(trainer.agent.policy_state())
    except KeyboardInterrupt:
        status = "interrupted"
    except Exception as caught:
        error = f"{type(caught).__name__}: {one_line(caught)}"
        log.error("run failed: %s", error, exc_info=True)
        raise RunFailed(error) from caught
    finally:
        summary = summarize(config, trainer, status, time.monotonic() - start, error)
        directory.write_summary(summary)
    log.info("%s", closing_table(summary, directory.path))
    if status == "interrupted":
        raise KeyboardInterrupt
    return float(summary["eval_return_mean"])


def _logger(config: Config, directory: RunDirectory) -> Logger:
    return Logger(
        [
            JsonLines(directory.metrics),
            TensorBoardEvents(directory.events, hyperparameters(config)),
            Progress(config.trainer.num_env_steps),
        ]
    )


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """Return the options that are set, by key, as values that TensorBoard's HParams can show."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, _, _, value in options_in(config)
        if value is not None and not key.endswith("_target_")
    }


def summarize(
    config: Config, trainer: Trainer | None, status: str, wall_seconds: float, error: str | None
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
    rows.append(("run directory", str(path)))
    rows.append(("look at it", f"tensorboard --logdir {path}"))
    width = max(len(name) for name, _ in rows)
    title = f"{summary['agent']} on {summary['env']}, seed {summary['seed']}"
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])
