"""Who is better, by how much, and how sure that is: comparisons, and one sentence for each environment.

Knows groups and statistics; does not know pictures or pages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from mbpo_cli.report.groups import Group
from mbpo_cli.report.statistics import Estimate, difference, interquartile_mean, probability_of_improvement
from mbpo_cli.report.table import DASH, Row, interval, numbers, steps

MIN_SEEDS = 3
CLOSE, FEW = "too close to call", "too few seeds"


@dataclass(frozen=True)
class Comparison:
    """Two groups, or two agents over several environments.

    Attributes:
        where: The environments.
        ours: Label of the first.
        theirs: Label of the second.
        seeds: Seeds of both, fewest on any environment.
        gain: By how much the first one's interquartile mean is above; None over several environments,
            whose returns have no common unit.
        probability: How likely a run of the first is better.
    """

    where: tuple[str, ...]
    ours: str
    theirs: str
    seeds: tuple[int, int]
    gain: Estimate | None
    probability: Estimate

    @property
    def winner(self) -> str | None:
        """Which of the two is better; None where that is not sure."""
        low, high = self.probability.low, self.probability.high
        if min(self.seeds) < MIN_SEEDS or low is None or high is None or low <= 0.5 <= high:
            return None
        return self.ours if low > 0.5 else self.theirs

    @property
    def result(self) -> str:
        """What comes of it, in a few words."""
        if min(self.seeds) < MIN_SEEDS:
            return FEW
        return f"{self.winner} is better" if self.winner else CLOSE

    def cells(self) -> tuple[str, ...]:
        """Return what a person reads in a table."""
        gain = DASH if self.gain is None else interval(self.gain)
        seeds = f"{self.seeds[0]} and {self.seeds[1]}"
        return (
            ", ".join(self.where),
            self.ours,
            self.theirs,
            seeds,
            gain,
            percent(self.probability),
            self.result,
        )


@dataclass(frozen=True)
class Verdict:
    """The outcome on one environment for a person in a hurry.

    Attributes:
        env: The environment.
        kind: won, open or none.
        headline: A few words.
        sentence: By how much, how sure, on how many seeds.
        notes: What makes it less sure.
    """

    env: str
    kind: str
    headline: str
    sentence: str
    notes: tuple[str, ...]


def compare(ours: Group, theirs: Group) -> Comparison:
    """Compare two groups of one environment that have final returns."""
    x, y = ours.scores, theirs.scores
    chance = probability_of_improvement([(x, y)])
    return Comparison((ours.env,), ours.label, theirs.label, (len(x), len(y)), difference(x, y), chance)


def compare_over_environments(groups: Iterable[Group]) -> list[Comparison]:
    """Compare all pairs of agents over the environments that they share, where these are several."""
    by_variant: defaultdict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
    for group in groups:
        if group.scores:
            by_variant[group.variant][group.env] = group.scores
    comparisons = []
    for ours, theirs in combinations(by_variant, 2):
        x, y = by_variant[ours], by_variant[theirs]
        shared = tuple(env for env in x if env in y)
        if len(shared) > 1:
            chance = probability_of_improvement([(x[env], y[env]) for env in shared])
            seeds = min(len(x[env]) for env in shared), min(len(y[env]) for env in shared)
            comparisons.append(Comparison(shared, ours, theirs, seeds, None, chance))
    return comparisons


def verdict(
    env: str, groups: Sequence[Group], rows: Sequence[Row], comparisons: Sequence[Comparison]
) -> Verdict:
    """Return the verdict on an environment; groups come best first, and so do their rows and comparisons."""
    judged = [group for group in groups if group.scores]
    notes = _notes(groups)
    if not judged:
        return Verdict(env, "none", "No results yet", "No run has been evaluated.", notes)
    best = judged[0]
    if len(judged) == 1:
        value = interval(interquartile_mean(best.scores)).removesuffix(f" {DASH}")
        text = f"Final return {value}, seeds: {len(best.scores)}; there is nothing to compare it with."
        return Verdict(env, "none", f"Only {best.label}", text, notes)
    second, comparison = judged[1], comparisons[0]
    assert comparison.gain is not None
    x, y = numbers(*(interquartile_mean(group.scores).value for group in (best, second)))
    gain, low, high = numbers(comparison.gain.value, comparison.gain.low, comparison.gain.high)
    limits = "" if comparison.gain.low is None else f" (95 % interval of the difference: {low} to {high})"
    rank = "" if len(judged) == 2 else f", the next of {len(judged) - 1}"
    chance = percent(comparison.probability).removesuffix(f" {DASH}")
    text = (
        f"Final return {x} against {y} of {second.label}{rank}{limits}. One run of {best.label} beats one of "
        f"{second.label} with probability {chance}; {len(best.scores)} against {len(second.scores)} seeds."
    )
    took = [row["steps_to_threshold"] for row in rows[:2]]
    if None not in took and min(took) < math.inf:
        goal = numbers(rows[0]["threshold"])[0]
        text += f" Steps to {goal}: {steps(took[0])} against {steps(took[1])}."
    if comparison.winner == best.label:
        return Verdict(env, "won", f"{best.label} wins, {gain} above {second.label}", text, notes)
    # The one that loses more often may have the larger mean.
    reason = "the measures disagree" if comparison.winner else comparison.result
    return Verdict(env, "open", f"{reason.capitalize()}: {best.label} leads by {gain}", text, notes)


def percent(estimate: Estimate) -> str:
    """Return a probability and its interval as text."""
    limits = "" if estimate.low is None else f" [{100 * estimate.low:.0f}, {100 * (estimate.high or 0):.0f}]"
    return f"{100 * estimate.value:.0f} %{limits or ' ' + DASH}"


def _notes(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return what a person should know before trusting a verdict."""
    notes = []
    judged = [group for group in groups if group.scores]
    so_far = [group.label for group in judged if not group.is_finished]
    if so_far:
        notes.append(f"So far only: no run of {', '.join(so_far)} is finished.")
    failed = [f"{group.num_failed} of {group.label}" for group in groups if group.num_failed]
    if failed:
        notes.append(f"Failed and not counted: {', '.join(failed)}.")
    reached = {max(run.env_steps for run in group.counted) for group in judged}
    if len(reached) > 1:
        notes.append(f"Compared at different lengths: {min(reached):,} to {max(reached):,} steps.")
    return tuple(notes)
