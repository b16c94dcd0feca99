import io
import logging
import sys

import pytest

from mbpo_cli.logs.progress import Progress
from mbpo_cli.logs.stopwatch import duration


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that progress sees."""
    clock = Clock()
    monkeypatch.setattr("mbpo_cli.logs.progress.time", clock)
    return clock


def test_plain_lines_off_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(100, seconds_between_lines=0.0)
    progress.write(25, {"train/episode_return": -12.34, "train/episodes": 2.0, "model/relative_error": 0.5})
    progress.write(26, {"eval/return_mean": -5.0, "eval/return_std": 1.0})
    progress.close()
    assert caplog.messages == [
        "step 25 of 100: episode 2, return -12.3, model error 0.5",
        "step 26: evaluation return -5.0 ± 1.0",
        "step 26 of 100: evaluation -5.0, episode 2, return -12.3, model error 0.5",
    ]


@pytest.mark.parametrize("first_step", [0, 300])  # of a new and of a resumed run
def test_the_time_left_does_not_count_what_comes_before_the_training(
    first_step: int, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(1_000, first_step, seconds_between_lines=0.0)
    start = first_step + 100
    for step in range(first_step + 50, start + 1, 50):  # a hundred steps per second
        clock.now += 0.5
        progress.write(step, {"train/gradient_steps": 0})
    clock.now += 90  # of compilation
    for step in range(start + 50, 1_000, 50):  # one step per second
        progress.write(step, {"train/gradient_steps": 20 * step})
        clock.now += 50
    shown = [message.partition(", ")[2].partition(":")[0] for message in caplog.messages]
    expected = range(1_000 - start - 150, 0, -50)
    assert shown[:4] == ["", "", "", ""]
    assert shown[4:] == [duration(seconds) + " left" for seconds in expected]


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4 s"), (99, "99 s"), (600, "10 min"), (7_200, "2.0 h"), (173_930, "48.3 h")]
)
def test_times_are_shown_in_units_that_can_be_read(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_are_no_more_frequent_than_the_interval(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(100, seconds_between_lines=60.0)
    for step in range(1, 100):
        progress.write(step, {})
    progress.close()
    assert caplog.messages == []


def test_a_live_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(4)
    progress.write(1, {"eval/return_mean": -5.0, "eval/return_std": 1.0, "train/episode_return": -7.0})
    for step in (2, 3, 4):
        progress.write(step, {})
    progress.close()
    shown = terminal.getvalue().rsplit("\r", 1)[-1]
    assert "4/4" in shown
    assert "return -7.0" in shown
    assert "evaluation -5.0" in shown
