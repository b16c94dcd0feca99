"""The page of fresh seeds: what share of them learns, how soon, and whether the model helps.

Knows numbers and Markdown; does not know how the runs were made, or where.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from mbpo_cli.report.statistics import Estimate, median_steps, probability_of_improvement
from mbpo_cli.report.table import DASH, duration, numbers, percent, steps
from mbpo_cli.report.verdict import Comparison
from mbpo_cli.sweeps.jobs import brief
from scripts.tables import markdown

BEGIN, END = "<!-- seeds: begin -->", "<!-- seeds: end -->"
DIVERGED = 4  # exit code
NUM_ROWS_OF_README = 4
UNMEASURED = {"seeds": "not measured"}
INTRODUCTION = """\
# Learning on fresh seeds

Written by `make seeds` (`scripts/seeds.py`), which trains the runs that are missing and then writes this
page. The second command writes the page again, without training:

```bash
make seeds ARGS="--env pendulum --seeds 50"
make seeds ARGS="--table-only"
```

All runs have seeds from 2000 on, and no value was chosen by them. To choose values and to find causes there
are the seeds below 2000: `python -m scripts.seeds --first-seed 1000 --folder outputs/trial`. If the value
of an option has changed since a row was measured, the next call that trains it measures it again; the other
rows are from the version that measured them. The returns, the time, the end and the commit of each run
are in the folder `seeds` beside this page.

How to read it:

- A run **reaches** its goal at the first greedy evaluation (mean of 20 episodes) at or above it. **At the
  end** counts the runs whose last evaluation is there.
- Brackets hold the 95 % interval of a share (Wilson) or, for P, of the bootstrap over seeds.
- The **median** counts seeds that have not reached the goal as later than all others.
- **Fell again** counts the runs that had an evaluation below the floor after they had reached the goal.
- **Failed** runs ended with an error; **diverged** ones are among them (exit code 4). They count in every
  share. A run that was interrupted is on no row until it has ended.
- The **time** is the median wall time of a run, on one thread of a CPU. With more than one run at a time
  (`--jobs`), they slow each other down.
"""
OF_SHARES = "## How many seeds learn"
OF_STEPS = "## Share of the seeds that had reached the goal, by environment steps"
OF_MODEL = """\
## An unknown environment, with the model and without

Each environment by its id alone, with no other option but the length, and the same with `mbpo=off`, which
makes as many updates. The return is the run's score, the mean of its last three evaluations; the area is
the mean of all its evaluations. Both are given as the median of the seeds, and the lowest and highest.
**P** is the probability that a run with the model has a higher return than one without; a run that failed
is below all others."""
OF_FAILURES = "## Failed runs"


@dataclass(frozen=True)
class Row:
    """A configuration to train with many seeds, and its goal.

    Attributes:
        name: Name of its files, and what `--env` chooses it by.
        overrides: Overrides for `mbpo-train`, except `mbpo`, length, evaluations and `seed`.
        num_env_steps: Length of the runs.
        evaluate_every: Environment steps between evaluations.
        num_seeds: Number of seeds that are trained by default.
        threshold: Return to reach; None for a comparison with and without the model.
        steps: Steps by which the share of seeds at the threshold is given; the last one is the goal's.
        floor: Return below which a run must not fall once it has reached the threshold.
    """

    name: str
    overrides: tuple[str, ...]
    num_env_steps: int
    evaluate_every: int
    num_seeds: int
    threshold: float | None = None
    steps: tuple[int, ...] = ()
    floor: float | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        """With the model (`on`), or with it and without it (`off`)."""
        return ("on", "off") if self.threshold is None else ("on",)

    @property
    def command(self) -> str:
        """What is typed, as Markdown."""
        return f"`{' '.join((*self.overrides, f'trainer.num_env_steps={self.num_env_steps}'))}`"


@dataclass(frozen=True)
class Ended:
    """A run that has ended, as stored.

    Attributes:
        options: Digest of the values of all options that affect the numbers, the seed apart.
        status: done or failed.
        exit_code: Of a failed run; None if it is not known.
        score: Mean return of the last evaluations; None if there was none.
        returns: Mean return of each evaluation, by environment step.
    """

    variant: str
    seed: int
    options: str
    status: str
    exit_code: int | None
    error: str | None
    env_steps: int
    wall_seconds: float
    score: float | None
    returns: Mapping[int, float]
    commit: str | None

    @property
    def final(self) -> float:
        """The score, below all others if the run failed."""
        return -math.inf if self.status == "failed" or self.score is None else self.score

    @property
    def area(self) -> float:
        """The mean of the evaluations, which are evenly spaced; below all others if the run failed."""
        return -math.inf if self.final == -math.inf else statistics.fmean(self.returns.values())


Results = Mapping[Row, Sequence[Ended]]


def share(number: int, total: int) -> Estimate:
    """Return a share with Wilson's interval."""
    low, high = stats.binomtest(number, total).proportion_ci(0.95, method="wilson")
    return Estimate(number / total, float(low), float(high))


def num_reached(runs: Iterable[Ended], threshold: float, by: float) -> int:
    """Return how many runs had an evaluation at or above the threshold by a step."""
    return sum(any(at <= by and value >= threshold for at, value in run.returns.items()) for run in runs)


def fell_again(run: Ended, threshold: float, floor: float) -> bool:
    """Return True if a run had an evaluation below the floor after it had reached the threshold."""
    first, _ = median_steps([run.returns], threshold)
    return any(at > first and value < floor for at, value in run.returns.items())


def page(results: Results) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, tables(results)]
    failures = [_failure(row, run) for row, runs in results.items() for run in runs if run.status == "failed"]
    if failures:
        parts.append("\n".join([OF_FAILURES, "", *failures, ""]))
    return "\n".join(parts)


def tables(results: Results) -> str:
    """Return the three tables, each with its heading."""
    goals = {row: runs for row, runs in results.items() if row.threshold is not None}
    pairs = {row: runs for row, runs in results.items() if row.threshold is None}
    parts: list[str] = []
    if goals:
        parts += [OF_SHARES, "", of_shares(goals), ""]
        if any(goals.values()):
            parts += [OF_STEPS, "", of_steps(goals)]
    if pairs:
        parts += [OF_MODEL, "", of_model(pairs), ""]
    return "\n".join(parts)


def of_shares(results: Results) -> str:
    """Return the table of how many seeds reach their goal."""
    lines = []
    for row, runs in results.items():
        assert row.threshold is not None
        line = {"mbpo-train": row.command, "goal": f"{row.threshold:g} within {row.steps[-1]:,}"}
        lines.append(line | (_shares(row, row.threshold, runs) if runs else UNMEASURED))
    return markdown(lines)


def _shares(row: Row, threshold: float, runs: Sequence[Ended]) -> dict[str, str]:
    reached = num_reached(runs, threshold, row.steps[-1])
    at_end = sum(run.returns[max(run.returns)] >= threshold for run in runs if run.status == "done")
    median, ever = median_steps([run.returns for run in runs], threshold)
    fell = DASH
    if row.floor is not None:
        fallen = sum(fell_again(run, threshold, row.floor) for run in runs)
        fell = f"{fallen} of {ever} below {row.floor:g}"
    return {
        "seeds": str(len(runs)),
        "reached it in time [95 %]": f"{reached}, {percent(share(reached, len(runs)))}",
        "at the end": str(at_end),
        "median steps to it": steps(median),
        "fell again": fell,
        "failed (diverged)": _failed(runs),
        "time": _time(runs),
    }


def of_steps(results: Results) -> str:
    """Return the tables of the shares by steps, one for all rows with the same steps."""
    groups: defaultdict[tuple[int, ...], list[dict[str, str]]] = defaultdict(list)
    for row, runs in results.items():
        if runs and row.threshold is not None:
            shares = {
                f"{step:,}": percent(share(num_reached(runs, row.threshold, step), len(runs)))
                for step in row.steps
            }
            groups[row.steps].append({"mbpo-train": row.command, "goal": f"{row.threshold:g}", **shares})
    return "\n".join(f"{markdown(lines)}\n" for lines in groups.values())


def of_model(results: Results) -> str:
    """Return the table of the runs with and without the model."""
    lines = []
    for row, runs in results.items():
        on, off = ([run for run in runs if run.variant == variant] for variant in ("on", "off"))
        cells = _compared(row, on, off) if on and off else UNMEASURED
        lines.append({"mbpo-train": row.command, **cells})
    return markdown(lines)


def _compared(row: Row, on: Sequence[Ended], off: Sequence[Ended]) -> dict[str, str]:
    finals = [run.final for run in on], [run.final for run in off]
    probability = probability_of_improvement([finals])
    seeds = len(on), len(off)
    compared = Comparison((row.name,), "with the model", "without", seeds, None, probability)
    return {
        "seeds": f"{seeds[0]} and {seeds[1]}",
        "return with the model": _spread(finals[0]),
        "return without": _spread(finals[1]),
        "P [95 %]": percent(probability),
        "result": compared.result,
        "area with the model": _spread([run.area for run in on]),
        "area without": _spread([run.area for run in off]),
        "failed (diverged)": f"{_failed(on)} and {_failed(off)}",
        "time": f"{_time(on)} and {_time(off)}",
    }


def _spread(values: Sequence[float]) -> str:
    """Return the median, the lowest and the highest as text."""
    shown = numbers(statistics.median_low(values), min(values), max(values))
    middle, low, high = (text.replace("-inf", "failed") for text in shown)
    return f"{middle} ({low} to {high})"


def _time(runs: Sequence[Ended]) -> str:
    return duration(statistics.median(run.wall_seconds for run in runs))


def _failed(runs: Sequence[Ended]) -> str:
    failed = [run for run in runs if run.status == "failed"]
    diverged = sum(run.exit_code == DIVERGED for run in failed)
    return f"{len(failed)} ({diverged})" if failed else "0"


def _failure(row: Row, run: Ended) -> str:
    variant = " mbpo=off" if run.variant == "off" else ""
    code = "" if run.exit_code is None else f", exit code {run.exit_code}"
    return f"- {row.name}{variant}, seed {run.seed}, at {run.env_steps:,} steps{code}: `{brief(run.error)}`"


def with_first_rows(text: str, results: Results) -> str:
    """Return the README's text with the first measured rows between its markers."""
    measured = {row: runs for row, runs in results.items() if row.threshold is not None and runs}
    first = dict(list(measured.items())[:NUM_ROWS_OF_README])
    table = f"{of_shares(first)}\n" if first else ""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}{END}{after}"
