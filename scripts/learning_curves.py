"""Train the runs of the README's picture, or reuse those at hand, and draw it.

    python scripts/learning_curves.py [--jobs 2] [--seeds 0 1 2 3 4]

Every run is `mbpo-train env=pendulum trainer.num_env_steps=1500 mbpo=on|off seed=...`, in a process of
its own. Runs that are done are not repeated. Writes `docs/pendulum.csv`, `docs/pendulum.png` and a table.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "outputs" / "curves"
LABELS = {"on": "MBPO (mbpo=on)", "off": "SAC alone (mbpo=off)"}
SOLVED = -200.0
BUDGET = 1000  # real steps of the default run
NUM_ENV_STEPS = 1500  # the curves go on beyond it

Curves = dict[str, dict[int, dict[int, float]]]
"""Evaluation return by variant, seed and environment step."""


def train(variant: str, seed: int) -> Path:
    """Train one run, unless it is done already, and return its directory."""
    directory = RUNS / f"pendulum_{variant}_seed{seed}"
    if not (directory / "summary.json").exists():
        command = [sys.executable, "-m", "mbpo_cli", "agent=sac", "env=pendulum", f"mbpo={variant}"]
        command += [f"seed={seed}", f"trainer.num_env_steps={NUM_ENV_STEPS}", f"hydra.run.dir={directory}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((directory / "summary.json").read_text())
    print(
        f"{variant} seed {seed}: {summary['eval_return_mean']:.1f} in {summary['wall_seconds']:.0f} s",
        flush=True,
    )
    return directory


def evaluations(directory: Path) -> dict[int, float]:
    """Read the evaluation return at each step of a run."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["eval/return_mean"] for row in rows if "eval/return_mean" in row}


def write_csv(curves: Curves, path: Path) -> None:
    """Store all points."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("variant", "seed", "env_steps", "eval_return_mean"))
        for variant, seeds in curves.items():
            for seed, points in seeds.items():
                writer.writerows((variant, seed, step, f"{value:.2f}") for step, value in points.items())


def draw(curves: Curves, path: Path) -> None:
    """Draw the mean over seeds, and each seed thinly."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for color, (variant, seeds) in zip(("tab:blue", "tab:orange"), curves.items(), strict=True):
        steps = sorted(next(iter(seeds.values())))
        values = np.array([[points[step] for step in steps] for points in seeds.values()])
        axes.plot(steps, values.T, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, values.mean(0), color=color, linewidth=2.2, label=LABELS[variant])
    axes.axhline(SOLVED, color="gray", linestyle=":", linewidth=1)
    axes.axvline(BUDGET, color="gray", linestyle=":", linewidth=1)
    axes.annotate("default run ends", (BUDGET + 10, -1750), color="gray", fontsize=8)
    axes.annotate(f"solved: {SOLVED:.0f}", (100, SOLVED + 25), color="gray", fontsize=8)
    axes.set(
        xlabel="real environment steps",
        ylabel="evaluation return (20 episodes)",
        title=f"Pendulum-v1: mean of {len(seeds)} seeds (thin: each seed)",
    )
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.1), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def table(curves: Curves, wall_seconds: dict[str, list[float]]) -> str:
    """Return the results as a Markdown table."""
    columns = (
        "",
        f"return at {BUDGET:,} steps",
        "worst seed there",
        f"first evaluation at {SOLVED:.0f} or more, by seed",
        f"return at {NUM_ENV_STEPS:,} steps",
        f"wall time for {NUM_ENV_STEPS:,} steps",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for variant, seeds in curves.items():
        at, end = ([points[step] for points in seeds.values()] for step in (BUDGET, NUM_ENV_STEPS))
        solved = [
            min((step for step in points if points[step] >= SOLVED), default=math.inf)
            for points in seeds.values()
        ]
        cells = [
            f"{np.mean(at):.0f} ± {np.std(at):.0f}",
            f"{min(at):.0f}",
            ", ".join(f"{step:,.0f}" for step in sorted(solved)),
            f"{np.mean(end):.0f} ± {np.std(end):.0f}",
            f"{statistics.median(wall_seconds[variant]):.0f} s",
        ]
        lines.append(f"| {LABELS[variant]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train, tabulate and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    options = parser.parse_args()
    runs = [(variant, seed) for variant in LABELS for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        directories = dict(zip(runs, pool.map(lambda run: train(*run), runs), strict=True))
    curves: Curves = {
        variant: {seed: evaluations(directories[variant, seed]) for seed in options.seeds}
        for variant in LABELS
    }
    seconds = {
        variant: [
            json.loads((directories[variant, seed] / "summary.json").read_text())["wall_seconds"]
            for seed in options.seeds
        ]
        for variant in LABELS
    }
    (ROOT / "docs").mkdir(exist_ok=True)
    write_csv(curves, ROOT / "docs" / "pendulum.csv")
    draw(curves, ROOT / "docs" / "pendulum.png")
    print(table(curves, seconds))


if __name__ == "__main__":
    main()
