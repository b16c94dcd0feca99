"""Train the runs that are missing on the results page, and draw the learning curves of all.

    python -m scripts.results [--jobs 2] [--seeds 0 1 2 3 4] [--only sac_pendulum ...] [--dry]

Each run is `mbpo-train OVERRIDES mbpo=on|off seed=...`, in its own process. Finished runs are stored in
`docs/results/` with their configuration, and repeated only if the value of an option has changed.
Interrupted runs are resumed. Writes `docs/results.md` and a picture per task.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import options_in
from mbpo_cli.report.runs import read_summary
from mbpo_cli.storage.records import evaluations
from scripts.tables import markdown

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "outputs" / "results"
PAGE = ROOT / "docs" / "results.md"
FOLDER = ROOT / "docs" / "results"
INTRODUCTION = """\
# Learning results

Written by `make results` (`scripts/results.py`). It trains the runs that are missing and those whose
options have changed since; the other figures are from the version that measured them.

Each row gives greedy evaluation returns at the goal's number of real environment steps: mean ± standard
deviation over seeds 0-4. Below each row with a model is the same agent without one, with the same number of
real steps and updates. The values of an environment were chosen on seeds that include these, so fresh seeds
may do worse. The time is the median wall time of the runs, one thread each, on two cores that had other
work to do. The points of every curve are in `docs/results/`.
"""
COLORS = {"on": "tab:blue", "off": "tab:orange"}


@dataclass(frozen=True)
class Task:
    """A configuration to train, and its goal.

    Attributes:
        name: Name of its files.
        title: Name on the page.
        overrides: Overrides for `mbpo-train`, except `mbpo` and `seed`.
        target: Return to reach.
        budget: Real environment steps within which to reach it.
        num_env_steps: Length of the runs.
        variants: With the model (`on`), without it (`off`), or both.
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
        # The model is on by default, in experiments as well.
        chosen = ["mbpo=off"] if variant == "off" else []
        length = f"trainer.num_env_steps={self.num_env_steps}"
        return [*self.overrides, *chosen, length, "threads=1", f"seed={seed}"]


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


# Without a model the usual values work better than those tuned for rollouts.
PENDULUM_ALONE = (
    "agent.num_warm_start_steps=1_000",
    "agent.warm_start_hold_steps=1",
    "agent.discount_factor=0.99",
    "agent.target_smooth_factor=0.005",
    "trainer.evaluate_every_steps=1_000",
)
CARTPOLE_ALONE = (
    "agent.num_warm_start_steps=1_000",
    "agent.mini_batch_size=64",
    "agent.hidden_sizes=[256,256]",
    "agent.discount_factor=0.99",
    "agent.critic_optimizer.learn_rate=1e-3",
    "agent.critic_optimizer.gradient_threshold=10",
    "agent.target_smooth_factor=1",
    "agent.target_update_frequency=128",
    "trainer.evaluate_every_steps=2_500",
)
TASKS = (
    Task("sac_pendulum", "SAC on Pendulum", ("agent=sac", "env=pendulum"), -200, 500, 1_000),
    Task("dqn_cartpole", "DQN on CartPole", ("agent=dqn", "env=cartpole"), 475, 1_500, 1_500),
    Task("td3_pendulum", "TD3 on Pendulum", ("agent=td3", "env=pendulum"), -200, 500, 1_000),
    Task("ddpg_pendulum", "DDPG on Pendulum", ("agent=ddpg", "env=pendulum"), -200, 500, 1_000),
    Task("sac_cartpole", "discrete SAC on CartPole", ("agent=sac", "env=cartpole"), 475, 1_500, 1_500),
    Task("matlab_cartpole", "MATLAB's cart-pole", ("experiment=matlab_cartpole",), 480, 10_000, 10_000),
    Task(
        "sac_inverted_pendulum",
        "SAC on InvertedPendulum",
        ("agent=sac", "env=inverted_pendulum"),
        1_000,
        4_000,
        4_000,
    ),
    Task("dqn_acrobot", "DQN on Acrobot", ("agent=dqn", "env=acrobot"), -100, 8_000, 8_000),
    Task(
        "sac_mountain_car_continuous",
        "SAC on MountainCarContinuous",
        ("agent=sac", "env=mountain_car_continuous"),
        90,
        6_000,
        6_000,
    ),
    _alone("sac", "pendulum", "SAC alone on Pendulum", -157, 20_000, *PENDULUM_ALONE),
    _alone("td3", "pendulum", "TD3 alone on Pendulum", -152, 20_000, *PENDULUM_ALONE),
    _alone("ddpg", "pendulum", "DDPG alone on Pendulum", -152, 20_000, *PENDULUM_ALONE),
    _alone("dqn", "cartpole", "DQN alone on CartPole", 500, 50_000, *CARTPOLE_ALONE),
)


@dataclass
class Curves:
    """The finished runs of a task with or without the model, as stored in `docs/results/TASK.json`.

    Attributes:
        config: Value of every option except the seed.
        wall_seconds: By seed.
        returns: Mean evaluation return by seed and environment step.
    """

    config: dict[str, Any]
    wall_seconds: dict[str, float] = field(default_factory=dict)
    returns: dict[str, dict[str, float]] = field(default_factory=dict)

    def at(self, step: int) -> list[float]:
        """Return the evaluation of each seed at a step."""
        return [points[str(step)] for points in self.returns.values()]


def configuration(overrides: list[str]) -> dict[str, Any]:
    """Return the value of every option of a run except the seed."""
    return {key: value for key, _, _, value in options_in(make_config(*overrides)) if key != "seed"}


def matters(key: str, config: dict[str, Any]) -> bool:
    """Return True if an option affects the result of a run; without a model, its options do not."""
    of_model = key.startswith(("model.", "mbpo.")) and key != "mbpo.mini_batch_size"
    return config["mbpo.use_model"] or not of_model


def load(task: Task) -> dict[str, Curves]:
    """Return the stored runs of a task, without those for which the value of an option has changed."""
    path = FOLDER / f"{task.name}.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    results = {}
    for variant in task.variants:
        config = configuration(task.command(variant, 0))
        results[variant] = Curves(config)
        if variant in stored:
            old = stored[variant].pop("config")
            if all(config.get(key, value) == value for key, value in old.items() if matters(key, config)):
                results[variant] = Curves(config, **stored[variant])
    return results


def save(task: Task, results: dict[str, Curves]) -> None:
    """Store the runs of a task."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps({variant: asdict(curves) for variant, curves in results.items()}, indent=1)
    # One line per curve.
    text = re.sub(r'("\d+": \{)([^{}]*)\}', lambda m: m[1] + " ".join(m[2].split()) + "}", text)
    (FOLDER / f"{task.name}.json").write_text(text + "\n")


def train(task: Task, variant: str, seed: int, config: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Train or resume a run unless it has finished; return its wall time and its evaluations."""
    overrides = task.command(variant, seed)
    digest = hashlib.sha256(repr(config).encode()).hexdigest()[:8]
    directory = RUNS / f"{task.name}_{variant}_{digest}_seed{seed}"
    if read_summary(directory).get("status") != "done":
        command = [sys.executable, "-m", "mbpo_cli", *overrides, f"hydra.run.dir={directory}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    summary = read_summary(directory)
    points = {str(step): round(value, 2) for step, value in evaluations(directory).items()}
    print(f"{task.name} {variant} seed {seed}: {summary['eval_return_mean']:.1f}", flush=True)
    return round(summary["wall_seconds"], 1), points


def draw(task: Task, results: dict[str, Curves]) -> None:
    """Draw the mean over seeds, and each seed as a thin line."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    measured = {variant: curves for variant, curves in results.items() if curves.returns}
    num_seeds = max(len(curves.returns) for curves in measured.values())
    for variant, curves in measured.items():
        steps = sorted(map(int, next(iter(curves.returns.values()))))
        values = np.array([curves.at(step) for step in steps])
        label = "MBPO (mbpo=on)" if variant == "on" else "the agent alone (mbpo=off)"
        axes.plot(steps, values, color=COLORS[variant], alpha=0.25, linewidth=0.8)
        axes.plot(steps, values.mean(1), color=COLORS[variant], linewidth=2.2, label=label)
    axes.axhline(task.target, color="gray", linestyle=":", linewidth=1)
    axes.annotate(f"{task.target:g}", (0, task.target), color="gray", fontsize=8, va="bottom")
    if task.budget < task.num_env_steps:
        axes.axvline(task.budget, color="gray", linestyle=":", linewidth=1)
    axes.set(
        xlabel="real environment steps",
        ylabel="evaluation return",
        title=f"{task.title}: mean of {num_seeds} seeds (thin: each seed)",
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / f"{task.name}.png", dpi=110)
    plt.close(figure)


def row(task: Task, variant: str, curves: Curves) -> dict[str, str]:
    """Return a row of the table, by heading."""
    command = " ".join(override for override in task.command(variant, 0) if "seed=" not in override)
    goal = {"mbpo-train": f"`{command}`", "goal": f"{task.target:g} within {task.budget:,}"}
    if not curves.returns:
        return goal | {"return at the goal's step": "not measured"}
    at = curves.at(task.budget)
    first = [
        min((int(step) for step, value in points.items() if value >= task.target), default=math.inf)
        for points in curves.returns.values()
    ]
    firsts = ", ".join(f"{step:,}" if step < math.inf else "never" for step in sorted(first))
    seconds = curves.wall_seconds.values()
    return goal | {
        "return at the goal's step": f"{np.mean(at):.1f} ± {np.std(at, ddof=1):.1f}",
        "worst seed": f"{min(at):.1f}",
        "steps at which each seed first reached it": firsts,
        "seeds at the goal at its step": f"{sum(value >= task.target for value in at)} of {len(at)}",
        "time": f"{statistics.median(seconds):,.0f} s" if seconds else "",
    }


def page(results: dict[str, dict[str, Curves]]) -> str:
    """Return the results page."""
    rows = [row(task, variant, results[task.name][variant]) for task in TASKS for variant in task.variants]
    lines = [INTRODUCTION, markdown(rows)]
    for task in TASKS:
        if (FOLDER / f"{task.name}.png").exists():
            lines += ["", f"![{task.title}](results/{task.name}.png)"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train the missing runs, then write the page and the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--only", nargs="+", choices=[task.name for task in TASKS], metavar="TASK")
    parser.add_argument("--dry", action="store_true", help="train nothing; only write page and pictures")
    options = parser.parse_args()
    results = {task.name: load(task) for task in TASKS}
    chosen = [task for task in TASKS if not options.only or task.name in options.only]

    lock = Lock()

    def obtain(task: Task, variant: str, seed: int) -> None:
        curves = results[task.name][variant]
        if str(seed) in curves.returns:
            return
        wall_seconds, points = train(task, variant, seed, curves.config)
        with lock:
            curves.wall_seconds[str(seed)], curves.returns[str(seed)] = wall_seconds, points
            save(task, results[task.name])

    if not options.dry:
        jobs = [
            (task, variant, seed) for task in chosen for seed in options.seeds for variant in task.variants
        ]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda job: obtain(*job), jobs))
    for task in TASKS:
        if any(curves.returns for curves in results[task.name].values()):
            draw(task, results[task.name])
    PAGE.write_text(page(results), encoding="utf-8")
    print(page(results).partition("![")[0])


if __name__ == "__main__":
    main()
