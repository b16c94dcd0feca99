"""Measure this package, other libraries and the hardware limit in turn, and write table, JSON and page.

    python -m benchmarks.compare [--only sac_update ...] [--rounds 9] [--threads 1] [--peers PYTHON]

Each program is a process of its own. In every round all programs do the same work once, in turn, so that
other load on the machine affects all of them alike. Times are medians over rounds. A program that fails is
listed with its error. Writes `docs/benchmarks.json`, in which other measures stay, and `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
PEERS = ROOT / ".venv-peers" / "bin" / "python"
SECONDS_PER_ROUND = 0.5
LIMIT = "matrix products alone"
OURS = "mbpo-cli"
AS_IT_IS, PLAIN = ((),), ((), ("bfloat16",))
ALL_WAYS = (*PLAIN, ("compiled",), ("compiled", "bfloat16"))
Ways = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Measure:
    """A measurement.

    Attributes:
        title: The unit of work.
        programs: Arguments of `benchmarks.worker` by program.
        multiple: The number of units is a multiple of this.
    """

    title: str
    programs: Mapping[str, tuple[str, ...]]
    multiple: int = 1


def _update(name: str, title: str, *, mbrl: bool = False) -> Measure:
    programs = {
        **_ours(f"{name}_update", ALL_WAYS),
        "stable-baselines3": ("peers", "stable_baselines3", name),
        "sbx": ("peers", "sbx", name),
        LIMIT: ("floor", f"{name}_update"),
    }
    if mbrl:
        programs["mbrl-lib"] = ("peers", "mbrl_update")
    return Measure(title, programs, multiple=20)


def _against_mbrl(measure: str, title: str, ways: Ways, has_floor: bool = True) -> Measure:
    programs = {**_ours(measure, ways), "mbrl-lib": ("peers", f"mbrl_{measure}")}
    if has_floor:
        programs[LIMIT] = ("floor", measure)
    return Measure(title, programs)


def _ours(measure: str, ways: Ways, *arguments: str) -> dict[str, tuple[str, ...]]:
    return {", ".join((OURS, *way)): ("ours", measure, *arguments, *way) for way in ways}


MEASURES = {
    "sac_update": _update(
        "sac", "SAC update, batch 256, two layers of 256, observation 11, action 3", mbrl=True
    ),
    "td3_update": _update("td3", "TD3 update, same sizes"),
    "ddpg_update": _update("ddpg", "DDPG update, same sizes"),
    "dqn_update": _update("dqn", "DQN update, observation 4, 2 actions"),
    "layer_norm": Measure(
        "SAC update of the same sizes, with layer normalization in the critics as by default, and without",
        _ours("sac_update", ((), ("layer norm",), ("compiled",), ("compiled", "layer norm"))),
        multiple=20,
    ),
    **{
        f"unrolled_update_{steps}": Measure(
            f"SAC update through {steps} steps in the model, batch 256, three layers of 256 each, 8 members, "
            "5 critics",
            {
                **_ours("unrolled_update", ALL_WAYS, str(steps)),
                LIMIT: ("floor", "unrolled_update", str(steps)),
            },
        )
        for steps in (5, 9)
    },
    "fit_step": _against_mbrl(
        "fit_step", "ensemble fit step: 7 networks of 4 layers of 200, batch 256 each", ALL_WAYS
    ),
    "fit_epoch": _against_mbrl(
        "fit_epoch", "epoch of the ensemble fit: 40,000 transitions, 10,000 in the hold-out set", ALL_WAYS
    ),
    "rollouts": _against_mbrl("rollouts", "100,000 rollouts of one step: policy, model, storing", PLAIN),
    "replay_insert": _against_mbrl("replay_insert", "storing one transition", AS_IT_IS, has_floor=False),
    "replay_sample": Measure(
        "sampling 256 transitions",
        {
            f"{name} from {num_stored:,}": (module, measure, str(num_stored))
            for num_stored in (10_000, 1_000_000)
            for name, module, measure in (
                (OURS, "ours", "replay_sample"),
                ("mbrl-lib", "peers", "mbrl_replay_sample"),
            )
        },
    ),
    "env_step": Measure(
        "environment step of the default run, including fits and rollouts (not compiled by default)",
        {**_ours("env_step", ALL_WAYS), LIMIT: ("floor", "env_step")},
        multiple=25,  # steps from one fit to the next
    ),
}
INTRODUCTION = """\
# Benchmarks

Written by `make bench`, `make bench-peers` and `make bench-jobs` (`benchmarks/`). Times are medians over
rounds in which all programs take turns; whole jobs, at the end, are run once each. Ratios carry over to
other machines, absolute times do not. Sampling of mini-batches is included.

"Times our best" is the time divided by that of our fastest variant in the same precision: above 1 we are
faster. "Fraction of the limit" is the time of torch's matrix products alone, in their faster layout and
measured in the same rounds, divided by the time; a program with other kernels can exceed 100 %. Everything
is computed in float32, by the other programs too, except what is marked bfloat16 (`precision=bfloat16`),
which rounds the products between hidden layers; the other programs have no such option.
"""


class Worker:
    """A program in its own process; call `ready` first."""

    def __init__(self, arguments: tuple[str, ...], python: Path | str, threads: int, multiple: int) -> None:
        variables = {
            **os.environ,
            "BENCH_MULTIPLE": str(multiple),
            "BENCH_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONWARNINGS": "ignore",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false" if threads == 1 else "",
        }
        command = [str(python), "-m", "benchmarks.worker", *arguments]
        # One core for one thread: JAX cannot be limited otherwise.
        pinned = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if threads == 1 else []
        self.process = subprocess.Popen(
            pinned + command,
            cwd=ROOT,
            env=variables,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ready(self) -> str | None:
        """Wait until the program is ready; return None, or its error."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        for line in self.process.stdout:
            if line.strip() == "ready":
                return None
        return (self.process.stderr.read().strip().splitlines() or ["no error message"])[-1]

    def time(self, count: int) -> float:
        """Return the seconds of `count` units of work."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        """Stop the process."""
        self.process.communicate()


def measured(measure: Measure, rounds: int, threads: int, peers: Path) -> dict[str, Any]:
    """Return the seconds per unit of each program, or its error."""
    results: dict[str, Any] = {}
    workers: dict[str, Worker] = {}
    for name, arguments in measure.programs.items():
        if arguments[0] == "peers" and not peers.exists():
            continue
        python = peers if arguments[0] == "peers" else sys.executable
        workers[name] = Worker(arguments, python, threads, measure.multiple)
        reason = workers[name].ready()
        if reason is not None:
            results[name] = {"failed": reason}
            workers.pop(name).stop()
    counts = {}
    for name, worker in workers.items():
        trial = measure.multiple
        while (seconds := worker.time(trial)) < SECONDS_PER_ROUND / 4:
            trial *= 4
        counts[name] = (
            max(round(SECONDS_PER_ROUND / seconds * trial / measure.multiple), 1) * measure.multiple
        )
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            times[name].append(worker.time(counts[name]) / counts[name])
    for name, worker in workers.items():
        worker.stop()
        results[name] = {"seconds": statistics.median(times[name]), "best": min(times[name])}
    return results


def machine() -> dict[str, str]:
    """Return the hardware and versions that times depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def shown(seconds: float) -> str:
    """Return a time with three digits and a suitable unit."""
    units = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
    unit, factor = next((unit for unit in units if seconds * unit[1] >= 1), units[-1])
    return f"{seconds * factor:.3g} {unit}"


def table(results: dict[str, Any]) -> list[str]:
    """Return the table of one measure, fastest program first."""
    best = {"float32": math.inf, "bfloat16": math.inf}
    for name, result in results.items():
        if name.startswith(OURS) and "seconds" in result:
            best[_precision(name)] = min(best[_precision(name)], result["seconds"])
    limit = results.get(LIMIT, {}).get("seconds")
    rows = [
        "| | time | times our best in float32 | in bfloat16 | fraction of the limit |",
        "|---|---|---|---|---|",
    ]
    for name, result in sorted(results.items(), key=lambda item: item[1].get("seconds", 1e9)):
        if "failed" in result:
            rows.append(f"| {name} | does not run: {result['failed']} | | | |")
            continue
        seconds = result["seconds"]
        factors = [f"{seconds / own:.2f}" if own < math.inf else "" for own in best.values()]
        fraction = f"{limit / seconds:.0%}" if limit and _precision(name) == "float32" else ""
        rows.append(f"| {name} | {shown(seconds)} | {' | '.join(factors)} | {fraction} |")
    return rows


def _precision(name: str) -> str:
    return "bfloat16" if name.endswith("bfloat16") else "float32"


JOBS = """\
From the start of the process to its end, with one thread each. Another process was busy on the second core;
during each long cart-pole job, it was another one of these. Memory is that of the process or of a compiler
that it called. "Three times in a row" gives the first of the three evaluations."""


def page(data: dict[str, Any]) -> str:
    """Return the page of the stored figures."""
    lines = [INTRODUCTION]
    jobs = {key: entry for key, entry in data.items() if key.startswith("job ")}
    measures = {key: entry for key, entry in data.items() if key not in jobs}
    for key, entry in sorted(measures.items(), key=lambda item: _place(item[0])):
        name, _, threads = key.partition(" ")
        where = ", ".join(f"{what} {value}" for what, value in sorted(entry["machine"].items()))
        lines += [f"## {MEASURES[name].title}", "", f"{threads}; {where}", "", *table(entry["results"]), ""]
    if jobs:
        lines += ["## Whole jobs", "", JOBS, "", *job_table(jobs), ""]
    return "\n".join(lines)


def job_table(jobs: dict[str, Any]) -> list[str]:
    """Return the table of jobs."""
    rows = [
        "| | wall time | processor time | peak memory | target | first reached | three times in a row |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in jobs.values():
        result = entry["results"]
        if "failed" in result:
            rows.append(f"| {entry['title']} | does not run: {result['failed']} | | | | | |")
            continue
        cells = (
            entry["title"],
            shown(result["wall_seconds"]),
            shown(result["cpu_seconds"]),
            f"{result['peak_megabytes']:.0f} MB",
            str(result.get("target", "")),
            _reached(result, "first"),
            _reached(result, "target"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _reached(result: dict[str, Any], what: str) -> str:
    """Return when a target was reached, or an empty string for jobs without one."""
    if f"steps_to_{what}" not in result:
        return ""
    steps, seconds = result[f"steps_to_{what}"], result[f"seconds_to_{what}"]
    return "never" if steps is None else f"{steps:,} steps, {seconds:.0f} s"


def store(data: dict[str, Any]) -> None:
    """Write all figures and the page."""
    ordered = dict(sorted(data.items(), key=lambda item: _place(item[0])))
    DATA.write_text(json.dumps(ordered, indent=1) + "\n")
    PAGE.write_text(page(ordered))


def _place(key: str) -> tuple[int, str]:
    name = key.partition(" ")[0]
    return list(MEASURES).index(name) if name in MEASURES else len(MEASURES), key  # jobs last


def main() -> None:
    """Run the chosen measures and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), metavar="MEASURE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python with the other libraries")
    parser.add_argument("--dry", action="store_true", help="only write the page from the stored figures")
    arguments = parser.parse_args()
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    for name in [] if arguments.dry else arguments.only:
        results = measured(MEASURES[name], arguments.rounds, arguments.threads, arguments.peers)
        key = f"{name} {arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
        data[key] = {"machine": machine(), "results": results}
        print(f"\n{MEASURES[name].title}", *table(results), sep="\n", flush=True)
        store(data)
    store(data)


if __name__ == "__main__":
    main()
