"""Whole jobs, from process start to end: wall time, processor time, memory, and time to a return.

    python -m benchmarks.jobs [--only NAME ...] [--peers PYTHON]

Jobs run one after another with one thread. Updates `docs/benchmarks.json` and its page.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare import DATA, PEERS, ROOT, machine, store

OURS = (sys.executable, "-m", "mbpo_cli")


@dataclass(frozen=True)
class Job:
    """A command to time.

    Attributes:
        title: The task and the program.
        command: Arguments of our command line, or name and seed of another library's job.
        target: Evaluation return to reach, or None.
        uncounted_steps: The number of first steps that are not counted, because the other library does
            not count them either.
    """

    title: str
    command: tuple[str, ...] | str
    target: float | None = None
    uncounted_steps: int = 0


CART_POLE = ("--config-dir", str(ROOT / "benchmarks" / "conf"), "threads=1", "agent=sac")
SAME_WORK = (*CART_POLE, "env=mbrl_cartpole")
# Longer than the default run, which may end before three evaluations in a row reach the target. We learn in a
# tenth of the steps of stable-baselines3, and are evaluated ten times as often.
PENDULUM = (
    "threads=1",
    "agent=sac",
    "env=pendulum",
    "trainer.num_env_steps=800",
    "trainer.evaluate_every_steps=25",
    "trainer.log_every_steps=25",
)
JOBS = {
    "help": Job("`mbpo-train --help`", ("--help",)),
    "first_step": Job("one environment step", ("env=pendulum", "trainer.num_env_steps=1")),
    **{
        f"pendulum_{seed}": Job(
            f"SAC on Pendulum, 800 steps, evaluations every 25, otherwise default, seed {seed}",
            (*PENDULUM, f"seed={seed}"),
            -200,
        )
        for seed in range(3)
    },
    **{
        f"pendulum_sb3_{seed}": Job(
            f"stable-baselines3's SAC on Pendulum, zoo settings, evaluations every 250 steps, seed {seed}",
            f"sb3_pendulum {seed}",
            -200,
        )
        for seed in range(3)
    },
    "cartpole": Job("mbrl-lib's cart-pole job, same work, seed 0", (*SAME_WORK, "seed=0"), 200, 5_000),
    **{
        f"cartpole_bfloat16_{seed}": Job(
            f"mbrl-lib's cart-pole job, same work in bfloat16, seed {seed}",
            (*SAME_WORK, f"seed={seed}", "precision=bfloat16"),
            200,
            5_000,
        )
        for seed in range(3)
    },
    **{
        f"cartpole_mbrl_{seed}": Job(
            f"mbrl-lib's cart-pole job, run by mbrl-lib, seed {seed}", f"mbrl_cartpole {seed}", 200
        )
        for seed in range(3)
    },
    **{
        f"cartpole_quick_{seed}": Job(
            f"the same task with our own values, seed {seed}",
            (*CART_POLE, "env=quick_cartpole", f"seed={seed}"),
            200,
        )
        for seed in range(5)
    },
}


def run(job: Job, peers: Path) -> dict[str, Any]:
    """Return the times and memory of one job, or its error."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(job.command, str):
            command = [str(peers), "-m", "benchmarks.peers_jobs", *job.command.split()]
        else:
            directory = [] if "--help" in job.command else [f"hydra.run.dir={folder}/run"]
            command = [*OURS, *job.command, *directory]
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }
        start = time.perf_counter()
        with open(f"{folder}/out", "w+b") as out:
            process = subprocess.Popen(
                command, cwd=folder, env=variables, stdout=out, stderr=subprocess.STDOUT
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            output = out.read().decode(errors="replace")
        if process.returncode != 0:
            return {"failed": (output.strip().splitlines() or ["no output"])[-1]}
        result: dict[str, Any] = {
            "wall_seconds": wall,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_megabytes": usage.ru_maxrss / 1024,
        }
        if job.target is not None:
            points = (
                _of_peer(output) if isinstance(job.command, str) else _of_ours(Path(folder) / "run", wall)
            )
            first = job.uncounted_steps
            counted = [(step - first, value, seconds) for step, value, seconds in points if step > first]
            result |= reached(counted, job.target)
        summary = Path(folder) / "run" / "summary.json"
        if summary.exists():
            result["phase_seconds"] = json.loads(summary.read_text())["phase_seconds"]
        return result


def _of_peer(output: str) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [(row["steps"], row["return"], row["seconds"]) for row in rows]


def _of_ours(directory: Path, wall_seconds: float) -> list[tuple[int, float, float]]:
    # Phases exclude the start of the process, which counts here.
    summary = json.loads((directory / "summary.json").read_text())
    spent = wall_seconds - sum(summary["phase_seconds"].values())
    points = []
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        phases = [seconds for tag, seconds in row.items() if re.fullmatch(r"time/\w+_seconds", tag)]
        if "eval/return_mean" in row and phases:
            points.append((row["step"], row["eval/return_mean"], spent + sum(phases)))
    return points


def reached(points: list[tuple[int, float, float]], target: float) -> dict[str, Any]:
    """Return steps and seconds of the first evaluation at the target, and of the first of three in a row."""
    result: dict[str, Any] = {"target": target}
    for name, in_a_row in (("first", 1), ("target", 3)):
        windows = zip(*(points[i:] for i in range(in_a_row)), strict=False)
        found = (window[0] for window in windows if min(point[1] for point in window) >= target)
        step, _, seconds = next(found, (None, None, None))
        result |= {f"steps_to_{name}": step, f"seconds_to_{name}": seconds}
    return result


def main() -> None:
    """Run the chosen jobs and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME")
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python with the other libraries")
    arguments = parser.parse_args()
    for name in arguments.only:
        if isinstance(JOBS[name].command, str) and not arguments.peers.exists():
            continue
        result = run(JOBS[name], arguments.peers)
        print(JOBS[name].title, json.dumps(result), flush=True)
        data = json.loads(DATA.read_text()) if DATA.exists() else {}
        data[f"job {name}"] = {"machine": machine(), "title": JOBS[name].title, "results": result}
        store(data)


if __name__ == "__main__":
    main()
