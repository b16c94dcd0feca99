"""Compare groups: which is better, by how much, and how certain that is; a verdict for each environment.

Knows groups and statistics; does not know pictures or pages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from mbpo_cli.report.groups import Group
from mbpo_cli.report.statistics import Estimate, difference, probability_of_improvement
from mbpo_cli.report.table import DASH, Row, cells, interval, numbers, percent, steps

MIN_SEEDS = 3


@dataclass(frozen=True)
class Comparison:
    """Two groups on one environment, or two agents over several.

    Attributes:
        seeds: Number of seeds of both, the smallest of all environments.
        gain: Difference of the interquartile means; None over several environments, whose returns have no
            common unit.
        probability: Probability that a run of the first beats one of the second.
    """

    where: tuple[str, ...]
    ours: str
    theirs: str
    seeds: tuple[int, int]
    gain: Estimate | None
    probability: Estimate

    @property
    def winner(self) -> str | None:
        """The better one; None if that is not certain."""
        low, high = self.probability.low, self.probability.high
        if min(self.seeds) < MIN_SEEDS or low is None or high is None or low <= 0.5 <= high:
            return None
        return self.ours if low > 0.5 else self.theirs

    @property
    def result(self) -> str:
        """The outcome in a few words."""
        if min(self.seeds) < MIN_SEEDS:
            return "too few seeds"
        return f"{self.winner} is better" if self.winner else "too close to call"

    def cells(self) -> dict[str, str]:
        """Return the comparison as text, by heading."""
        return {
            "environment": ", ".join(self.where),
            "A": self.ours,
            "B": self.theirs,
            "seeds": f"{self.seeds[0]} and {self.seeds[1]}",
            "IQM of A - IQM of B [95 %]": DASH if self.gain is None else interval(self.gain),
            "P [95 %]": percent(self.probability),
            "result": self.result,
        }


@dataclass(frozen=True)
class Verdict:
    """The outcome on one environment, for a person in a hurry.

    Attributes:
        kind: won, open or none.
        sentence: By how much, how certain, and from how many seeds.
        notes: Reasons to trust it less.
    """

    kind: str
    headline: str
    sentence: str
    notes: tuple[str, ...]


def compare(ours: Group, theirs: Group) -> Comparison:
    """Compare two groups on one environment, both with scores."""
    x, y = ours.scores, theirs.scores
    probability = probability_of_improvement([(x, y)])
    return Comparison((ours.env,), ours.label, theirs.label, (len(x), len(y)), difference(x, y), probability)


def compare_over_environments(groups: Iterable[Group]) -> list[Comparison]:
    """Compare all pairs of agents over the environments that they share, if there are several."""
    by_variant: defaultdict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
    for group in groups:
        if group.scores:
            by_variant[group.variant][group.env] = group.scores
    comparisons = []
    for ours, theirs in combinations(by_variant, 2):
        x, y = by_variant[ours], by_variant[theirs]
        shared = tuple(env for env in x if env in y)
        if len(shared) > 1:
            probability = probability_of_improvement([(x[env], y[env]) for env in shared])
            seeds = min(len(x[env]) for env in shared), min(len(y[env]) for env in shared)
            comparisons.append(Comparison(shared, ours, theirs, seeds, None, probability))
    return comparisons


def verdict(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> Verdict:
    """Return the verdict on an environment from the rows of its groups, best first, and their comparisons."""
    judged = [row for row in rows if row["seeds"]]
    notes = _notes(rows)
    if not judged:
        return Verdict("none", "No results yet", "No run has been evaluated.", notes)
    best, label = judged[0], judged[0]["agent"]
    if len(judged) == 1:
        text = f"Score (IQM): {cells(best)['IQM [95 %]']}. Seeds: {best['seeds']}."
        return Verdict("none", f"{label} has no other agent to compare with", text, notes)
    second, other, comparison = judged[1], judged[1]["agent"], comparisons[0]
    assert comparison.gain is not None
    x, y = numbers(best["return_iqm"], second["return_iqm"])
    gain, low, high = numbers(comparison.gain.value, comparison.gain.low, comparison.gain.high)
    limits = "" if comparison.gain.low is None else f" (95 % interval of the difference: {low} to {high})"
    rank = "" if len(judged) == 2 else ", the second best"
    text = (
        f"Score (IQM): {x}, against {y} for {other}{rank}{limits}. "
        f"Probability that a run of {label} beats a run of {other}: {percent(comparison.probability)}. "
        f"Seeds: {best['seeds']} and {second['seeds']}."
    )
    medians = best["steps_to_threshold"], second["steps_to_threshold"]
    if None not in medians and min(medians) < math.inf:
        goal = numbers(best["threshold"])[0]
        text += f" Median steps to a return of {goal}: {steps(medians[0])} and {steps(medians[1])}."
    if comparison.winner == label:
        return Verdict("won", f"{label} is better than {other} by {gain}", text, notes)
    # The group with the larger mean can be the one that loses more often.
    reason = "the measures disagree" if comparison.winner else comparison.result
    return Verdict("open", f"{reason.capitalize()}: {label} leads by {gain}", text, notes)


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    notes = []
    if unfinished := [row["agent"] for row in rows if row["seeds"] and not row["of_finished_runs"]]:
        notes.append(f"Preliminary: no run of {', '.join(unfinished)} has finished.")
    if failed := [f"{row['failed']} of {row['agent']}" for row in rows if row["failed"]]:
        notes.append(f"Failed and not counted: {', '.join(failed)}.")
    lengths = {row["steps_max"] for row in rows if row["seeds"]}
    if len(lengths) > 1:
        notes.append(f"The groups differ in length: {min(lengths):,} to {max(lengths):,} steps.")
    return tuple(notes)
