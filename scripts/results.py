"""Train the runs of the results page, or reuse those at hand, and draw their learning curves.

    python scripts/results.py [--jobs 2] [--seeds 0 1 2 3 4] [--only sac_pendulum ...] [--dry]

Every run is `mbpo-train OVERRIDES mbpo=on|off seed=...`, in a process of its own. Finished runs are kept in
`docs/results/`, with a fingerprint of their whole configuration, and repeated only if that has changed; an
interrupted program goes on where it was. Writes `docs/results.md`, and a picture and the points per task.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mbpo_cli.compose import make_config

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "outputs" / "results"
PAGE = ROOT / "docs" / "results.md"
FOLDER = ROOT / "docs" / "results"
INTRODUCTION = """\
# Learning results

Written by `make results` (`scripts/results.py`), which repeats what has changed. Returns are those of greedy
evaluation episodes at the goal's number of real environment steps, mean ± standard deviation over seeds.
Beneath each row with a model stands the same agent without one, with as many real steps and updates. Wall
time: median of the runs, two side by side on two cores, one thread each. The points are in
[`results/`](results).
"""
COLORS = {"on": "tab:blue", "off": "tab:orange"}


@dataclass(frozen=True)
class Task:
    """What is trained, and what it should reach.

    Attributes:
        name: Names its files.
        title: Names it to a reader.
        overrides: What `mbpo-train` is told, apart from `mbpo` and `seed`.
        target: Return to reach.
        budget: Real environment steps within which to reach it.
        num_env_steps: Length of the runs.
        variants: With (`on`) and without (`off`) the model.
    """

    name: str
    title: str
    overrides: tuple[str, ...]
    target: float
    budget: int
    num_env_steps: int
    variants: tuple[str, ...] = ("on", "off")

    def command(self, variant: str, seed: int) -> list[str]:
        """Return the overrides of one run."""
        # An experiment is MBPO itself; the group is named only to switch it off.
        chosen = ["mbpo=off"] if variant == "off" else []
        return [*self.overrides, *chosen, f"trainer.num_env_steps={self.num_env_steps}", f"seed={seed}"]


def _alone(agent: str, env: str, title: str, target: float, num_env_steps: int, *overrides: str) -> Task:
    return Task(
        f"{agent}_alone_{env}",
        title,
        (f"agent={agent}", f"env={env}", "agent.num_gradient_steps_per_update=1", *overrides),
        target,
        num_env_steps,
        num_env_steps,
        ("off",),
    )


PENDULUM_ALONE = ("agent.num_warm_start_steps=1_000", "trainer.evaluate_every_steps=1_000")
TASKS = (
    Task("sac_pendulum", "SAC on Pendulum", ("agent=sac", "env=pendulum"), -200, 1_000, 1_500),
    Task("dqn_cartpole", "DQN on CartPole", ("agent=dqn", "env=cartpole"), 475, 4_000, 4_000),
    Task("td3_pendulum", "TD3 on Pendulum", ("agent=td3", "env=pendulum"), -200, 3_000, 3_000),
    Task("ddpg_pendulum", "DDPG on Pendulum", ("agent=ddpg", "env=pendulum"), -200, 3_000, 3_000),
    Task("sac_cartpole", "discrete SAC on CartPole", ("agent=sac", "env=cartpole"), 475, 5_000, 5_000),
    Task("matlab_cartpole", "MATLAB's cart-pole", ("experiment=matlab_cartpole",), 480, 10_000, 10_000),
    Task(
        "sac_inverted_pendulum",
        "SAC on InvertedPendulum",
        ("agent=sac", "env=inverted_pendulum"),
        1_000,
        4_000,
        4_000,
    ),
    Task("dqn_acrobot", "DQN on Acrobot", ("agent=dqn", "env=acrobot"), -100, 15_000, 15_000),
    Task(
        "sac_mountain_car_continuous",
        "SAC on MountainCarContinuous",
        ("agent=sac", "env=mountain_car_continuous"),
        90,
        20_000,
        20_000,
    ),
    _alone("sac", "pendulum", "SAC alone on Pendulum", -157, 20_000, *PENDULUM_ALONE),
    _alone("td3", "pendulum", "TD3 alone on Pendulum", -152, 20_000, *PENDULUM_ALONE),
    _alone("ddpg", "pendulum", "DDPG alone on Pendulum", -152, 20_000, *PENDULUM_ALONE),
    _alone("dqn", "cartpole", "DQN alone on CartPole", 500, 50_000, "trainer.evaluate_every_steps=2_500"),
)


@dataclass
class Run:
    """A finished run, as `docs/results/TASK.json` keeps it."""

    variant: str
    seed: int
    fingerprint: str
    wall_seconds: float
    returns: dict[str, float] = field(default_factory=dict)
    """Mean evaluation return by environment step."""


def fingerprint(overrides: list[str]) -> str:
    """Return a digest of the whole configuration of a run."""
    return hashlib.sha256(repr(asdict(make_config(*overrides))).encode()).hexdigest()[:12]


def load(task: Task) -> dict[tuple[str, int], Run]:
    """Read the runs of a task that are at hand."""
    path = FOLDER / f"{task.name}.json"
    runs = [Run(**entry) for entry in json.loads(path.read_text())] if path.exists() else []
    return {(run.variant, run.seed): run for run in runs}


def save(task: Task, runs: dict[tuple[str, int], Run]) -> None:
    """Store the runs of a task."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    entries = [asdict(run) for _, run in sorted(runs.items(), key=lambda item: (item[0][0] != "on", item[0]))]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (FOLDER / f"{task.name}.json").write_text(f"[\n{lines}\n]\n")


def train(task: Task, variant: str, seed: int) -> Run:
    """Train one run, or take it from the run directory where it is done."""
    overrides = task.command(variant, seed)
    digest = fingerprint(overrides)
    directory = RUNS / f"{task.name}_{variant}_seed{seed}_{digest}"
    if not (directory / "summary.json").exists():
        command = [sys.executable, "-m", "mbpo_cli", *overrides, f"hydra.run.dir={directory}"]
        if directory.exists():
            directory.rename(directory.with_name(f"{directory.name}_unfinished_{len(list(RUNS.iterdir()))}"))
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((directory / "summary.json").read_text())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    returns = {str(row["step"]): row["eval/return_mean"] for row in rows if "eval/return_mean" in row}
    rounded = {step: round(value, 2) for step, value in returns.items()}
    print(f"{task.name} {variant} seed {seed}: {summary['eval_return_mean']:.1f}", flush=True)
    return Run(variant, seed, digest, round(summary["wall_seconds"], 1), rounded)


def draw(task: Task, runs: dict[tuple[str, int], Run]) -> None:
    """Draw the mean over seeds, and each seed thinly."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for variant in task.variants:
        seeds = [run for run in runs.values() if run.variant == variant]
        if not seeds:
            continue
        steps = sorted(map(int, seeds[0].returns))
        values = np.array([[run.returns[str(step)] for step in steps] for run in seeds])
        label = "MBPO (mbpo=on)" if variant == "on" else "the agent alone (mbpo=off)"
        axes.plot(steps, values.T, color=COLORS[variant], alpha=0.25, linewidth=0.8)
        axes.plot(steps, values.mean(0), color=COLORS[variant], linewidth=2.2, label=label)
    axes.axhline(task.target, color="gray", linestyle=":", linewidth=1)
    axes.annotate(f"{task.target:g}", (0, task.target), color="gray", fontsize=8, va="bottom")
    if task.budget < task.num_env_steps:
        axes.axvline(task.budget, color="gray", linestyle=":", linewidth=1)
    num_seeds = len({run.seed for run in runs.values()})
    axes.set(
        xlabel="real environment steps",
        ylabel="evaluation return",
        title=f"{task.title}: mean of {num_seeds} seeds (thin: each seed)",
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / f"{task.name}.png", dpi=110)
    plt.close(figure)


def row(task: Task, variant: str, runs: dict[tuple[str, int], Run]) -> str:
    """Return one line of the table."""
    seeds = [run for run in runs.values() if run.variant == variant]
    command = " ".join(override for override in task.command(variant, 0) if "seed=" not in override)
    cells = [f"`{command}`", f"{task.target:g} within {task.budget:,}"]
    if not seeds:
        return f"| {' | '.join([*cells, 'not measured', '', '', '', ''])} |"
    at = [run.returns[str(task.budget)] for run in seeds]
    first = [
        min((int(step) for step, value in run.returns.items() if value >= task.target), default=None)
        for run in seeds
    ]
    reached = ", ".join(f"{step:,}" for step in sorted(step for step in first if step is not None))
    missing = first.count(None)
    cells += [
        f"{np.mean(at):.1f} ± {np.std(at):.1f}",
        f"{min(at):.1f}",
        ", ".join(filter(None, (reached, f"{missing} never" if missing else ""))),
        str(len(seeds)),
        f"{statistics.median(run.wall_seconds for run in seeds):,.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def page(results: dict[str, dict[tuple[str, int], Run]]) -> str:
    """Return the results page."""
    columns = (
        "mbpo-train ...",
        "goal",
        "return there",
        "worst seed",
        "first at the goal, by seed",
        "seeds",
        "wall time",
    )
    lines = [
        INTRODUCTION,
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    lines += [row(task, variant, results[task.name]) for task in TASKS for variant in task.variants]
    for task in TASKS:
        if results[task.name]:
            lines += ["", f"![{task.title}](results/{task.name}.png)"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, tabulate and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--only", nargs="+", choices=[task.name for task in TASKS], metavar="TASK")
    parser.add_argument("--dry", action="store_true", help="train nothing; write the page of what is there")
    options = parser.parse_args()
    results = {task.name: load(task) for task in TASKS}
    chosen = [task for task in TASKS if not options.only or task.name in options.only]
    wanted = [
        (task, variant, seed)
        for task in chosen
        for seed in options.seeds
        for variant in task.variants
        if not options.dry
    ]

    def obtain(task: Task, variant: str, seed: int) -> None:
        known = results[task.name].get((variant, seed))
        if known is None or known.fingerprint != fingerprint(task.command(variant, seed)):
            results[task.name][variant, seed] = train(task, variant, seed)
            save(task, results[task.name])

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda job: obtain(*job), wanted))
    for task in chosen:
        if results[task.name]:
            draw(task, results[task.name])
    PAGE.write_text(page(results), encoding="utf-8")
    print(page(results).partition("![")[0])


if __name__ == "__main__":
    main()
