"""What the directories of runs hold, however far each run got and whatever state its files are in.

Knows files; does not know groups or statistics, and does not import torch.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.storage.records import CONFIG, EVALUATION, LOCK, METRICS, SUMMARY, leaves, stored_config

log = logging.getLogger(__name__)

UNKNOWN = "?"


@dataclass(frozen=True)
class Run:
    """One run, finished or not.

    Attributes:
        path: Its directory.
        status: done, failed, interrupted, running or killed.
        error: What it failed with.
        agent: Name of the agent.
        env: Name of the environment.
        seed: Its seed, as text.
        config: Value of every option by its dotted key; empty where it could not be read.
        returns: Mean return of each evaluation, by real environment step.
        env_steps: Real environment steps that it is known to have taken.
        score: Its return at the end: that of its summary, or else of its last evaluation.
        wall_seconds: Wall time; None until it has ended.
    """

    path: Path
    status: str
    error: str
    agent: str
    env: str
    seed: str
    config: Mapping[str, Any]
    returns: Mapping[int, float]
    env_steps: int
    score: float | None
    wall_seconds: float | None


def find(roots: Iterable[Path]) -> list[Path]:
    """Return the run directories in these directories, each once, in order.

    Raises:
        ConfigError: One is not a directory, or holds no run.
    """
    found: dict[Path, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"{root}: not a directory")
        inside: list[Path] = []
        for folder, folders, files in os.walk(root, onerror=_warn):
            folders.sort()
            if not {CONFIG, METRICS, SUMMARY, LOCK}.isdisjoint(files):
                folders.clear()
                inside.append(Path(folder))
        if not inside:
            raise ConfigError(f"{root}: holds no run")
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def read(path: Path) -> Run | None:
    """Return the run in a directory, or None where nothing tells what it was."""
    config: dict[str, Any] = {}
    try:
        config = dict(leaves(stored_config(path)))
    except ConfigError as error:
        _warn(error)
    summary = _summary(path)
    returns, last_step = _evaluations(path / METRICS)
    names = [_text(config.get(f"{noun}.name", summary.get(noun))) for noun in ("agent", "env")]
    if names == [UNKNOWN, UNKNOWN]:
        _warn(f"{path}: left out, as nothing tells which agent and environment it is of")
        return None
    score = _number(summary.get("score"))
    if score is None:
        score = returns[max(returns)] if returns else _number(summary.get("eval_return_mean"))
    return Run(
        path=path,
        status=_text(summary["status"]) if "status" in summary else _open_status(path / LOCK),
        error=_text(summary["error"]) if summary.get("error") else "",
        agent=names[0],
        env=names[1],
        seed=_text(config.get("seed", summary.get("seed"))),
        config=config,
        returns=returns,
        env_steps=max(last_step, int(_number(summary.get("env_steps")) or 0)),
        score=score,
        wall_seconds=_number(summary.get("wall_seconds")),
    )


def _summary(path: Path) -> dict[str, Any]:
    """Return what closed a run; nothing where it is still open."""
    try:
        summary = json.loads((path / SUMMARY).read_bytes())
        if not isinstance(summary, dict):
            raise ValueError("not a mapping")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _warn(f"{path / SUMMARY}: cannot be read: {error}")
        return {}
    return summary


def _evaluations(path: Path) -> tuple[dict[int, float], int]:
    """Return the evaluations by step, and the last step that was logged."""
    returns: dict[int, float] = {}
    last_step, broken = 0, 0
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        _warn(f"{path}: cannot be read: {error}")
        return {}, 0
    if not lines[-1].endswith(b"}"):  # nothing, or half a line of a run that still writes or was killed
        lines.pop()
    # Only a few lines are evaluations, and to parse the others would take most of the time.
    for line in [line for line in lines[:-1] if EVALUATION.encode() in line] + lines[-1:]:
        try:
            row = json.loads(line)
            last_step = max(last_step, int(row["step"]))
            value = _number(row.get(EVALUATION))
            if value is not None:
                returns[int(row["step"])] = value
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            broken += 1
    if broken:
        _warn(f"{path}: {broken} lines cannot be read, and are left out")
    return dict(sorted(returns.items())), last_step


def _open_status(lock: Path) -> str:
    """Return whether a run without a summary is running: then a process holds its lock."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return "killed"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except OSError:  # a file system without locks
        return "killed"
    finally:
        os.close(descriptor)
    return "killed"


def _warn(message: object) -> None:
    log.warning("%s", one_line(message))


def _number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _text(value: object) -> str:
    """Return a value as one line of text."""
    return UNKNOWN if value is None else one_line(value)
