"""Train published tasks with several seeds, and draw our curves over the published ones.

    python -m scripts.reproduce [--experiment double_horizon] [--tasks hopper ...] [--seeds 0 1 2]
        [--steps 40000] [--jobs 1] [--precision bfloat16] [--dry]

Each run is `mbpo-train experiment=EXPERIMENT/TASK seed=SEED threads=1`, or a variant of it for comparison,
if that is asked for; without `--experiment`, those of the paper on MBPO. Stopped runs are resumed, so the
same command can be repeated until all have finished. The evaluations so far, of unfinished runs as well,
are stored in `docs/EXPERIMENT/TASK.csv`. Writes a picture per task and the tables in
`docs/EXPERIMENT/README.md`. The exit code is that of the first run that stopped or failed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from mbpo_cli.storage.records import METRICS, evaluations, stored_config
from scripts.tables import markdown

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "outputs"
FOLDER = ROOT / "docs"
PUBLISHED = ROOT / "docs"
PAPER = """\
# The paper's tasks, measured

Written by `make reproduce` (`scripts/reproduce.py`).

**Published** are MBPO's learning curves, mean and standard deviation over five seeds, in
[`published.csv`](published.csv). The authors of DHMBPO compare their own curves with these (Kubo et al.
2025; `results/main/gym/mbpo` of `4kubo/erl_lib`). Each point is the mean over the last 10,000 steps. A
return of ours beside a published one is such a mean as well, without the random steps; the pictures show
every evaluation.

**Ours**: for three seeds and more, the mean and its 95 % interval (Student's t); for fewer, each seed; at
the last published step that all have reached.
"""
DOUBLE_HORIZON = """\
# The double horizon, measured

Written by `make reproduce ARGS="--experiment double_horizon"` (`scripts/reproduce.py`).

**Published** are the learning curves of DHMBPO, its mean and standard deviation over eight seeds, and of
MBPO, SAC and DHMBPO with other values beside it, in [`published.csv`](published.csv) (Kubo et al. 2025;
`results` of `4kubo/erl_lib`). Their environments are of version 4, ours of version 5, which limits the
velocities in observations and pays no reward for health on the step on which an episode ends. For the tasks
of DM Control, published are TD-MPC2 and SAC, means over three seeds (`results` of `nicklashansen/tdmpc2`);
a step is a decision there, of two frames.

Some rows are for comparison. Hopper without the model has five critics, dropout and 20 updates per step,
beside the published SAC: what the model gives is the difference. With `max_divergence`, rollouts and paths
end where the model is too uncertain. The tasks of DM Control are also trained by plain MBPO, whose failure
there is known (Barkley, Fridovich-Keil 2025), with both kinds of targets of the transition functions, and
without a model.

**Ours**: each evaluation is the mean of ten greedy episodes. For three seeds and more, the mean and its 95 %
interval (Student's t); for fewer, each seed; at the last published step that all have reached.
"""
RULE = """\
**Steps to the threshold**: a curve reaches it at the first evaluation at or above it whose successor is not
below 90 % of it; an evaluation without a successor does not count yet. The median is over the seeds, of which
those that have not reached it count as later than all others; for means over seeds, ours and the published,
the same rule holds. Hours are those of a run on one thread of a CPU. **Held** counts the curves
with no evaluation below two thirds of the threshold in the 10,000 steps after the first one at or above it,
whatever its successor; curves that are shorter are left out.
"""

MAX_ROWS = 8
STEADY_STEPS = 10_000
RANDOM_STEPS = 5_000  # the same for all tasks with published curves


@dataclass(frozen=True)
class Curve:
    """The learning curve of a run.

    Attributes:
        returns: Mean evaluation return by environment step.
        hours: What the run had taken, by environment step.
        precision: Precision of the matrix products.
    """

    returns: dict[int, float]
    hours: dict[int, float]
    precision: str

    def recent(self, step: int, window: int) -> float:
        """Return the mean over the last steps, without random ones; with `window` 0, the one evaluation."""
        if window == 0:
            return self.returns[step]
        first = max(step - window, RANDOM_STEPS if step > RANDOM_STEPS else 0)
        return statistics.fmean(value for at, value in self.returns.items() if first < at <= step)


def first(returns: Mapping[int, float], threshold: float) -> int:
    """Return the step at which a curve reaches a threshold by `RULE`; a huge number if it does not."""
    steps = sorted(returns)
    for step, following in itertools.pairwise(steps):
        if returns[step] >= threshold and returns[following] >= 0.9 * threshold:
            return step
    return sys.maxsize


@dataclass(frozen=True)
class Task:
    """A task of a study.

    Attributes:
        title: Its name in the published curves.
        threshold: A return to reach, by which learning speed is compared.
        published: The published algorithm with which ours is compared.
        num_published_seeds: Seeds behind its curve.
        preset: The preset that it is trained by; None = that of its name.
        overrides: What is different from the preset.
    """

    title: str
    threshold: float
    published: str = "DHMBPO"
    num_published_seeds: int = 8
    preset: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Tasks that are trained by the presets `experiment=NAME/PRESET`.

    Attributes:
        name: Also that of its folder in `docs/` and `outputs/`.
        introduction: The beginning of its page.
        window: Steps over which each published point is a mean; 0 = it is one evaluation.
        others: Further published algorithms that are drawn beside it.
    """

    name: str
    introduction: str
    window: int
    tasks: Mapping[str, Task]
    others: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """The folder of its page."""
        return FOLDER / self.name

    def command(self, name: str) -> list[str]:
        """Return the overrides of a task, for any seed and length."""
        task = self.tasks[name]
        return [f"experiment={self.name}/{task.preset or name}", *task.overrides]


ALONE = ("algorithm=mbpo", "mbpo=off", "mbpo.training_horizon=0")
# Hiraoka et al. 2022, who make 20 updates per step as well.
MANY_CRITICS = ("agent.critics.number=5", "agent.critics.dropout=0.01")
UNCERTAIN = ("max_divergence=30", "divergence_quantile=0.9")  # published for Hopper


def with_variants(name: str, title: str, threshold: float) -> dict[str, Task]:
    """Return a task of DM Control, and the same without the double horizon and without a model."""
    theirs = (title, threshold, "TD-MPC2", 3, name)
    next_obs = "model.transition.predict_difference=false"
    return {
        name: Task(*theirs),
        f"{name}_mbpo": Task(*theirs, ("algorithm=mbpo",)),
        f"{name}_mbpo_next_obs": Task(*theirs, ("algorithm=mbpo", next_obs)),
        f"{name}_alone": Task(*theirs, ALONE),
    }


STUDIES = {
    "paper": Study(
        name="paper",
        introduction=PAPER,
        window=10_000,
        tasks={
            "inverted_pendulum": Task("InvertedPendulum", 1_000, "MBPO", 5),
            "hopper": Task("Hopper", 3_000, "MBPO", 5),
            "walker2d": Task("Walker2d", 3_000, "MBPO", 5),
            "half_cheetah": Task("HalfCheetah", 10_000, "MBPO", 5),
            "ant": Task("Ant", 3_000, "MBPO", 5),
            "humanoid": Task("Humanoid", 3_000, "MBPO", 5),
        },
    ),
    "double_horizon": Study(
        name="double_horizon",
        introduction=DOUBLE_HORIZON,
        window=0,
        tasks={
            "hopper": Task("Hopper", 3_000),
            "hopper_uncertainty": Task(
                "Hopper",
                3_000,
                preset="hopper",
                overrides=tuple(f"mbpo.model_rollout_options.{value}" for value in UNCERTAIN),
            ),
            "hopper_alone": Task("Hopper", 3_000, "SAC", preset="hopper", overrides=(*ALONE, *MANY_CRITICS)),
            "walker2d": Task("Walker2d", 4_000),
            "half_cheetah": Task("HalfCheetah", 10_000),
            "ant": Task("Ant", 4_000),
            "humanoid": Task("Humanoid", 4_000),
            # Thresholds: what TD-MPC2 has after 50,000 decisions.
            **with_variants("dmc_walker_walk", "walker-walk", 961.9),
            **with_variants("dmc_cheetah_run", "cheetah-run", 519),
            **with_variants("dmc_hopper_stand", "hopper-stand", 28),
        },
        others=("DHMBPO (T=9)", "DHMBPO (2 updates per step)", "MBPO", "SAC"),
    ),
}


def train(study: Study, task: str, seed: int, num_env_steps: int | None, precision: str | None) -> int:
    """Train or resume a run; return its exit code."""
    overrides = [*study.command(task), f"seed={seed}", "threads=1"]
    name = task
    if precision is not None:
        overrides.append(f"precision={precision}")
        name += "" if precision == "float32" else f"_{precision}"
    if num_env_steps is not None:
        overrides.append(f"trainer.num_env_steps={num_env_steps}")
    directory = RUNS / study.name / f"{name}_seed{seed}"
    command = [sys.executable, "-m", "mbpo_cli", *overrides, f"hydra.run.dir={directory}"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode


def stored(path: Path) -> dict[int, Curve]:
    """Return the curves in a file by seed; empty if the file does not exist."""
    curves: dict[int, Curve] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                curve = curves.setdefault(int(row["seed"]), Curve({}, {}, row["precision"]))
                step = int(row["env_steps"])
                curve.returns[step] = float(row["return"])
                if row.get("hours"):
                    curve.hours[step] = float(row["hours"])
    return curves


def collected(study: Study, task: str) -> dict[int, Curve]:
    """Return the longest curve of a task for each seed, from its runs and its file, and store them."""
    path = study.folder / f"{task}.csv"
    curves = stored(path)
    for directory in sorted((RUNS / study.name).glob(f"{task}_*seed*")):
        match = re.fullmatch(rf"{task}(?:_bfloat16)?_seed(\d+)", directory.name)
        if match is None:  # of a task whose name begins alike
            continue
        returns, seed = evaluations(directory), int(match[1])
        if returns and (seed not in curves or len(returns) >= len(curves[seed].returns)):
            curves[seed] = Curve(returns, hours_spent(directory), stored_config(directory)["precision"])
    curves = dict(sorted(curves.items()))
    if curves:
        study.folder.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("seed", "env_steps", "return", "precision", "hours"))
            for seed, curve in curves.items():
                for step, value in sorted(curve.returns.items()):
                    hours = curve.hours.get(step, "")
                    table.writerow((seed, step, round(value, 2), curve.precision, hours))
    return curves


def hours_spent(directory: Path) -> dict[int, float]:
    """Return the hours that a run had taken at each step at which it logged them."""
    hours = {}
    for line in (directory / METRICS).read_text(encoding="utf-8").splitlines():
        if "time/update_seconds" in line:
            with suppress(ValueError):  # the last line of a run that is still writing
                row = json.loads(line)
                spent = sum(value for key, value in row.items() if re.fullmatch(r"time/\w+_seconds", key))
                hours[row["step"]] = round(spent / 3600, 3)
    return hours


def published(study: Study, algorithm: str, title: str) -> list[tuple[int, float, float]]:
    """Return the points of a published curve (step, mean, standard deviation); empty if there is none."""
    with (PUBLISHED / study.name / "published.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["env"], row["algorithm"]) == (title, algorithm)]
    return [(int(row["env_steps"]), float(row["return_mean"]), float(row["return_std"])) for row in rows]


def half_interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean (Student's t); 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def shared_steps(curves: Mapping[int, Curve]) -> list[int]:
    """Return the environment steps at which all seeds were evaluated."""
    return sorted(set.intersection(*(set(curve.returns) for curve in curves.values())))


def draw(study: Study, name: str, curves: Mapping[int, Curve]) -> None:
    """Draw our curves over the published ones."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    task, shared = study.tasks[name], shared_steps(curves)
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
    for number, algorithm in enumerate(dict.fromkeys((task.published, *study.others))):
        points = [point for point in published(study, algorithm, task.title) if point[0] <= 1.1 * last]
        if not points:
            continue
        at, theirs, std = (np.array(column) for column in zip(*points, strict=True))
        if algorithm == task.published:
            label = f"published {algorithm}, {task.num_published_seeds} seeds, ± std"
            axes.plot(at, theirs, color="black", linewidth=1.6, label=label)
            axes.fill_between(at, theirs - std, theirs + std, color="black", alpha=0.1, linewidth=0)
        else:
            label = f"published {algorithm}"
            axes.plot(at, theirs, color=f"C{number}", linewidth=1.0, linestyle="--", label=label)
    axes.set(xlabel="real environment steps", ylabel="evaluation return", title=f"{study.name}: {name}")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(study.folder / f"{name}.png", dpi=110)
    plt.close(figure)


def published_shown(study: Study, task: Task) -> dict[int, str]:
    """Return the published mean and standard deviation by step, as text."""
    points = published(study, task.published, task.title)
    return {step: f"{mean:,.0f} ± {std:,.0f}" for step, mean, std in points}


def shown(step: int) -> str:
    """Return the step at which a threshold was reached, as text."""
    return f"{step:,}" if step < sys.maxsize else "not yet"


def held(returns: Mapping[int, float], threshold: float) -> bool | None:
    """Return True if a curve stayed above two thirds of the threshold for `STEADY_STEPS` after it.

    None if it never reached it, or is not yet so long.
    """
    start = min((step for step, value in returns.items() if value >= threshold), default=sys.maxsize)
    end = start + STEADY_STEPS
    if max(returns) < end:
        return None
    return all(value >= 2 / 3 * threshold for step, value in returns.items() if start <= step <= end)


def row(study: Study, name: str, curves: Mapping[int, Curve]) -> dict[str, str]:
    """Return the row of a task, by heading."""
    task = study.tasks[name]
    last = min(max(curve.returns) for curve in curves.values())
    theirs = published_shown(study, task)
    compared = max(theirs.keys() & set(shared_steps(curves)), default=last)
    window = study.window if theirs else 0
    at = [curve.recent(compared, window) for curve in curves.values()]
    # The interval of two seeds says less than the two values.
    ours = ", ".join(f"{value:,.0f}" for value in at)
    if len(at) > 2:
        ours = f"{np.mean(at):,.0f} ± {half_interval(at):,.0f}"
    firsts = {seed: first(curve.returns, task.threshold) for seed, curve in curves.items()}
    median = statistics.median_high(firsts.values())
    reached = [curve.hours.get(firsts[seed]) for seed, curve in curves.items()]
    hours = [each for each in reached if each is not None]
    means = {
        step: statistics.fmean(curve.returns[step] for curve in curves.values())
        for step in shared_steps(curves)
    }
    their_means = {step: mean for step, mean, _ in published(study, task.published, task.title)}
    steady = [held(curve.returns, task.threshold) for curve in curves.values()]
    known = [each for each in steady if each is not None]
    return {
        "mbpo-train": f"`{' '.join(study.command(name))}`",
        "precision": ", ".join(sorted({curve.precision for curve in curves.values()})),
        "seeds": str(len(curves)),
        "steps of all seeds": f"{last:,}",
        "compared at": f"{compared:,}",
        "return": ours,
        "published": theirs.get(compared, ""),
        "threshold": f"{task.threshold:,.0f}",
        "median steps to it": shown(median),
        "mean of seeds": shown(first(means, task.threshold)),
        "published mean": shown(first(their_means, task.threshold)) if their_means else "",
        "hours to it": f"{statistics.median(hours):.1f}" if hours and median < sys.maxsize else "",
        "held": f"{sum(known)} of {len(known)}" if known else "",
    }


def by_step(study: Study, name: str, curves: Mapping[int, Curve]) -> list[str]:
    """Return the table of a task: our returns and the published ones, at up to eight common steps."""
    task = study.tasks[name]
    theirs = published_shown(study, task)
    steps = [step for step in shared_steps(curves) if step in theirs]
    if not steps:
        return []
    every = -(-len(steps) // MAX_ROWS)
    rows = []
    for step in sorted(steps[::-every]):
        values = {f"seed {seed}": curve.recent(step, study.window) for seed, curve in curves.items()}
        values["mean"] = statistics.fmean(values.values())
        ours = {head: f"{value:,.0f}" for head, value in values.items()}
        rows.append({task.title: f"{step:,}", **ours, "published": theirs[step]})
    return ["", markdown(rows)]


def page(study: Study) -> str:
    """Draw the curves so far, and return the page."""
    rows, pictures = [], []
    for name, task in study.tasks.items():
        curves = collected(study, name)
        if curves:
            draw(study, name, curves)
            rows.append(row(study, name, curves))
            pictures += ["", f"![{task.title}]({name}.png)", *by_step(study, name, curves)]
    return "\n".join([study.introduction, RULE, markdown(rows), *pictures]) + "\n"


def main() -> int:
    """Train the chosen runs, then write the page; return the first exit code other than 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", choices=STUDIES, default="paper")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="default: all but the variants for comparison"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="environment steps (default: as in the preset)")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: as in the preset")
    parser.add_argument("--dry", action="store_true", help="train nothing; only write page and pictures")
    options = parser.parse_args()
    study = STUDIES[options.experiment]
    tasks = options.tasks or [name for name, task in study.tasks.items() if not task.overrides]
    if unknown := [task for task in tasks if task not in study.tasks]:
        parser.error(f"--tasks {' '.join(unknown)}: {study.name} has {', '.join(study.tasks)}")
    jobs = [] if options.dry else [(task, seed) for task in tasks for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(
            pool.map(lambda job: train(study, job[0], job[1], options.steps, options.precision), jobs)
        )
    study.folder.mkdir(parents=True, exist_ok=True)
    text = page(study)
    (study.folder / "README.md").write_text(text, encoding="utf-8")
    print(text)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
