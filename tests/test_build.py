from __future__ import annotations

import os

import pytest

from mbpo_cli.build import num_threads
from mbpo_cli.compose import make_config

SMALL = ("agent.hidden_sizes=[64,64]", "model.transition.hidden_sizes=[64]", "model/reward=known")
WIDE = "agent.hidden_sizes=[256,256]"


@pytest.mark.parametrize(
    ("overrides", "in_sweep", "num_cores", "expected"),
    [
        ((WIDE,), False, 1, 1),
        ((WIDE,), False, 2, 1),
        ((WIDE,), False, 6, 3),
        ((WIDE,), False, 64, 4),
        ((WIDE,), True, 64, 1),
        (SMALL, False, 64, 1),
        ((*SMALL, "model.transition.hidden_sizes=[200]"), False, 64, 4),
        ((*SMALL, "threads=7"), True, 2, 7),
    ],
)
def test_auto_leaves_half_of_the_cores_to_other_jobs(
    overrides: tuple[str, ...],
    in_sweep: bool,
    num_cores: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(num_cores)), raising=False)
    assert num_threads(make_config(*overrides), in_sweep) == expected
