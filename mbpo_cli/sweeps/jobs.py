"""The jobs of a sweep: their directories, and how each of them ended.

Knows run directories; does not know Hydra, or what launches the jobs. The plugins import it early, so it
imports torch, which is slow to load, only when a directory is checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbpo_cli.failures import Busy, RunFailed, one_line
from mbpo_cli.storage.files import write_json
from mbpo_cli.storage.records import SUMMARY

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config

MAX_NAME = 150


class SweepFailed(RunFailed):
    """Some jobs of a sweep have no score; the table in the log names them."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep; its name is unique in the sweep, and `path` is its run directory."""

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
        summary = self.summary or {}
        if summary.get("status") != "done" or summary["env_steps"] < self.config.trainer.num_env_steps:
            return None
        return float(summary["score"])

    def check(self) -> None:
        """Raise `ConfigError` if its directory holds a run with another configuration."""
        from mbpo_cli.storage.directory import check_same

        check_same(self.path, asdict(self.config), "hydra.sweep.dir")

    def record_failure(self, error: object) -> None:
        """Write a summary with an error, unless there is a summary or the job still runs."""
        from mbpo_cli.storage.directory import check_free

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
        write_json(self.path / SUMMARY, summary)


def name_of(overrides: Sequence[str]) -> str:
    """Return a directory name for overrides; names that are cut stay unique."""
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(overrides)).strip("_") or "default"
    if len(name) <= MAX_NAME:
        return name
    return f"{name[:MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def closing_table(jobs: Sequence[Job], num_earlier: int, reasons: Mapping[Path, str]) -> str:
    """Return the table that ends a sweep: the number of jobs done, and the status of each other job.

    `num_earlier` of the jobs were done before; `reasons` holds why a job has no summary, by its directory.
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
