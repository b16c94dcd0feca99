"""The table: one row for each group, for people and for programs.

Knows groups and statistics; does not know pictures or pages.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium

from mbpo_cli.report.groups import Group
from mbpo_cli.report.statistics import Curve, Estimate, interquartile_mean, median_steps

DASH = "-"
HEADINGS = (
    "env",
    "agent",
    "model",
    "seeds",
    "real steps",
    "mean ± std",
    "IQM [95 %]",
    "steps to threshold",
    "wall time",
    "failed",
    "unfinished",
)
NUM_TEXTS = 3  # columns that are not numbers

Row = dict[str, Any]


@dataclass(frozen=True)
class Threshold:
    """A return that tells who learns sooner, and who says so."""

    value: float
    source: str


def row(group: Group, threshold: Threshold | None) -> Row:
    """Return a group in numbers, by the name of the column in the CSV file; None is what cannot be known."""
    scores, counted = group.scores, group.counted
    iqm = interquartile_mean(scores) if scores else None
    reached = [run.env_steps for run in counted]
    took, num_there = (
        median_steps([run.returns for run in counted], threshold.value) if threshold and scores else (None, 0)
    )
    times = [run.wall_seconds for run in counted if run.wall_seconds is not None]
    return {
        "env": group.env,
        "agent": group.label,
        "model": group.model,
        "seeds": len(scores),
        "failed": group.num_failed,
        "unfinished": group.num_unfinished,
        "of_finished_runs": group.is_finished,
        "steps_min": min(reached, default=None),
        "steps_max": max(reached, default=None),
        "return_mean": statistics.fmean(scores) if scores else None,
        "return_std": statistics.stdev(scores) if len(scores) > 1 else None,
        "return_iqm": iqm.value if iqm else None,
        "return_iqm_low": iqm.low if iqm else None,
        "return_iqm_high": iqm.high if iqm else None,
        "threshold": threshold.value if threshold else None,
        "threshold_source": threshold.source if threshold else None,
        "steps_to_threshold": took,
        "seeds_at_threshold": num_there,
        "wall_seconds": statistics.median(times) if times else None,
    }


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as a person reads it below the headings."""
    to_threshold = steps(row["steps_to_threshold"])
    if 0 < row["seeds_at_threshold"] < row["seeds"]:
        to_threshold += f" ({row['seeds_at_threshold']} of {row['seeds']})"
    ends = dict.fromkeys((steps(row["steps_min"]), steps(row["steps_max"])))
    iqm = Estimate(row["return_iqm"], row["return_iqm_low"], row["return_iqm_high"])
    return (
        row["env"],
        row["agent"],
        row["model"],
        str(row["seeds"]),
        " to ".join(ends),
        " ± ".join(numbers(row["return_mean"], row["return_std"])).removesuffix(f" ± {DASH}"),
        DASH if iqm.value is None else interval(iqm),
        to_threshold,
        duration(row["wall_seconds"]),
        str(row["failed"] or DASH),
        str(row["unfinished"] or DASH),
    )


def threshold_of(groups: Sequence[Group], curves: Sequence[Curve], chosen: float | None) -> Threshold | None:
    """Return the return to reach on an environment: the one chosen, or Gymnasium's, or one of these runs."""
    if chosen is not None:
        return Threshold(chosen, "--threshold")
    for group in groups:
        spec = gymnasium.registry.get(group.config.get("env.id", ""))
        if spec is not None and spec.reward_threshold is not None:
            return Threshold(float(spec.reward_threshold), "Gymnasium's reward threshold")
    lows = [float(curve.mean.min()) for curve in curves if len(curve.mean)]
    finals = [statistics.fmean(group.scores) for group in groups if group.scores]
    if not lows or not finals:
        return None
    low, best = min(lows), max(finals)
    return Threshold(
        low + 0.95 * (best - low), "95 % of the way from the lowest mean evaluation to the best group"
    )


def as_text(rows: Sequence[Row]) -> str:
    """Return the table for a terminal."""
    table = [HEADINGS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < NUM_TEXTS else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def as_csv(rows: Sequence[Row]) -> str:
    """Return the table for programs: full precision, empty where a value is not known."""
    file = io.StringIO()
    table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return file.getvalue()


def numbers(*values: float | None) -> tuple[str, ...]:
    """Return returns as text, all with as many decimals as the largest deserves; a dash stands for None."""
    size = max((abs(value) for value in values if value is not None), default=0.0)
    places = 0 if size >= 100 else 1 if size >= 10 else 2
    return tuple(DASH if value is None else f"{round(value, places) + 0.0:,.{places}f}" for value in values)


def interval(estimate: Estimate) -> str:
    """Return a value and its interval as text; a dash stands for the interval that one seed does not have."""
    value, low, high = numbers(estimate.value, estimate.low, estimate.high)
    return f"{value} {DASH}" if estimate.low is None else f"{value} [{low}, {high}]"


def steps(count: float | None) -> str:
    """Return a number of steps as text."""
    if count is None:
        return DASH
    return "never" if math.isinf(count) else f"{count:,.0f}"


def duration(seconds: float | None) -> str:
    """Return a time as text."""
    if seconds is None:
        return DASH
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3_600:.1f} h"
