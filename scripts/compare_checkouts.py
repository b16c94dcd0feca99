"""Compare two checkouts of this program: the same short runs must log the same numbers, to the last bit.

For a change that should not alter behaviour. Each checkout runs in its own `.venv` (`make install`), on a
small configuration of every agent with and without the model, the page's example, and a preset of the paper.

    python scripts/compare_checkouts.py ../before .
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHORT = (
    "agent.num_warm_start_steps=60",
    "trainer.num_env_steps=140",
    "trainer.evaluate_every_steps=70",
    "trainer.log_every_steps=10",
    "trainer.num_eval_episodes=2",
    "agent.hidden_sizes=[32,32]",
)
TASKS = {
    "sac": ("agent=sac", "env=pendulum"),
    "td3": ("agent=td3", "env=pendulum"),
    "ddpg": ("agent=ddpg", "env=pendulum"),
    "dqn": ("agent=dqn", "env=cartpole"),
    "sac_discrete": ("agent=sac", "env=cartpole"),
}
RUNS = {
    **{name: (*task, *SHORT, "mbpo.generate_every=20") for name, task in TASKS.items()},
    **{f"{name}_alone": (*task, *SHORT, "mbpo=off") for name, task in TASKS.items()},
    "sac_bfloat16_threads": (*TASKS["sac"], *SHORT, "precision=bfloat16", "threads=2", "seed=5"),
    "matlab_cartpole": ("experiment=matlab_cartpole", *SHORT[:-1]),
    "paper_inverted_pendulum": (
        "experiment=paper/inverted_pendulum",
        *SHORT[:-1],
        "mbpo.generate_every=40",
        "model.training.num_mini_batches=10",
    ),
}


def metrics(checkout: Path, name: str, folder: Path) -> list[dict[str, float]]:
    """Run one configuration in a checkout; return what it logged, without times."""
    path = folder / name
    command = [str(checkout / ".venv/bin/mbpo-train"), *RUNS[name], f"hydra.run.dir={path}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ)
    if done.returncode != 0:
        sys.exit(f"{checkout}: {name} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in rows]


def main() -> None:
    """Print a line for each run; exit with 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    arguments = parser.parse_args()
    num_different = 0
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as before, tempfile.TemporaryDirectory() as after:
            old = metrics(arguments.before.absolute(), name, Path(before))
            new = metrics(arguments.after.absolute(), name, Path(after))
        num_different += old != new
        print(
            f"{name:<24} {'equal' if old == new else 'DIFFERENT'}, {sum(map(len, old))} numbers", flush=True
        )
    sys.exit(num_different > 0)


if __name__ == "__main__":
    main()
