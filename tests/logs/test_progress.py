import io
import logging
import sys

import pytest

from mbpo_cli.logs.progress import Progress


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_lines_off_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(100, seconds_between_lines=0.0)
    progress.write(25, {"train/episode_return": -12.34, "train/episodes": 2.0, "model/transition_loss": 0.5})
    progress.write(26, {"eval/return_mean": -5.0, "eval/return_std": 1.0})
    progress.close()
    first, second, third = caplog.messages
    assert first.startswith("step 25 of 100, ")
    assert first.endswith(" s left: episode 2, return -12.3, model loss 0.5")
    assert second == "step 26: evaluation return -5.0 +- 1.0"
    assert third.startswith("step 26 of 100")


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
