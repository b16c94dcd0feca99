"""Train the paper's tasks with several seeds, and draw our curves over the published ones.

    python scripts/reproduce.py [--tasks hopper ...] [--seeds 0 1 2] [--steps 40000] [--jobs 1]
        [--precision bfloat16] [--dry]

Each run is `mbpo-train experiment=paper/TASK seed=SEED threads=1`. Stopped runs are resumed, so the same
command can be repeated until all have finished. The evaluations so far, of unfinished runs as well, are
stored in `docs/paper/TASK.csv`. Writes a picture per task and the tables in `docs/paper/README.md`. The exit
code is that of the first run that stopped or failed.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from mbpo_cli.storage.records import evaluations, stored_config

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "outputs" / "paper"
FOLDER = ROOT / "docs" / "paper"
PUBLISHED = ROOT / "docs" / "paper" / "published.csv"
INTRODUCTION = """\
# The paper's tasks, measured

Written by `make reproduce` (`scripts/reproduce.py`).

**Published** are MBPO's learning curves, mean and standard deviation over five seeds, in
[`published.csv`](published.csv). The authors of DHMBPO compare their own curves with these (Kubo et al.
2025; `results/main/gym/mbpo` of `4kubo/erl_lib`). Each point is the mean over the last 10,000 steps. A
return of ours beside a published one is such a mean as well, without the random steps; the pictures show
every evaluation.

**Ours**: for three seeds and more, the mean and its 95 % interval (Student's t); for fewer, each seed; at
the last published step that all have reached. A threshold is reached with the first evaluation at or above
it; the median counts seeds that have not reached it as later than all others.
"""

MAX_ROWS = 8
WINDOW, RANDOM_STEPS = 10_000, 5_000  # the same for all tasks with published curves


@dataclass(frozen=True)
class Curve:
    """The learning curve of a run.

    Attributes:
        returns: Mean evaluation return by environment step.
        precision: Precision of the matrix products.
    """

    returns: dict[int, float]
    precision: str

    def recent(self, step: int) -> float:
        """Return the mean over the last 10,000 steps, without random steps."""
        first = max(step - WINDOW, RANDOM_STEPS if step > RANDOM_STEPS else 0)
        return statistics.fmean(value for at, value in self.returns.items() if first < at <= step)


@dataclass(frozen=True)
class Task:
    """A task of the paper.

    Attributes:
        title: Its name in the paper.
        threshold: A return to reach, by which learning speed is compared.
    """

    title: str
    threshold: float


TASKS = {
    "inverted_pendulum": Task("InvertedPendulum", 1_000),
    "hopper": Task("Hopper", 3_000),
    "walker2d": Task("Walker2d", 3_000),
    "half_cheetah": Task("HalfCheetah", 10_000),
    "ant": Task("Ant", 3_000),
    "humanoid": Task("Humanoid", 3_000),
}


def train(task: str, seed: int, num_env_steps: int | None, precision: str) -> int:
    """Train or resume a run; return its exit code."""
    length = [] if num_env_steps is None else [f"trainer.num_env_steps={num_env_steps}"]
    overrides = [f"experiment=paper/{task}", f"seed={seed}", f"precision={precision}", "threads=1", *length]
    name = task if precision == "float32" else f"{task}_{precision}"
    command = [sys.executable, "-m", "mbpo_cli", *overrides, f"hydra.run.dir={RUNS / f'{name}_seed{seed}'}"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode


def stored(path: Path) -> dict[int, Curve]:
    """Return the curves in a file by seed; empty if the file does not exist."""
    curves: dict[int, Curve] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                curve = curves.setdefault(int(row["seed"]), Curve({}, row["precision"]))
                curve.returns[int(row["env_steps"])] = float(row["return"])
    return curves


def collected(task: str) -> dict[int, Curve]:
    """Return the longest curve of a task for each seed, from its runs and its file, and store them."""
    path = FOLDER / f"{task}.csv"
    curves = stored(path)
    for directory in sorted(RUNS.glob(f"{task}_*seed*")):  # the name can include a precision
        returns, seed = evaluations(directory), int(directory.name.rpartition("seed")[2])
        if returns and (seed not in curves or len(returns) >= len(curves[seed].returns)):
            curves[seed] = Curve(returns, stored_config(directory)["precision"])
    curves = dict(sorted(curves.items()))
    if curves:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("seed", "env_steps", "return", "precision"))
            for seed, curve in curves.items():
                points = sorted(curve.returns.items())
                table.writerows((seed, step, round(value, 2), curve.precision) for step, value in points)
    return curves


def published(title: str) -> list[tuple[int, float, float]]:
    """Return the points of the published curve (step, mean, standard deviation); empty if there is none."""
    with PUBLISHED.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["env"] == title]
    return [(int(row["env_steps"]), float(row["return_mean"]), float(row["return_std"])) for row in rows]


def half_interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean (Student's t); 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def shared_steps(curves: Mapping[int, Curve]) -> list[int]:
    """Return the environment steps at which all seeds were evaluated."""
    return sorted(set.intersection(*(set(curve.returns) for curve in curves.values())))


def draw(name: str, task: Task, curves: Mapping[int, Curve]) -> None:
    """Draw our curves over the published one."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    shared = shared_steps(curves)
    values = [[curve.returns[step] for curve in curves.values()] for step in shared]
    mean, half = np.array([np.mean(row) for row in values]), np.array([half_interval(row) for row in values])
    for curve in curves.values():
        steps, returns = zip(*sorted(curve.returns.items()), strict=True)
        axes.plot(steps, returns, color="tab:blue", alpha=0.25, linewidth=0.8)
    label = f"ours, mean of {len(curves)} seeds" if len(curves) > 1 else "ours, one seed"
    if len(curves) > 2:  # the interval of two seeds would dwarf the curves
        label += ", 95 % interval"
        axes.fill_between(shared, mean - half, mean + half, color="tab:blue", alpha=0.15, linewidth=0)
    axes.plot(shared, mean, color="tab:blue", linewidth=2.2, label=label)
    last = max(max(curve.returns) for curve in curves.values())
    points = [point for point in published(task.title) if point[0] <= 1.1 * last]
    if points:
        at, theirs, std = (np.array(column) for column in zip(*points, strict=True))
        axes.plot(at, theirs, color="black", linewidth=1.6, label="published MBPO, 5 seeds, ± std")
        axes.fill_between(at, theirs - std, theirs + std, color="black", alpha=0.1, linewidth=0)
    axes.set(xlabel="real environment steps", ylabel="evaluation return", title=task.title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / f"{name}.png", dpi=110)
    plt.close(figure)


def published_shown(title: str) -> dict[int, str]:
    """Return the published mean and standard deviation by step, as text."""
    return {step: f"{mean:,.0f} ± {std:,.0f}" for step, mean, std in published(title)}


def row(name: str, task: Task, curves: Mapping[int, Curve]) -> str:
    """Return the row of a task."""
    last = min(max(curve.returns) for curve in curves.values())
    theirs = published_shown(task.title)
    compared = max(theirs.keys() & set(shared_steps(curves)), default=last)
    at = [curve.recent(compared) if theirs else curve.returns[compared] for curve in curves.values()]
    # The interval of two seeds says less than the two values.
    ours = ", ".join(f"{value:,.0f}" for value in at)
    if len(at) > 2:
        ours = f"{np.mean(at):,.0f} ± {half_interval(at):,.0f}"
    firsts = sorted(
        min((step for step, value in curve.returns.items() if value >= task.threshold), default=sys.maxsize)
        for curve in curves.values()
    )
    median = statistics.median_high(firsts)
    cells = [
        f"`experiment=paper/{name}`",
        ", ".join(sorted({curve.precision for curve in curves.values()})),
        str(len(curves)),
        f"{last:,}",
        f"{compared:,}",
        ours,
        theirs.get(compared, ""),
        f"{task.threshold:,.0f}",
        f"{median:,}" if median < sys.maxsize else "not yet",
    ]
    return f"| {' | '.join(cells)} |"


def by_step(task: Task, curves: Mapping[int, Curve]) -> list[str]:
    """Return the table of a task: our returns and the published ones, at up to eight common steps."""
    theirs = published_shown(task.title)
    steps = [step for step in shared_steps(curves) if step in theirs]
    if not steps:
        return []
    every = -(-len(steps) // MAX_ROWS)
    heads = [task.title, *(f"seed {seed}" for seed in curves), "mean", "published"]
    lines = ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for step in sorted(steps[::-every]):
        values = [curve.recent(step) for curve in curves.values()]
        shown = [f"{value:,.0f}" for value in (*values, statistics.fmean(values))]
        lines.append(f"| {step:,} | {' | '.join(shown)} | {theirs[step]} |")
    return lines


def page() -> str:
    """Draw the curves so far, and return the page."""
    columns = (
        "mbpo-train",
        "precision",
        "seeds",
        "steps of all seeds",
        "compared at",
        "return",
        "published",
        "threshold",
        "median steps to it",
    )
    lines = [INTRODUCTION, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    pictures = []
    for name, task in TASKS.items():
        curves = collected(name)
        if curves:
            draw(name, task, curves)
            lines.append(row(name, task, curves))
            pictures += ["", f"![{task.title}]({name}.png)", *by_step(task, curves)]
    return "\n".join([*lines, *pictures]) + "\n"


def main() -> int:
    """Train the chosen runs, then write the page; return the first exit code other than 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="environment steps (default: as in the paper)")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--dry", action="store_true", help="train nothing; only write page and pictures")
    options = parser.parse_args()
    jobs = [] if options.dry else [(task, seed) for task in options.tasks for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda job: train(job[0], job[1], options.steps, options.precision), jobs))
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = page()
    (FOLDER / "README.md").write_text(text, encoding="utf-8")
    print(text)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
