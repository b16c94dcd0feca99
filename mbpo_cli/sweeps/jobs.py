"""The jobs of a sweep: where each writes, and what has become of it.

Knows run directories; does not know what launches jobs, nor Hydra.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mbpo_cli.config.typed import Config
from mbpo_cli.failures import Busy, RunFailed, one_line
from mbpo_cli.storage.directory import check_free, check_same
from mbpo_cli.storage.files import write_whole
from mbpo_cli.storage.records import SUMMARY

MAX_NAME = 150


class SweepFailed(RunFailed):
    """Some jobs of a sweep have no result; the table in the log names them."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: What it is called.
        overrides: What the command line says of it.
        path: Where it writes.
        config: What it computes.
    """

    name: str
    overrides: tuple[str, ...]
    path: Path
    config: Config

    @property
    def summary(self) -> dict[str, Any] | None:
        """How its last attempt ended; None if it has not."""
        return summary_in(self.path)

    @property
    def score(self) -> float | None:
        """Its result; None until it has taken all steps that are asked for."""
        summary = self.summary
        if summary is None or summary["status"] != "done":
            return None
        is_long_enough = summary["env_steps"] >= self.config.trainer.num_env_steps
        return float(summary["score"]) if is_long_enough else None

    def check(self) -> None:
        """Check that nothing else is in its directory.

        Raises:
            ConfigError: A run of another configuration is.
        """
        check_same(self.path, asdict(self.config), "hydra.sweep.dir")

    def record_failure(self, error: object) -> None:
        """Write the summary of a job that could not write one itself, unless it still runs."""
        if self.summary is not None:
            return
        try:
            check_free(self.path)
        except Busy:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        summary = {
            "status": "failed",
            "error": one_line(error),
            "agent": self.config.agent.name,
            "env": self.config.env.name,
            "seed": self.config.seed,
        }
        write_whole(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def summary_in(path: Path) -> dict[str, Any] | None:
    """Return the summary in a directory, or None if there is none that can be read."""
    try:
        summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and "status" in summary else None


def name_of(overrides: Sequence[str]) -> str:
    """Return overrides as the name of a directory."""
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(overrides)).strip("_") or "default"
    if len(name) <= MAX_NAME:
        return name
    return f"{name[:MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def closing_table(jobs: Sequence[Job], earlier: int, reasons: Mapping[Path, str]) -> str:
    """Return what ends a sweep: how many jobs are done, and what became of each of the others.

    Args:
        jobs: All jobs.
        earlier: How many were done before.
        reasons: Why there is no summary where there is none, by directory.
    """
    missing = [job for job in jobs if job.score is None]
    before = f" ({earlier} before)" if earlier else ""
    lines = [f"{len(jobs) - len(missing)} of {len(jobs)} jobs done{before}"]
    width = max((len(job.name) for job in missing), default=0)
    for job in missing:
        summary = job.summary or {"status": "not finished", "error": reasons.get(job.path)}
        error = summary.get("error")
        lines.append(f"  {job.name:<{width}}  {summary['status']}{f': {error}' if error else ''}")
    if missing:
        lines.append("the same command runs what is missing, and nothing else")
    return "\n".join(lines)
