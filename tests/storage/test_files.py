"""Locks on their own."""

import time
from pathlib import Path

import pytest

from mbpo_cli.storage import files


def test_a_lock_that_is_held_for_an_instant_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.lock"
    held = [files.lock(path)]
    monkeypatch.setattr(time, "sleep", lambda seconds: files.unlock(held.pop()))
    files.unlock(files.lock(path))
    assert not held
