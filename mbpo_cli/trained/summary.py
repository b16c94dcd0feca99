"""What a run has done, as numbers and as a table of the log.

Knows a trainer and its results; does not know how the run ended.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from mbpo_cli.config.typed import Config
from mbpo_cli.logs.stopwatch import duration
from mbpo_cli.storage.records import CURVE, EVENTS
from mbpo_cli.trainer import Trainer


def summarize(
    config: Config, trainer: Trainer | None, seconds: float, curve: Mapping[int, float]
) -> dict[str, Any]:
    """Return what a run has done; `trainer` is None if the run failed before it was built."""
    last = trainer.evaluation if trainer is not None else None
    # Without the evaluations of the log, which somebody may have changed, the last one counts.
    curve = curve or ({trainer.env_steps: last.return_mean} if trainer is not None and last else {})
    scored = dict(list(curve.items())[-config.trainer.num_score_evaluations :])
    best = trainer.best_evaluation if trainer is not None else None
    return {
        "agent": config.agent.name,
        "env": config.env.name,
        "seed": config.seed,
        "threads": torch.get_num_threads(),
        "stopped_because": trainer.stop_reason if trainer is not None else None,
        "env_steps": trainer.env_steps if trainer is not None else 0,
        "episodes": trainer.collector.episodes if trainer is not None else 0,
        "gradient_steps": trainer.gradient_steps if trainer is not None else 0,
        "wall_seconds": seconds,
        "phase_seconds": trainer.stopwatch.seconds if trainer is not None else {},
        "score": statistics.fmean(scored.values()) if scored else None,
        "score_steps": list(scored),
        "eval_return_mean": last.return_mean if last is not None else None,
        "eval_return_std": last.return_std if last is not None else None,
        "eval_episodes": len(last.returns) if last is not None else 0,
        "best_eval_return_mean": best.return_mean if best is not None else None,
        "best_step": trainer.best_step if trainer is not None else None,
    }


def closing_table(
    summary: dict[str, Any], path: Path, trust: Collection[str] = (), is_from_python: bool = False
) -> str:
    """Return the table that is logged at the end of a run, with commands that show its results.

    `trust` are packages that its configuration names. If `is_from_python`, a function of Python made the
    environment.
    """
    phases = summary["phase_seconds"].items()
    because = summary["stopped_because"]
    rows = {
        "status": f"{summary['status']}, stopped because {because}" if because else summary["status"],
        "real steps": f"{summary['env_steps']:,} in {summary['episodes']:,} episodes",
        "gradient steps": f"{summary['gradient_steps']:,}",
        "wall time": duration(summary["wall_seconds"]),
        "time by phase": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases),
    }
    if summary["eval_episodes"]:
        last = f"{summary['eval_return_mean']:.1f} ± {summary['eval_return_std']:.1f}"
        rows["last evaluation"] = f"{last} over {summary['eval_episodes']} episodes"
        rows["best evaluation"] = f"{summary['best_eval_return_mean']:.1f} at step {summary['best_step']:,}"
        steps = ", ".join(f"{step:,}" for step in summary["score_steps"])
        rows["score"] = f"{summary['score']:.1f}, the mean of the evaluations at steps {steps}"
    place = shlex.quote(str(path))
    trusted = "".join(f" --trust {package}" for package in sorted(trust))
    rows["run directory"] = str(path)
    if summary["status"] == "interrupted":
        rows["resume"] = (
            f"mbpo_cli.train(config, {str(path)!r}, env=make_env)"
            if is_from_python
            else f"mbpo-train {shlex.quote(f'resume={path}')}"
        )
    if (path / CURVE).exists():
        rows["learning curve"] = str(path / CURVE)
    if any(path.glob(f"{EVENTS}*")):
        rows["TensorBoard"] = f"tensorboard --logdir {place}"
    if is_from_python:
        rows["evaluate policy"] = f"evaluation_of(mbpo_cli.load({str(path)!r}, env=make_env))"
    else:
        rows["evaluate policy"] = f"mbpo-evaluate {place}{trusted}"
    if summary["phase_seconds"].get("fit") and not is_from_python:
        rows["model errors"] = f"mbpo-model {place}{trusted}"
    rows["compare runs"] = f"mbpo-report {shlex.quote(str(path.parent))}"
    width = max(map(len, rows))
    title = f"{summary['agent']} on {summary['env']}, seed {summary['seed']}"
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])
