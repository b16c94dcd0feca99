"""Time one measure of one program: `python -m benchmarks.worker MODULE MEASURE [ARGUMENT]`.

Prints "ready", then reads numbers of work units from standard input and prints the seconds each took. Runs in
the environment of the program that it measures.
"""

from __future__ import annotations

import importlib
import os
import sys
import time

import torch


def main() -> None:
    """Time one measure until standard input ends."""
    module, measure, *arguments = sys.argv[1:]
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    work = importlib.import_module(f"benchmarks.{module}").MEASURES[measure](*arguments)
    work(int(os.environ["BENCH_MULTIPLE"]))  # compiles exactly what the timed work needs
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        work(int(line))
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
