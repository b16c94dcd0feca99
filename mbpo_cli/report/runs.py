"""Read run directories, finished or not, with whatever files they have and in whatever state those are.

Knows files; does not know groups or statistics, and does not import torch.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.storage import records

log = logging.getLogger(__name__)

UNKNOWN = "?"
MAX_DEPTH = 50  # of run directories below those that are searched
MAX_NUMBER = 1e30  # larger ones overflow in sums of squares


@dataclass(frozen=True)
class Run:
    """One run, finished or not.

    Attributes:
        status: done, failed, interrupted, running or killed.
        options: Value of each option that affects the result, the seed apart, as text by dotted key;
            empty if the configuration could not be read.
        returns: Mean return of each evaluation, by real environment step.
        env_steps: The last real environment step on record.
        score: The summary's score, or the last evaluation if the summary has none.
        wall_seconds: Wall time; None for a run that has not ended.
    """

    path: Path
    status: str
    error: str
    agent: str
    env: str
    seed: str
    options: Mapping[str, str]
    returns: Mapping[int, float]
    env_steps: int
    score: float | None
    wall_seconds: float | None


def find(roots: Iterable[Path]) -> list[Path]:
    """Return the run directories below some directories, each once, in order.

    Raises:
        ConfigError: A root is not a directory, or has no run in it.
    """
    found: dict[Path, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"{root}: not a directory")
        inside: list[Path] = []
        for folder, folders, files in os.walk(root, onerror=_warn):
            folders.sort()
            if len(Path(folder).parts) - len(root.parts) > MAX_DEPTH:
                folders.clear()
            if not {records.CONFIG, records.METRICS, records.SUMMARY, records.LOCK}.isdisjoint(files):
                folders.clear()
                inside.append(Path(folder))
        if not inside:
            raise ConfigError(f"{root}: holds no run")
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def read(path: Path) -> Run | None:
    """Return the run in a directory, or None if neither its agent nor its environment is known."""
    config: dict[str, Any] = {}
    try:
        records.check_own(path)
    except ConfigError as error:
        _warn(f"left out: {error}")
        return None
    try:
        config = dict(records.leaves(records.stored_config(path)))
    except ConfigError as error:
        _warn(error)
    summary = read_summary(path)
    returns, last_step = _evaluations(path / records.METRICS)
    score = _number(summary.get("score"))
    if score is None:
        score = returns[max(returns)] if returns else _number(summary.get("eval_return_mean"))
    run = Run(
        path=path,
        status=_text(summary["status"]) if "status" in summary else _status_of_lock(path / records.LOCK),
        error=one_line(summary.get("error") or ""),
        agent=_text(config.get("agent.name", summary.get("agent"))),
        env=_text(config.get("env.name", summary.get("env"))),
        seed=_text(config.get("seed", summary.get("seed"))),
        options={
            one_line(key): one_line(value if isinstance(value, str) else json.dumps(value, default=str))
            for key, value in config.items()
            if key != "seed" and not key.startswith(records.HARMLESS)
        },
        returns=returns,
        env_steps=max(last_step, int(_number(summary.get("env_steps")) or 0)),
        score=score,
        wall_seconds=_number(summary.get("wall_seconds")),
    )
    if run.agent == run.env == UNKNOWN:
        _warn(f"{path}: left out, its agent and environment are unknown")
        return None
    return run


def read_summary(path: Path) -> Mapping[str, Any]:
    """Return the summary of the run in a directory, which is empty if there is none that can be read."""
    summary: Mapping[str, Any] = _contents(path / records.SUMMARY, _mapping) or {}
    return summary


def _contents(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """Return the parsed contents of a file, or None if it does not exist or cannot be read."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        _warn(f"{path}: cannot be read: {error}")
    return None


def _mapping(contents: bytes) -> dict[str, Any]:
    value = json.loads(contents)
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def _evaluations(path: Path) -> tuple[dict[int, float], int]:
    """Return the evaluation returns by step, and the last step that was logged."""
    returns: dict[int, float] = {}
    last_step, broken = 0, 0
    lines = (_contents(path, bytes) or b"").split(b"\n")
    if not lines[-1].endswith(b"}"):  # empty, or an incomplete line of a run that is writing or was killed
        lines.pop()
    # Few lines are evaluations; parsing the others would take most of the time.
    for line in [line for line in lines[:-1] if records.EVALUATION.encode() in line] + lines[-1:]:
        try:
            row = json.loads(line)
            step, value = int(row["step"]), _number(row.get(records.EVALUATION))
            if not 0 <= step <= MAX_NUMBER:
                raise ValueError(step)
            last_step = max(last_step, step)
            if value is not None:
                returns[step] = value
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            broken += 1
    if broken:
        _warn(f"{path}: skipped {broken} lines that cannot be read")
    return dict(sorted(returns.items())), last_step


def _status_of_lock(path: Path) -> str:
    """Return the status of a run without a summary: running if a process holds its lock, or else killed."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except OSError:  # no lock file, or a file system without locks
        pass
    return "killed"


def _warn(message: object) -> None:
    log.warning("%s", one_line(message))


def _number(value: object) -> float | None:
    """Return a number as a float, and None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER:
        return float(value)
    return None


def _text(value: object) -> str:
    return UNKNOWN if value is None else one_line(value)
