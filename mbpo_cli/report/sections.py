"""Work out everything that the report says about one environment.

Knows the order of the work; does not know files or pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from operator import attrgetter

from mbpo_cli.report import plots, reference, statistics, table
from mbpo_cli.report.groups import ABSENT, Group, differing_keys
from mbpo_cli.report.verdict import Comparison, Verdict, compare, verdict


@dataclass(frozen=True)
class Section:
    """One environment in the report.

    Attributes:
        groups: Its groups, best first.
        rows: The groups as numbers.
        comparisons: All pairs of evaluated groups.
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
    """Return a section for each environment, from groups that are sorted by environment.

    The threshold is the return to reach on all environments; None chooses one for each.
    """
    style = plots.styles(sorted({group.variant for group in groups}))
    found = []
    for env, members in groupby(groups, attrgetter("env")):
        mine = sorted(members, key=_final, reverse=True)
        curves = [statistics.mean_curve([run.returns for run in group.runs]) for group in mine]
        goal = table.threshold_of(mine, curves, threshold)
        rows = [table.row(group, goal) for group in mine]
        pairs = [compare(a, b) for a, b in combinations([group for group in mine if group.scores], 2)]
        known, notes = reference_for(mine, published, max(row["steps_max"] or 0 for row in rows))
        if goal:
            notes.insert(0, f"Threshold: {table.numbers(goal.value)[0]} ({goal.source}).")
        png = plots.picture(mine, curves, style, goal, known)
        found.append(Section(env, mine, rows, pairs, verdict(rows, pairs), png, notes))
    return found


def reference_for(
    groups: Sequence[Group], published: Mapping[str, reference.Reference], last_step: int
) -> tuple[reference.Reference | None, list[str]]:
    """Return the published curve for the environment of some groups, if any, and what it says."""
    names = [groups[0].env, *(group.options.get("env.id", "") for group in groups)]
    known = reference.matching(published, names)
    if known and (point := known.before(last_step)):
        at, mean, std = point
        value = " ± ".join(table.numbers(mean, std))
        seeds = f"{known.num_seeds} seeds, standard deviation"
        return known, [f"Reference at {at:,.0f} steps: {value} ({seeds})."]
    return known, ["The reference file has no curve for this environment."] if published and not known else []


def as_text(sections: Sequence[Section]) -> str:
    """Return the report on some environments as text for a terminal."""
    lines = [table.as_text([row for section in sections for row in section.rows]), ""]
    for section in sections:
        lines.append(f"{section.env}: {section.verdict.headline}. {section.verdict.sentence}")
        lines += [f"  {note}" for note in (*section.verdict.notes, *section.notes)]
    return "\n".join(lines)


def _final(group: Group) -> float:
    return statistics.interquartile_mean(group.scores).value if group.scores else -math.inf
