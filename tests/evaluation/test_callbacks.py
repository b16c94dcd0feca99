"""Callbacks see what happens in a run and may end it, but change none of its numbers."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbpo_cli import Callback, make_config, train
from mbpo_cli.evaluation.callbacks import reason_to_end
from mbpo_cli.evaluation.schedule import TrainingRecord
from mbpo_cli.failures import RunFailed
from tests.conftest import TINY, gym_env, metrics_of

SHORT = ("env.kwargs={max_episode_steps: 5}", "mbpo.generate_every=5")
BRIEF = (*TINY, *gym_env("tests/PointMass-v0"), *SHORT)
Call = tuple[str, int, dict[str, float]]


class Witness(Callback):
    """Keeps what it sees, uses random numbers, and ends the run at a call."""

    def __init__(self, end_at: tuple[str, int] = ("", 0)) -> None:
        self.calls: list[Call] = []
        self.end_at = end_at
        self.summary: Mapping[str, Any] = {}
        self.record: TrainingRecord | None = None

    def _called(self, name: str, record: TrainingRecord, metrics: Mapping[str, float]) -> bool:
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        self.calls.append((name, record.env_steps, dict(metrics)))
        self.record = record
        return (name, record.env_steps) == self.end_at

    def on_step(self, record: TrainingRecord) -> bool:
        return self._called("step", record, {})

    def on_generation(self, record: TrainingRecord, metrics: Mapping[str, float]) -> bool:
        return self._called("generation", record, metrics)

    def on_evaluation(self, record: TrainingRecord, metrics: Mapping[str, float]) -> bool:
        return self._called("evaluation", record, metrics)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary

    def steps(self, name: str) -> list[int]:
        return [step for called, step, _ in self.calls if called == name]


def rows(path: Path) -> list[dict[str, Any]]:
    logged = metrics_of(path)
    return [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in logged]


def same_policy(*runs: Path) -> bool:
    first, second = (torch.load(path / "policy.pt", weights_only=True) for path in runs)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_they_see_what_happens_and_change_no_number(tmp_path: Path) -> None:
    config = make_config(*BRIEF)
    witness = Witness()
    assert train(config, tmp_path / "seen", callbacks=[witness]) == train(config, tmp_path / "unseen")
    assert rows(tmp_path / "seen") == rows(tmp_path / "unseen")
    assert same_policy(tmp_path / "seen", tmp_path / "unseen")
    # Five random steps, then a generation before the next step and every five steps.
    assert witness.steps("step") == list(range(1, 21))
    assert witness.steps("generation") == [6, 11, 16]
    assert witness.steps("evaluation") == [10, 20]
    logged = {row["step"]: row for row in rows(tmp_path / "seen")}
    for name, step, metrics in witness.calls:
        assert {"step": step, **metrics}.items() <= logged.get(step, {"step": step}).items()
        assert ("eval/return_mean" in metrics) == (name == "evaluation")
        assert ("rollout/horizon" in metrics) == (name == "generation")
    assert witness.summary["status"] == "done"
    assert witness.summary["env_steps"] == 20
    assert witness.record is not None
    assert witness.record.episodes == 4
    assert isinstance(witness.record.last_episodes, tuple)
    with pytest.raises(FrozenInstanceError):
        witness.record.env_steps = 0  # type: ignore[misc]


@pytest.mark.parametrize("end_at", [("step", 13), ("generation", 11), ("evaluation", 10)])
def test_one_ends_the_run_with_a_last_evaluation(end_at: tuple[str, int], tmp_path: Path) -> None:
    first, second = Witness(end_at), Witness()
    config = make_config(*BRIEF)
    score = train(config, tmp_path, callbacks=[first, second])
    assert first.calls == second.calls, "both are asked"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "done"
    assert summary["env_steps"] == end_at[1]
    assert summary["stopped_because"] == "Witness asked for it"
    evaluated = [row["eval/return_mean"] for row in rows(tmp_path) if "eval/return_mean" in row]
    assert len(evaluated) == (1 if end_at[0] == "evaluation" else 2)
    assert score == sum(evaluated) / len(evaluated)
    # Without it, the run goes on, to the numbers of one that it has not ended.
    train(config, tmp_path)
    train(config, tmp_path / "whole")
    assert same_policy(tmp_path, tmp_path / "whole")


def test_an_error_ends_the_run_except_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Witness):
        def on_evaluation(self, record: TrainingRecord, metrics: Mapping[str, float]) -> bool:
            raise ValueError("no such column")

    broken = Broken()
    with pytest.raises(RunFailed, match="ValueError: no such column"):
        train(make_config(*BRIEF), tmp_path / "a", callbacks=[broken])
    assert broken.summary["status"] == "failed"

    class BrokenAtEnd(Callback):
        def on_end(self, summary: Mapping[str, Any]) -> None:
            raise ValueError("no\nmail")

    last = Witness()
    caplog.clear()
    train(make_config(*BRIEF), tmp_path / "b", callbacks=[BrokenAtEnd(), last])
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["BrokenAtEnd.on_end: ValueError: no mail"]
    assert last.summary["status"] == "done"


def test_methods_that_are_left_out_do_nothing() -> None:
    record = TrainingRecord(1, 0, [], None)
    assert reason_to_end([Callback()], record, {"rollout/horizon": 1.0, "eval/return_mean": 2.0}) is None
    Callback().on_end({})
