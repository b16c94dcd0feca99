"""The jobs of a sweep: their directories, and how each of them ended.

Knows run directories; does not know Hydra, or what launches the jobs.
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
    """Some jobs of a sweep have no score; the table in the log names them."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: Its name, unique in the sweep.
        overrides: Its command-line overrides.
        path: Its run directory.
        config: Its configuration.
    """

    name: str
    overrides: tuple[str, ...]
    path: Path
    config: Config

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of its last attempt; None if there is none, or none that can be read."""
        try:
            summary = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return summary if isinstance(summary, dict) and "status" in summary else None

    @property
    def score(self) -> float | None:
        """Its score; None until it has taken all steps of its configuration."""
        summary = self.summary
        if summary is None or summary["status"] != "done":
            return None
        is_long_enough = summary["env_steps"] >= self.config.trainer.num_env_steps
        return float(summary["score"]) if is_long_enough else None

    def check(self) -> None:
        """Check that its directory holds no other run.

        Raises:
            ConfigError: It holds a run with another configuration.
        """
        check_same(self.path, asdict(self.config), "hydra.sweep.dir")

    def record_failure(self, error: object) -> None:
        """Write a summary with an error, unless there is a summary or the job still runs."""
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


def name_of(overrides: Sequence[str]) -> str:
    """Return a directory name for overrides; names that are cut stay unique."""
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(overrides)).strip("_") or "default"
    if len(name) <= MAX_NAME:
        return name
    return f"{name[:MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def closing_table(jobs: Sequence[Job], num_earlier: int, reasons: Mapping[Path, str]) -> str:
    """Return the table that ends a sweep: the number of jobs done, and the status of each other job.

    Args:
        jobs: All jobs.
        num_earlier: Number of jobs that were done before.
        reasons: Why a job has no summary, by its directory.
    """
    missing = [job for job in jobs if job.score is None]
    before = f" ({num_earlier} before)" if num_earlier else ""
    lines = [f"{len(jobs) - len(missing)} of {len(jobs)} jobs done{before}"]
    width = max((len(job.name) for job in missing), default=0)
    for job in missing:
        summary = job.summary or {"status": "not finished", "error": reasons.get(job.path)}
        error = summary.get("error")
        lines.append(f"  {job.name:<{width}}  {summary['status']}{f': {error}' if error else ''}")
    if missing:
        lines.append("run the same command again to finish these jobs; jobs that are done are kept")
    return "\n".join(lines)
