"""Read published learning curves, and find the one for an environment.

Knows a CSV file; does not know runs, statistics or pictures.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mbpo_cli.failures import ConfigError

COLUMNS = ("env", "env_steps", "return_mean", "return_std", "num_seeds")


@dataclass(frozen=True)
class Reference:
    """A published curve for one environment, with one entry per point."""

    steps: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_seeds: int

    def before(self, step: float) -> tuple[float, float, float] | None:
        """Return step, mean and standard deviation of the last point at or before a step."""
        points = [p for p in zip(self.steps, self.mean, self.std, strict=True) if p[0] <= step]
        return points[-1] if points else None


def read(path: Path) -> dict[str, Reference]:
    """Return the curves in a file by the plain name of their environment.

    Raises:
        ConfigError: The file cannot be read.
    """
    points: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise ValueError(f"has no column {', '.join(missing)}")
            for row in rows:
                point = tuple(float(row[name]) for name in COLUMNS[1:])
                if not all(map(math.isfinite, point)):
                    raise ValueError(f"line {rows.line_num}: a number is not finite")
                points[plain(row["env"])].append(point)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as a reference: {error}") from error
    curves = {}
    for name, points_of_env in points.items():
        steps, mean, std, num_seeds = zip(*sorted(points_of_env), strict=True)
        curves[name] = Reference(steps, mean, std, int(num_seeds[-1]))
    return curves


def matching(curves: Mapping[str, Reference], names: Iterable[str]) -> Reference | None:
    """Return the curve for an environment with one of these names: Hopper matches hopper and Hopper-v5."""
    return next((curves[plain(name)] for name in names if plain(name) in curves), None)


def plain(name: str) -> str:
    """Return the name of an environment in lower case, without namespace, version and punctuation."""
    return re.sub(r"[\W_]", "", re.sub(r"-v\d+$", "", name.rpartition("/")[2])).lower()
