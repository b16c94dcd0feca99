"""What a first run says at its end, and what the commands that it names say: one word for one number."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mbpo_cli
from mbpo_cli.commands import evaluate, export, model, report
from mbpo_cli.trained.summary import closing_table
from tests.conftest import TINY, gym_env

BRIEF = (*TINY, "mbpo.generate_every=5", "seed=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("first results") / "run"
    config = mbpo_cli.make_config(*BRIEF, "trainer.num_env_steps=40", *gym_env("tests/Channels-v0"))
    mbpo_cli.train(config, path)
    return path


def rows_of(run: Path) -> dict[str, str]:
    """Return the closing table of a run by the names of its rows."""
    table = closing_table(json.loads((run / "summary.json").read_text()), run, ["tests"])
    return dict(re.findall(r"^  (\w+(?: \w+)*)  +(.*)$", table, re.MULTILINE))


def test_a_run_ends_with_what_its_numbers_are(run: Path) -> None:
    rows, metrics = rows_of(run), (run / "metrics.jsonl").read_text().splitlines()
    curve = {
        row["step"]: row["eval/return_mean"] for row in map(json.loads, metrics) if "eval/return_mean" in row
    }
    best = max(curve, key=lambda step: curve[step])
    assert rows["best evaluation"] == f"{curve[best]:.1f} at step {best}"
    last = [curve[step] for step in (20, 30, 40)]
    assert rows["score"] == f"{sum(last) / 3:.1f}, the mean of the evaluations at steps 20, 30, 40"
    assert rows["last evaluation"].startswith(f"{curve[40]:.1f} ± ")


def test_a_run_that_is_interrupted_says_how_to_resume_it(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert "resume" not in rows_of(run)
    table = closing_table({**summary, "status": "interrupted"}, run)
    assert re.search(rf"^  resume +mbpo-train 'resume={re.escape(str(run))}'$", table, re.MULTILINE)
    assert "--trust" not in table


def test_a_run_ends_with_commands_that_work(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = rows_of(run)
    assert rows["TensorBoard"] == f"tensorboard --logdir '{run}'"
    assert rows["evaluate policy"] == f"mbpo-evaluate '{run}' --trust tests"
    assert rows["model errors"] == f"mbpo-model '{run}' --trust tests"
    assert rows["compare runs"] == f"mbpo-report '{run.parent}'"
    monkeypatch.chdir(tmp_path)
    evaluate.main([str(run), "--trust", "tests", "--episodes", "2"])
    score = json.loads((run / "summary.json").read_text())["score"]
    report.main([str(run.parent)])
    printed = capsys.readouterr().out
    found = re.search(r", seed \d+: done, score (\S+)\n", printed)
    assert found, printed
    assert float(found[1]) == pytest.approx(score, abs=0.006)
    assert "sac on tests/Channels-v0, newest checkpoint" in printed
    assert f"written to {Path('report') / 'index.html'}" in printed


def test_a_file_that_is_replaced_is_announced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, arguments, name in (
        (evaluate, ["--episodes", "1"], "evaluation.json"),
        (model, ["--episodes", "1", "--horizon", "3"], "model.png"),
        (export, ["--output", str(run / "exported.pt2")], "exported.pt2"),
    ):
        (run / name).unlink(missing_ok=True)
        said = []
        for _ in range(2):
            command.main([str(run), "--trust", "tests", *arguments])
            said.append(capsys.readouterr().out.splitlines()[-1])
        assert said == [f"written to {run / name}", f"written to {run / name}, in place of an earlier one"]


def test_the_model_is_described_in_the_environments_terms(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.main([str(run), "--trust", "tests", "--episodes", "2", "--horizon", "6"])
    printed = capsys.readouterr().out
    assert re.search(r"^  element 9 of 'a'  [\d.e-]+$", printed, re.MULTILINE)
    assert re.search(r"^  element 3 of 'b'  [\d.e-]+$", printed, re.MULTILINE)
    assert re.search(r"predicted: \d+% in the 50% intervals, \d+% in the 80% intervals", printed)
    assert re.search(r" after 5, [\d.]+ after 6$", printed, re.MULTILINE)


def test_actions_of_the_worst_predictions_are_the_environments_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mbpo_cli.train(mbpo_cli.make_config(*BRIEF, "env=cartpole"), tmp_path / "run")
    model.main([str(tmp_path / "run"), "--episodes", "1"])
    found = json.loads((tmp_path / "run" / "model.json").read_text())
    assert {tuple(worst["action"]) for worst in found["worst"]} <= {(0,), (1,)}
    assert found["elements"] == ["element 0", "element 1", "element 2", "element 3"]


def test_the_help_can_be_pasted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mbpo_cli", "--help", "env.kwargs={g: 5}"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    values = {line.split()[0]: line.rpartition(": ")[2] for line in printed.splitlines() if ": " in line}
    assert "None" not in values.values()
    assert re.search(r"^ *env\.kwargs .*: \{g: 5\}$", printed, re.MULTILINE)
    shown = re.findall(r"^  +(mbpo-train [^#\n]+?)(?:  +\w.*)?$", printed, re.MULTILINE)
    assert len(shown) >= 7
    for line in shown:
        assert subprocess.run(["bash", "-nc", line], capture_output=True).returncode == 0, line
