"""Check and measure the program on a GPU, in parts that are written down as they end, within eight minutes.

    python -m scripts.gpu_check                    # every part on cuda; results in outputs/gpu_check/
    python -m scripts.gpu_check --parts times      # one part again
    python -m scripts.gpu_check --device cpu --tiny

Each part is a process of its own with a time limit, so that a part that hangs or crashes does not affect the
others. A part that has passed is not repeated unless it is named. The parts are in `scripts/gpu_parts.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: The function of `scripts/gpu_parts.py` that does it.
        seconds: Its time limit.
        text: What it shows.
    """

    name: str
    seconds: float
    text: str


# The most important first: if time runs out, the last ones are missing.
PARTS = (
    Part("agents", 90, "every agent trains 200 steps with the model, not compiled"),
    Part("equal", 40, "updates, fits and rollouts equal the CPU's, from equal states"),
    Part("compiled_updates", 120, "compiled updates equal plain ones; none waits or gathers memory"),
    Part("resumed", 60, "a run that is killed and resumed logs the numbers of one that is not"),
    Part("times", 120, "times of updates, fits, rollouts and real steps, beside their matrix products"),
    Part("sweep", 60, "four jobs of a sweep share the GPU"),
    Part("used", 40, "what was trained on the GPU is evaluated, exported and resumed on a CPU"),
)


def main() -> int:
    """Run the parts; return 1 if one has not passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this program")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], default=[])
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="no part starts or goes on after this time"
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--in-this-process", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.in_this_process:
        from scripts import gpu_parts

        found = getattr(gpu_parts, arguments.in_this_process)(arguments.device, folder, arguments.tiny)
        (folder / f"{arguments.in_this_process}.json").write_text(json.dumps(found))
        return 0
    return check(arguments, folder)


def check(arguments: argparse.Namespace, folder: Path) -> int:
    """Run the parts that are asked for or have not passed yet, and write the results after each."""
    path = folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    deadline = time.monotonic() + 60 * arguments.minutes
    for part in PARTS:
        passed = results.get(part.name, {}).get("status") == "passed"
        if part.name in arguments.parts or not (arguments.parts or passed):
            seconds = min(part.seconds, deadline - time.monotonic())
            results[part.name] = run_part(part, seconds, arguments, folder)
            path.write_text(json.dumps(results, indent=1))
            print(row(part, results[part.name]), flush=True)
    print("\n" + table(results))
    (folder / "results.txt").write_text(table(results) + "\n")
    return int(any(results.get(part.name, {}).get("status") != "passed" for part in PARTS))


def run_part(part: Part, seconds: float, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a part as a process, which is killed with its children at the time limit; return its result."""
    if seconds <= 1:
        return {"status": "not started"}
    command = [sys.executable, "-m", "scripts.gpu_check", "--in-this-process", part.name]
    command += ["--device", arguments.device, "--folder", str(folder), *["--tiny"] * arguments.tiny]
    (folder / f"{part.name}.json").unlink(missing_ok=True)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.monotonic()
    with (folder / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    result: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1)}
    if code == 0:
        return result | {"status": "passed", "found": json.loads((folder / f"{part.name}.json").read_text())}
    lines = (folder / f"{part.name}.log").read_text().strip().splitlines() or [""]
    return result | {"status": "out of time" if code is None else "failed", "error": lines[-1][:300]}


def row(part: Part, result: dict[str, Any]) -> str:
    """Return a part and its result as a line."""
    seconds = f"{result.get('seconds', 0.0):6.1f} s"
    return (
        f"{part.name:<16} {result['status']:<12} {seconds}  {part.text}  {result.get('error', '')}".rstrip()
    )


def table(results: dict[str, Any]) -> str:
    """Return all results as text."""
    lines = []
    for part in PARTS:
        result = results.get(part.name, {"status": "not started"})
        lines.append(row(part, result))
        for key, value in result.get("found", {}).items():
            lines.append(f"    {key}: {f'{value:.4g}' if isinstance(value, float) else value}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
