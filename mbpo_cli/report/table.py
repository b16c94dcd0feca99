"""The table, with one row per group: as numbers, as text for a terminal, and as a CSV file.

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

from mbpo_cli.logs import stopwatch
from mbpo_cli.report.groups import Group
from mbpo_cli.report.statistics import Curve, Estimate, interquartile_mean, median_steps

DASH = "-"
NUM_TEXTS = 3  # columns that are not numbers

Row = dict[str, Any]


@dataclass(frozen=True)
class Threshold:
    """A return to reach, by which learning speed is compared, and where it is from."""

    value: float
    source: str


def row(group: Group, threshold: Threshold | None) -> Row:
    """Return the numbers of a group by the name of their column in the CSV file; unknown ones are None."""
    scores, counted = group.scores, group.counted
    iqm = interquartile_mean(scores) if scores else None
    reached = [run.env_steps for run in counted]
    median, num_at_threshold = (
        median_steps([run.returns for run in counted], threshold.value) if threshold and scores else (None, 0)
    )
    times = [run.wall_seconds for run in counted if run.wall_seconds is not None]
    return {
        "env": group.env,
        "agent": group.label,
        "model": group.model,
        "seeds": len(scores),
        "failed": sum(run.status == "failed" for run in group.runs),
        "unfinished": sum(run.status not in ("done", "failed") for run in group.runs),
        "of_finished_runs": any(run.status == "done" for run in counted),
        "steps_min": min(reached, default=None),
        "steps_max": max(reached, default=None),
        "return_mean": statistics.fmean(scores) if scores else None,
        "return_std": statistics.stdev(scores) if len(scores) > 1 else None,
        "return_iqm": iqm.value if iqm else None,
        "return_iqm_low": iqm.low if iqm else None,
        "return_iqm_high": iqm.high if iqm else None,
        "threshold": threshold.value if threshold else None,
        "threshold_source": threshold.source if threshold else None,
        "steps_to_threshold": median,
        "seeds_at_threshold": num_at_threshold,
        "wall_seconds": statistics.median(times) if times else None,
    }


def cells(row: Row) -> dict[str, str]:
    """Return a row as text, by heading."""
    ends = dict.fromkeys((steps(row["steps_min"]), steps(row["steps_max"])))
    mean_and_std = [text for text in numbers(row["return_mean"], row["return_std"]) if text != DASH]
    to_threshold = steps(row["steps_to_threshold"])
    if 0 < row["seeds_at_threshold"] < row["seeds"]:
        is_finite = math.isfinite(row["steps_to_threshold"])
        num_there = f"{row['seeds_at_threshold']} of {row['seeds']} seeds"
        to_threshold = f"{to_threshold} ({num_there})" if is_finite else f"reached by {num_there}"
    return {
        "environment": row["env"],
        "agent": row["agent"],
        "model": row["model"],
        "seeds": str(row["seeds"]),
        "real steps": " to ".join(ends),
        "mean ± std": " ± ".join(mean_and_std) or DASH,
        "IQM [95 %]": interval(Estimate(row["return_iqm"], row["return_iqm_low"], row["return_iqm_high"])),
        "steps to threshold": to_threshold,
        "wall time": duration(row["wall_seconds"]),
        "failed": str(row["failed"] or DASH),
        "unfinished": str(row["unfinished"] or DASH),
    }


def threshold_of(groups: Sequence[Group], curves: Sequence[Curve], chosen: float | None) -> Threshold | None:
    """Return the return to reach on an environment: the chosen one, Gymnasium's, or one from these runs."""
    if chosen is not None:
        return Threshold(chosen, "--threshold")
    for group in groups:
        spec = gymnasium.registry.get(group.options.get("env.id", ""))
        if spec is not None and spec.reward_threshold is not None:
            return Threshold(float(spec.reward_threshold), "Gymnasium's reward threshold")
    lows = [float(curve.mean.min()) for curve in curves if len(curve.mean)]
    finals = [statistics.fmean(group.scores) for group in groups if group.scores]
    if not lows or not finals:
        return None
    low, best = min(lows), max(finals)
    source = "95 % of the way from the lowest mean evaluation to the best group"
    return Threshold(low + 0.95 * (best - low), source)


def as_text(rows: Sequence[Row]) -> str:
    """Return the table for a terminal."""
    table = [list(cells(rows[0])), *(list(cells(row).values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = "<" * NUM_TEXTS + ">" * (len(widths) - NUM_TEXTS)
    layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return "\n".join(layout.format(*line).rstrip() for line in table)


def as_csv(rows: Sequence[Row]) -> str:
    """Return the table as CSV, in full precision; unknown values are empty."""
    file = io.StringIO()
    table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({name: _text_only(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _text_only(value: Any) -> Any:
    """Return a value that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@")) else value


def numbers(*values: float | None) -> tuple[str, ...]:
    """Return returns as text with equal decimals, as few as the largest needs; None becomes a dash."""
    size = max((abs(value) for value in values if value is not None), default=0.0)
    places = 0 if size >= 100 else 1 if size >= 10 else 2
    return tuple(DASH if value is None else f"{round(value, places) + 0.0:,.{places}f}" for value in values)


def interval(estimate: Estimate) -> str:
    """Return a value and its interval, if it has one, as text."""
    value, low, high = numbers(estimate.value, estimate.low, estimate.high)
    return value if estimate.low is None else f"{value} [{low}, {high}]"


def percent(estimate: Estimate) -> str:
    """Return a probability and its interval, if it has one, as text."""
    limits = "" if estimate.low is None else f" [{100 * estimate.low:.0f}, {100 * (estimate.high or 0):.0f}]"
    return f"{100 * estimate.value:.0f} %{limits}"


def steps(count: float | None) -> str:
    """Return a number of steps as text."""
    if count is None:
        return DASH
    return "not reached" if math.isinf(count) else f"{count:,.0f}"


def duration(seconds: float | None) -> str:
    """Return a time as text."""
    return DASH if seconds is None else stopwatch.duration(seconds)
