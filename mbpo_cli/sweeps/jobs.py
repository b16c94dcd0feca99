"""The jobs of a sweep: their directories, and how each of them ended.

Knows run directories; does not know Hydra, or what launches the jobs. The plugins import it early, so it
imports torch, which is slow to load, only when a directory is checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from mbpo_cli.failures import Busy, ConfigError, RunFailed, one_line
from mbpo_cli.storage import records
from mbpo_cli.storage.files import write_json

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config

MAX_NAME = 150  # bytes
MAX_REASON = 300
MAX_SUMMARY = 1_000_000  # bytes
LABELS = ("agent.name", "env.name")  # options that change no result
# A finished run that resumes computes its score again, but not its evaluations.
RECOMPUTED = "trainer.num_score_evaluations"


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
        path = self.path / records.SUMMARY
        try:
            summary = json.loads(path.read_bytes()) if is_file(path, MAX_SUMMARY) else None
        except (OSError, ValueError, RecursionError):
            return None
        return summary if isinstance(summary, dict) and isinstance(summary.get("status"), str) else None

    @property
    def score(self) -> float | None:
        """Its score; None until a run with its configuration has taken all of its steps."""
        return self.result()[0]

    def result(self) -> tuple[float | None, str]:
        """Return its score or None, and one line on how its last attempt ended."""
        summary = self.summary
        if summary is None:
            return None, "not finished"
        status, error, score, steps = (summary.get(key) for key in ("status", "error", "score", "env_steps"))
        num_steps, num_envs = self.config.trainer.num_env_steps, self.config.env.num_envs
        least = 0 if summary.get("stopped_because") else num_steps
        if status != "done":
            reason = f"{status}: {error}" if error else str(status)
        elif not self._is_of_this_job(summary):
            reason = "failed: its summary is of another run"
        elif not is_number(steps) or not least <= steps < num_steps + num_envs:
            reason = f"not finished: {steps} of {num_steps} steps"
        elif not is_number(score):
            reason = f"failed: the score in its summary is {json.dumps(score)}"
        else:
            return float(score), "done"
        return None, brief(reason)

    def check(self) -> None:
        """Check that the run in its directory, if there is one, can be continued or counted as this job.

        Raises:
            ConfigError: It has another configuration, or has already taken this job's steps with other
                values of what decides its score.
        """
        from mbpo_cli.storage.directory import check_same

        check_same(self.path, asdict(self.config), "hydra.sweep.dir")
        steps = (self.summary or {}).get("env_steps")
        if not is_number(steps) or steps < self.config.trainer.num_env_steps:
            return
        changed = {key: both for key, both in self._changes_of_score().items() if key != RECOMPUTED}
        if changed:
            values = ", ".join(f"{key}: {both}" for key, both in changed.items())
            raise ConfigError(
                f"hydra.sweep.dir={self.path}: already holds a run of {steps} steps with other values "
                f"({values})"
            )

    def record_failure(self, error: object, earlier: Mapping[str, Any] | None = None) -> bool:
        """Write a summary with an error, unless the job is running or has a summary other than `earlier`.

        Returns:
            True if there is now a summary other than `earlier`.
        """
        from mbpo_cli.storage.directory import check_free

        if self.summary not in (None, earlier):
            return True
        summary = {
            "status": "failed",
            "error": brief(error),
            "agent": self.config.agent.name,
            "env": self.config.env.name,
            "seed": self.config.seed,
        }
        try:
            check_free(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / records.SUMMARY, summary)
        except (Busy, OSError):  # for example on a full disk
            return False
        return True

    def _is_of_this_job(self, summary: Mapping[str, Any]) -> bool:
        own = {"agent": self.config.agent.name, "env": self.config.env.name, "seed": self.config.seed}
        try:
            if self._changes_of_score():
                return False
            digest = records.config_digest(self.path)
        except (ConfigError, OSError):
            return False
        # Versions before 0.2 store no digest.
        return own.items() <= summary.items() and summary.get("config", digest) == digest

    def _changes_of_score(self) -> dict[str, str]:
        """Return how options that change the score differ from those of the stored run."""
        changes = records.changes(records.stored_config(self.path), asdict(self.config))
        return {
            key: values
            for key, values in changes.items()
            if key in records.SCORED or not key.startswith(records.HARMLESS)
        }


def is_file(path: Path, max_bytes: float = math.inf) -> bool:
    """Return True for a file of at most that size; a link leads elsewhere, and a pipe blocks who reads it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= max_bytes


def is_number(value: object) -> TypeGuard[int | float]:
    """Return True for a finite number as JSON has them, no larger than a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def brief(reason: object) -> str:
    """Return a reason in one line of limited length."""
    line = one_line(reason)
    return line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 3]}..."


def name_of(overrides: Sequence[str], unique: bool = False) -> str:
    """Return a directory name for overrides; names that are cut stay unique.

    With `unique`, also overrides that differ only in replaced characters or in case get different names.
    """
    text = ",".join(overrides)
    name = re.sub(r"[^\w.=,+-]+", "_", text).strip("_") or "default"
    if len(name.encode()) <= MAX_NAME and not unique:
        return name
    digest = hashlib.sha256((text if unique else name).encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name.encode()[:MAX_NAME].decode(errors='ignore')}-{digest}"


def names_of(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return a directory name for the overrides of each job, from those that not all jobs share.

    Jobs with different overrides get names that differ on every file system.
    """
    common = set.intersection(*map(set, jobs))
    own = [[item for item in job if item not in common] or job for job in jobs]
    counts = Counter(folded(name_of(overrides)) for overrides in own)
    return [name_of(overrides, unique=counts[folded(name_of(overrides))] > 1) for overrides in own]


def folded(name: str) -> str:
    """Return what names have in common that some file systems do not distinguish."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def check_directories(jobs: Sequence[Job], chosen_by: str) -> None:
    """Check that no job's directory is that of another or lies in it, whatever the file system.

    `chosen_by` is the option, with its value, that the user chose the directories with.

    Raises:
        ConfigError: The message names two jobs and `chosen_by`.
    """
    paths = [Path(os.path.realpath(job.path)) for job in jobs]
    places = sorted((tuple(map(folded, path.parts)), number) for number, path in enumerate(paths))
    for (outer, first), (inner, second) in pairwise(places):
        if inner[: len(outer)] != outer:
            continue
        if paths[first] == paths[second]:
            problem = "the same directory"
        elif inner == outer:
            problem = "directories that some file systems do not distinguish"
        else:
            problem = "directories one inside the other"
        where = " and ".join(dict.fromkeys(str(jobs[number].path) for number in (first, second)))
        raise ConfigError(f"{chosen_by}: {_pair(jobs, first, second)} have {problem}: {where}")


def check_equal(jobs: Sequence[Job]) -> None:
    """Raise `ConfigError` if two jobs have the same configuration, apart from names; it names both."""
    known: dict[str, int] = {}
    for number, job in enumerate(jobs):
        options = sorted((key, repr(value)) for key, value in records.leaves(asdict(job.config)))
        other = known.setdefault(str([item for item in options if item[0] not in LABELS]), number)
        if other != number:
            raise ConfigError(f"{_pair(jobs, other, number)} have the same configuration; leave one out")


def _pair(jobs: Sequence[Job], *numbers: int) -> str:
    """Return two jobs as text, with the overrides that distinguish them."""
    texts = []
    for number, other in zip(numbers, numbers[::-1], strict=True):
        items = [item for item in jobs[number].overrides if not item.startswith("hydra.sweep.")]
        own = [item for item in items if item not in jobs[other].overrides] or items
        texts.append(f"job {number} ({' '.join(own)})")
    return " and ".join(texts)


def closing_table(jobs: Sequence[Job], num_earlier: int, reasons: Mapping[Path, str]) -> str:
    """Return the table that ends a sweep: the number of jobs done, and how each other job ended.

    `num_earlier` of the jobs were done before; `reasons` holds by directory what could not be recorded.
    """
    results = [(job, *job.result()) for job in jobs]
    missing = [(job, how) for job, score, how in results if score is None]
    before = f" ({num_earlier} before)" if num_earlier else ""
    lines = [f"{len(jobs) - len(missing)} of {len(jobs)} jobs done{before}"]
    width = max((len(job.name) for job, _ in missing), default=0)
    for job, how in missing:
        lines.append(f"  {job.name:<{width}}  {reasons.get(job.path, how)}")
    if missing:
        lines.append("run the same command again to finish these jobs; jobs that are done are kept")
    return "\n".join(lines)
