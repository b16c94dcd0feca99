"""The GPU check passes on a CPU with tiny sizes, keeps its results, and keeps to its time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_parts
from scripts.gpu_check import PARTS, ROOT

SLOW = ("compiled_updates", "sweep", "used", "resumed")


def check(folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    command = [sys.executable, "-m", "scripts.gpu_check", "--folder", str(folder)]
    command += ["--device", "cpu", "--tiny", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    "name",
    [pytest.param(part.name, marks=[pytest.mark.slow] * (part.name in SLOW)) for part in PARTS],
)
def test_every_part_passes_on_a_cpu(name: str, tmp_path: Path) -> None:
    found = getattr(gpu_parts, name)("cpu", tmp_path, True)
    assert found
    json.dumps(found)


def test_what_has_passed_is_kept_and_the_time_limit_holds(tmp_path: Path) -> None:
    code, _, results = check(tmp_path, "--parts", "equal")
    assert (code, results["equal"]["status"]) == (1, "passed")
    code, printed, again = check(tmp_path, "--minutes", "0")
    assert code == 1
    assert again["equal"] == results["equal"]
    assert [again[part.name]["status"] for part in PARTS if part.name != "equal"] == ["not started"] * 6
    assert "sac: updates: 0" in printed
    assert (tmp_path / "results.txt").read_text() in printed


def test_a_part_that_is_out_of_time_or_fails_is_reported(tmp_path: Path) -> None:
    _, _, results = check(tmp_path, "--parts", "sweep", "--minutes", "0.05")
    assert results["sweep"]["status"] == "out of time"
    _, printed, results = check(tmp_path, "--parts", "agents", "--device", "nowhere")
    assert results["agents"]["status"] == "failed"
    assert "device=nowhere: must be auto, cpu, cuda or cuda:i" in results["agents"]["error"]
    assert "device=nowhere" in printed


def test_a_difference_beyond_rounding_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_parts, "_relative", lambda ours, theirs: 0.1)
    with pytest.raises(AssertionError, match="beyond rounding"):
        gpu_parts.equal("cpu", tmp_path, True)
