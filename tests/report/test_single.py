"""The report on a single run says how it went, and does not compare it with nothing."""

from __future__ import annotations

import fcntl
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mbpo_cli.commands.report import report
from mbpo_cli.config.compose import make_config
from mbpo_cli.report.single import EPISODES, FINDINGS, GRADIENT_STEPS, PHASES
from mbpo_cli.run import run
from mbpo_cli.trainer import PHASES as PHASES_OF_THE_TRAINER
from tests.conftest import EXAMINED, gym_env, metrics_of
from tests.report.test_report import HOSTILE, records, write_run

METRICS = (
    {"step": 100, "eval/return_std": 2.0, "diagnose/one_step_error": 0.5, "diagnose/q_bias": 40.0},
    {"step": 200, "eval/return_std": 0.25, "diagnose/one_step_error": 0.0625, "diagnose/q_bias": -3.0},
    {"step": 200, "train/episodes": 7.0, "train/gradient_steps": 12_345.0},
    {"step": 200, "time/env_seconds": 1.0, "time/update_seconds": 200.0, "time/fit_seconds": 30.0},
)
REST = "".join(json.dumps(row) + "\n" for row in METRICS)


def reported(run: Path, output: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[str, str]:
    """Return what a report on a run prints, and its page as text without tags."""
    report([run], output, **options)
    page = (output / "index.html").read_text()
    return capsys.readouterr().out, re.sub(
        r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.S)
    )


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(
        tmp_path / "run",
        (-10.0, 4.0),
        rest=REST,
        summary={"score": 3.5, "command": "mbpo-train env=pendulum", "versions": {"torch": "2"}},
        trainer__num_env_steps=500,
        agent__discount_factor=0.875,
    )
    (path / "policy.pt").touch()
    printed, page = reported(path, tmp_path / "out", capsys, threshold=2.0)
    assert printed.startswith("sac on pendulum, seed 0: done, score 3.50\n")
    for text in (printed, page):
        for fact in (
            "Last evaluation: 4.00 ± 0.25 at step 200; best: 4.00 at step 200.",
            "A return of 2.00 (--threshold): first reached at step 200.",
            "200 of 500 in 7 episodes",
            "12,345",
            "update 3 min, fit 30 s, env 1 s",
            "60 s",
            "mbpo-train env=pendulum",
            "torch 2",
        ):
            assert fact in text
        assert "IQM" not in text
        assert "compare with" not in text
    assert "model: error of one step, in std of the change 0.5 0.0625 well below 1, falling" in page
    assert "Q-values minus discounted returns 40 -3 near 0" in page
    assert "agent.discount_factor 0.875" in page
    assert f"mbpo-evaluate {path}" in page
    assert "resume=" not in page
    sources = re.findall(r'href="([^"]+)"', (tmp_path / "out" / "index.html").read_text())
    names = ("train.log", "config.yaml", "metrics.jsonl", "summary.json", "policy.pt")
    assert sources == [*(f"../run/{name}" for name in names), "../run"]
    assert (tmp_path / "out" / "pendulum.png").read_bytes().startswith(b"\x89PNG")
    (row,) = records(tmp_path / "out")
    assert (row["return_mean"], row["steps_to_threshold"], row["wall_seconds"]) == ("3.5", "200.0", "60.0")


def test_a_failed_run_says_why_and_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "my run", (), status="failed", summary={"error": "Diverged: Q is 1e9"})
    printed, page = reported(path, tmp_path / "out", capsys)
    assert printed.startswith("sac on pendulum, seed 0: failed\nIt has not been evaluated yet.\n")
    assert re.search(r"error +Diverged: Q is 1e9", printed)
    assert "Diverged: Q is 1e9" in page
    assert f"mbpo-train &#39;resume={path}&#39;" in page
    assert "mbpo-evaluate" not in page


def test_a_run_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run", (-10.0, 4.0), status=None, env__id="CartPole-v1")
    with (path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        printed, page = reported(path, tmp_path / "out", capsys)
    assert printed.startswith("sac on pendulum, seed 0: running, score 4.00 so far\n")
    assert "A return of 475 (Gymnasium's reward threshold): not reached." in printed
    assert "resume=" not in page


def test_hostile_files_of_a_single_run_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {
        "stopped_because": HOSTILE,
        "command": [HOSTILE],
        "versions": {HOSTILE: HOSTILE},
        "git_commit": 5,
    }
    names: dict[str, Any] = {"agent__name": HOSTILE, "env__name": HOSTILE, "trainer": "x"}
    lines = (
        '{"step": 1%s, "train/episodes": 1}' % ("0" * 400),
        '{"step": 3, "train/episodes": "x", "time/env_seconds": NaN, "diagnose/q_bias": 1e308}',
        '["train/episodes"]',
    )
    rest = REST + "".join(line + "\n" for line in lines)
    path = write_run(tmp_path / "<b>run", (1.0, 2.0), summary=summary, rest=rest, **names)
    printed, _ = reported(path, tmp_path / "out", capsys)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "\x1b" not in page + printed
    assert "200 in 7 episodes" in page


def test_what_is_looked_for_is_what_runs_log(tmp_path: Path) -> None:
    choices = ("model/transition=gaussian", "model/reward=deterministic", "model/is_done=learned")
    limits = ("trainer.num_env_steps=40", "mbpo.generate_every=10", "mbpo.max_relative_error=1e9")
    run(make_config(*EXAMINED, *gym_env("tests/PointMass-v0"), *choices, *limits), tmp_path / "run")
    rows = metrics_of(tmp_path / "run")
    logged = {tag for row in rows for tag in row}
    # This environment has no ends to predict.
    assert {tag for tag in FINDINGS if "is_done" not in tag} <= logged
    assert {EPISODES, GRADIENT_STEPS, *(f"time/{phase}_seconds" for phase in PHASES)} <= logged
    assert PHASES == PHASES_OF_THE_TRAINER
