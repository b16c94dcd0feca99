"""Times one measure of one contestant: `python -m benchmarks.worker MODULE MEASURE [ARGUMENT]`.

Prints "ready", then for each count read from standard input the seconds that so many units of work took.
Runs in any environment that has the contestant; knows nothing of the others.
"""

from __future__ import annotations

import importlib
import os
import sys
import time

import torch


def main() -> None:
    """Serve one measure until standard input ends."""
    module, measure, *arguments = sys.argv[1:]
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    work = importlib.import_module(f"benchmarks.{module}").MEASURES[measure](*arguments)
    work(int(os.environ["BENCH_MULTIPLE"]))  # compiles what the timed work needs, no more
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        work(int(line))
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
