"""The picture of a run's learning curve: what it shows, when it is drawn, and that it harms no run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from mbpo_cli.config.compose import make_config
from mbpo_cli.evaluation import curve_file
from mbpo_cli.evaluation.curve import draw, picture
from mbpo_cli.evaluation.curve_file import CurvePicture
from mbpo_cli.failures import Interrupted
from mbpo_cli.run import run
from tests.conftest import EXAMINED
from tests.test_resume import BRIEF, stop_at

PNG = b"\x89PNG"
CURVES = {
    "eval/return_mean": {10: -5.0, 20: 3.0, 30: 1.0, 40: float("nan"), 50: 1e31},
    "eval/return_std": {10: 2.0, 30: 0.5},
    "train/episode_return": {7: -9.0, 8: float("inf"), 17: 4.0},
}


def test_evaluations_are_drawn_with_their_deviation_above_the_training_episodes() -> None:
    axes: Any = Figure().subplots()
    draw(axes, CURVES)
    episodes, evaluations = axes.lines
    assert episodes.get_xydata().tolist() == [[7, -9], [17, 4]]
    assert evaluations.get_xydata().tolist() == [[10, -5], [20, 3], [30, 1]]
    assert evaluations.get_label() == "evaluations ± std: last 1, best 3 at step 20"
    (band,) = axes.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert corners == {(10, -7), (10, -3), (20, 3), (30, 0.5), (30, 1.5)}


def test_any_name_and_no_value_can_be_drawn() -> None:
    assert picture(CURVES, "sac on $\\frac 猫, seed 0").startswith(PNG)
    assert picture({tag: {} for tag in CURVES}, "").startswith(PNG)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[float]], Callable[[float], None]]:
    """The evaluations in each picture, which takes a second to draw, and a function that lets time pass."""
    seen: list[list[float]] = []
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def drawing(curves: Mapping[str, Mapping[int, float]], title: str) -> bytes:
        wait(1.0)
        seen.append([*curves["eval/return_mean"].values(), *curves["train/episode_return"].values()])
        return PNG

    monkeypatch.setattr(curve_file, "picture", drawing)
    monkeypatch.setattr("time.monotonic", lambda: now)
    return seen, wait


def test_the_picture_follows_the_evaluations_but_takes_little_of_the_time(
    drawn: tuple[list[list[float]], Callable[[float], None]], tmp_path: Path
) -> None:
    seen, wait = drawn
    sink = CurvePicture(tmp_path, "")
    sink.write(1, {"train/episode_return": 7.0})
    assert seen == []
    sink.write(2, {"eval/return_mean": -3.0})
    assert seen == [[-3.0, 7.0]]
    assert (tmp_path / "curve.png").read_bytes() == PNG
    wait(49.0)  # it took one, which shall be at most one of fifty
    sink.write(3, {"eval/return_mean": -2.0})
    wait(1.0)
    assert len(seen) == 1
    sink.write(4, {})
    assert seen[1:] == [[-3.0, -2.0, 7.0]]
    sink.write(5, {"eval/return_mean": -1.0})
    sink.close()
    assert seen[2:] == [[-3.0, -2.0, -1.0, 7.0]]
    wait(1000.0)
    sink.write(6, {})
    sink.close()
    assert len(seen) == 3
    assert sink.commit() == {}


def test_an_error_ends_the_drawing_and_is_told_once(
    drawn: tuple[list[list[float]], Callable[[float], None]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = CurvePicture(tmp_path / "gone", "")
    for step in (1, 2):
        drawn[1](1000.0)
        sink.write(step, {"eval/return_mean": 1.0})
    sink.close()
    (message,) = caplog.messages
    assert message.startswith("the run continues without curve.png: FileNotFoundError: ")


def test_a_resumed_run_ends_with_the_picture_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*EXAMINED, *BRIEF, "mbpo=off")
    run(config, tmp_path / "whole")
    whole = (tmp_path / "whole" / "curve.png").read_bytes()
    stop_at(20, monkeypatch)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "stopped")
    monkeypatch.undo()
    assert whole != (tmp_path / "stopped" / "curve.png").read_bytes()
    run(config, tmp_path / "stopped")
    assert whole == (tmp_path / "stopped" / "curve.png").read_bytes()


def test_there_is_no_picture_without_diagnostics(tmp_path: Path) -> None:
    run(make_config(*EXAMINED, "mbpo=off", "trainer.diagnostics=false"), tmp_path / "run")
    assert not (tmp_path / "run" / "curve.png").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"
