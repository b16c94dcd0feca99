"""Work out everything that the report says about one environment.

Knows the order of the work; does not know files or pages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from mbpo_cli.report import plots, reference, statistics, table
from mbpo_cli.report.groups import ABSENT, Group, differing_keys
from mbpo_cli.report.verdict import Comparison, Verdict, compare, verdict


@dataclass(frozen=True)
class Section:
    """One environment in the report.

    Attributes:
        env: Its name.
        groups: Its groups, best first.
        rows: The groups as numbers.
        comparisons: All pairs of evaluated groups.
        verdict: The outcome.
        png: The picture.
        notes: Remarks on threshold and reference.
    """

    env: str
    groups: Sequence[Group]
    rows: Sequence[table.Row]
    comparisons: Sequence[Comparison]
    verdict: Verdict
    png: bytes
    notes: Sequence[str]

    @property
    def differences(self) -> list[tuple[str, ...]]:
        """Each option that differs, with its value in each group."""
        options = [group.options for group in self.groups]
        return [(key, *(each.get(key, ABSENT) for each in options)) for key in differing_keys(options)]


def sections(
    groups: Sequence[Group], published: Mapping[str, reference.Reference], threshold: float | None
) -> list[Section]:
    """Return a section for each environment.

    Args:
        groups: The groups of all environments.
        published: Curves to draw beneath ours.
        threshold: The return to reach, on all environments; None to choose one for each.
    """
    style = plots.styles(sorted({group.variant for group in groups}))
    by_env: defaultdict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_env[group.env].append(group)
    return [_section(env, mine, style, published, threshold) for env, mine in by_env.items()]


def _section(
    env: str,
    groups: Sequence[Group],
    style: Mapping[str, plots.Style],
    published: Mapping[str, reference.Reference],
    chosen: float | None,
) -> Section:
    def final(group: Group) -> float:
        return statistics.interquartile_mean(group.scores).value if group.scores else -math.inf

    groups = sorted(groups, key=final, reverse=True)
    curves = [statistics.mean_curve([run.returns for run in group.runs]) for group in groups]
    threshold = table.threshold_of(groups, curves, chosen)
    known = reference.matching(published, [env, *(group.options.get("env.id", "") for group in groups)])
    rows = [table.row(group, threshold) for group in groups]
    pairs = [compare(a, b) for a, b in combinations([g for g in groups if g.scores], 2)]
    notes = []
    if threshold:
        notes.append(f"Threshold: {table.numbers(threshold.value)[0]} ({threshold.source}).")
    point = known.before(max(row["steps_max"] or 0 for row in rows)) if known else None
    if known and point:
        at, mean, std = point
        value = " ± ".join(table.numbers(mean, std))
        notes.append(f"Reference at {at:,.0f} steps: {value} ({known.num_seeds} seeds, standard deviation).")
    elif published and not known:
        notes.append("The reference file has no curve for this environment.")
    return Section(
        env=env,
        groups=groups,
        rows=rows,
        comparisons=pairs,
        verdict=verdict(rows, pairs),
        png=plots.picture(groups, curves, style, threshold, known),
        notes=notes,
    )
