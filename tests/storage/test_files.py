"""Locks, and what stays open."""

import os
import time
from pathlib import Path

import pytest

from mbpo_cli.failures import Busy
from mbpo_cli.storage import files


def test_a_lock_that_is_held_for_an_instant_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.lock"
    held = [files.lock(path)]
    monkeypatch.setattr(time, "sleep", lambda seconds: files.unlock(held.pop()))
    files.unlock(files.lock(path))
    assert not held


def test_nothing_stays_open(tmp_path: Path) -> None:
    def num_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = num_open()
    files.make_directory(tmp_path / "new")
    files.write_json(tmp_path / "new" / "values.json", {"a": 1})
    files.unlock(files.lock(tmp_path / "run.lock"))
    first = files.lock(tmp_path / "run.lock")
    with pytest.raises(Busy):
        files.lock(tmp_path / "run.lock")
    files.unlock(first)
    assert num_open() == before
