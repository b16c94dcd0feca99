"""Measure this package, its peers and the machine's limit in turn, and write table, JSON and page.

    python -m benchmarks.compare [--only sac_update ...] [--rounds 9] [--threads 1] [--peers PYTHON]

Each contestant is a process of its own. In every round each does the same work once, one after the other, so
that whatever else the machine does hits all alike; medians are over rounds. A contestant that cannot run is
listed with its reason. Writes `docs/benchmarks.json`, where measures that were not asked for stay, and
`docs/benchmarks.md` from it.
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
    """What is timed.

    Attributes:
        title: What one unit of work is.
        contestants: Worker arguments by contestant.
        multiple: Work is done in multiples of this.
    """

    title: str
    contestants: Mapping[str, tuple[str, ...]]
    multiple: int = 1


def _update(name: str, title: str, *, mbrl: bool = False) -> Measure:
    contestants = {
        **_ours(f"{name}_update", ALL_WAYS),
        "stable-baselines3": ("peers", "stable_baselines3", name),
        "sbx": ("peers", "sbx", name),
        LIMIT: ("floor", f"{name}_update"),
    }
    if mbrl:
        contestants["mbrl-lib"] = ("peers", "mbrl_update")
    return Measure(title, contestants, multiple=20)


def _against_mbrl(measure: str, title: str, ways: Ways, has_floor: bool = True) -> Measure:
    contestants = {**_ours(measure, ways), "mbrl-lib": ("peers", f"mbrl_{measure}")}
    if has_floor:
        contestants[LIMIT] = ("floor", measure)
    return Measure(title, contestants)


def _ours(measure: str, ways: Ways) -> dict[str, tuple[str, ...]]:
    return {", ".join((OURS, *way)): ("ours", measure, *way) for way in ways}


MEASURES = {
    "sac_update": _update(
        "sac", "SAC update, batch 256, two layers of 256, observation 11, action 3", mbrl=True
    ),
    "td3_update": _update("td3", "TD3 update, same sizes"),
    "ddpg_update": _update("ddpg", "DDPG update, same sizes"),
    "dqn_update": _update("dqn", "DQN update, observation 4, 2 actions"),
    "fit_step": _against_mbrl(
        "fit_step", "ensemble fit step: 7 networks of 4 layers of 200, batch 256 each", ALL_WAYS
    ),
    "fit_epoch": _against_mbrl(
        "fit_epoch", "epoch of that fit: 40,000 transitions, 10,000 held out", ALL_WAYS
    ),
    "rollouts": _against_mbrl("rollouts", "100,000 rollouts of one step: policy, model, storing", PLAIN),
    "replay_insert": _against_mbrl("replay_insert", "storing one transition", AS_IT_IS, has_floor=False),
    "replay_sample": Measure(
        "drawing 256 transitions",
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
        "environment step of the default run, fits and rollouts included (auto does not compile it)",
        {**_ours("env_step", ALL_WAYS), LIMIT: ("floor", "env_step")},
        multiple=25,  # steps from one fit to the next
    ),
}
INTRODUCTION = """\
# Benchmarks

Written by `make bench`, `make bench-peers` and `make bench-jobs` (`benchmarks/`). Medians over rounds in
which all contestants take turns (whole jobs, at the end, are run once each); ratios hold, absolute figures
are those of the machine named below. Sampling of mini-batches is included. "Of the limit" compares with
torch's matrix products alone, the quicker way round and measured in the same rounds; a program that has other
kernels can be quicker. All is computed in float32, the peers too, but for what is named bfloat16
(`precision=bfloat16`), which rounds the products between hidden layers; peers have no such option.
"""


class Worker:
    """A contestant at work in its own process."""

    def __init__(self, arguments: tuple[str, ...], python: Path | str, threads: int, multiple: int) -> None:
        """Start it; `ready` waits for it."""
        variables = {
            **os.environ,
            "BENCH_MULTIPLE": str(multiple),
            "BENCH_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONWARNINGS": "ignore",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false" if threads == 1 else "",
        }
        command = [str(python), "-m", "benchmarks.worker", *arguments]
        # One core for one thread: JAX knows no other way to be held to it.
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
        """Wait until it can work; return None, or why it cannot."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        for line in self.process.stdout:
            if line.strip() == "ready":
                return None
        return (self.process.stderr.read().strip().splitlines() or ["no reason given"])[-1]

    def time(self, count: int) -> float:
        """Return the seconds that `count` units take."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        """Let it end."""
        self.process.communicate()


def measured(measure: Measure, rounds: int, threads: int, peers: Path) -> dict[str, Any]:
    """Return the seconds per unit of every contestant, or why there are none."""
    results: dict[str, Any] = {}
    workers: dict[str, Worker] = {}
    for name, arguments in measure.contestants.items():
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
    """Return what the figures depend on."""
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
    """Return a time with three digits and a unit that suits it."""
    units = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
    unit, factor = next((unit for unit in units if seconds * unit[1] >= 1), units[-1])
    return f"{seconds * factor:.3g} {unit}"


def table(results: dict[str, Any]) -> list[str]:
    """Return one measure's rows, fastest first."""
    best = {"float32": math.inf, "bfloat16": math.inf}
    for name, result in results.items():
        if name.startswith(OURS) and "seconds" in result:
            best[_precision(name)] = min(best[_precision(name)], result["seconds"])
    limit = results.get(LIMIT, {}).get("seconds")
    rows = [
        "| | time | our best is faster by: in float32 | in bfloat16 | of the limit |",
        "|---|---|---|---|---|",
    ]
    for name, result in sorted(results.items(), key=lambda item: item[1].get("seconds", 1e9)):
        if "failed" in result:
            rows.append(f"| {name} | does not run: {result['failed']} | | | |")
            continue
        seconds = result["seconds"]
        factors = [f"{seconds / own:.2f}" if own < math.inf else "" for own in best.values()]
        share = f"{limit / seconds:.0%}" if limit and _precision(name) == "float32" else ""
        rows.append(f"| {name} | {shown(seconds)} | {' | '.join(factors)} | {share} |")
    return rows


def _precision(name: str) -> str:
    return "bfloat16" if name.endswith("bfloat16") else "float32"


JOBS = """\
From the start of the process to its end, 1 thread each; another process was at work on the second core, for
each of the long cart-pole jobs another one. Memory is that of the process, or of a compiler which it
called. Three times in a row: the first of the three evaluations counts."""


def page(data: dict[str, Any]) -> str:
    """Return the page that shows the stored figures."""
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
    """Return a row for each job, from the start of its process to its end."""
    rows = [
        "| | wall | processor | peak memory | target | first reached after | three times in a row |",
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
    """Return when a target was reached; nothing where it was not looked for."""
    if f"steps_to_{what}" not in result:
        return ""
    steps, seconds = result[f"steps_to_{what}"], result[f"seconds_to_{what}"]
    return "never" if steps is None else f"{steps:,} steps, {seconds:.0f} s"


def store(data: dict[str, Any]) -> None:
    """Write all figures down, in the order of the page."""
    ordered = dict(sorted(data.items(), key=lambda item: _place(item[0])))
    DATA.write_text(json.dumps(ordered, indent=1) + "\n")
    PAGE.write_text(page(ordered))


def _place(key: str) -> tuple[int, str]:
    name = key.partition(" ")[0]
    return list(MEASURES).index(name) if name in MEASURES else len(MEASURES), key  # jobs come last


def main() -> None:
    """Measure what was asked for and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), metavar="MEASURE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the peers' environment")
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
