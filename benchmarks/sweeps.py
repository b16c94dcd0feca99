"""Run one sweep with several launchers, and compare scores and times.

    python -m benchmarks.sweeps [--launchers basic joblib processes] [--steps 500] [--folder DIR]

The sweep is SAC and TD3, with and without the model, five seeds each, on Pendulum. Ray listens on all
network interfaces: run it inside a network namespace, as `tests/cluster/test_cluster.py` does. Slurm needs
a cluster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAUNCHERS = ("basic", "joblib", "processes", "ray", "slurm")


def sweep(launcher: str, folder: Path, num_env_steps: int) -> tuple[float, dict[str, float]]:
    """Run the sweep in a folder; return its wall time in seconds and the score of each job."""
    command = [
        *(sys.executable, "-m", "mbpo_cli", "-m", "agent=sac,td3", "env=pendulum", "mbpo=on,off"),
        *("seed=range(0,5)", f"trainer.num_env_steps={num_env_steps}", f"hydra/launcher={launcher}"),
        f"hydra.sweep.dir='{folder}'",
    ]
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    summaries = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/summary.json")}
    return seconds, {name: summary["score"] for name, summary in sorted(summaries.items())}


def main() -> None:
    """Run the sweep with each launcher, and print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=["basic", "joblib", "processes"])
    parser.add_argument("--steps", type=int, default=500, help="environment steps of each job")
    parser.add_argument("--folder", type=Path, help="keep the runs here; by default they are deleted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        results = {}
        for launcher in options.launchers:
            results[launcher] = sweep(launcher, folder / launcher, options.steps)
            print(
                f"{launcher:<10} {len(results[launcher][1])} jobs in {results[launcher][0]:.0f} s", flush=True
            )
    first, expected = next(iter(results.items()))
    for launcher, (seconds, scores) in results.items():
        same = "same scores" if scores == expected[1] else "DIFFERENT SCORES"
        print(f"{launcher:<10} {expected[0] / seconds:.2f} times as fast as {first}; {same}")


if __name__ == "__main__":
    main()
