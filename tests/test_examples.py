"""The examples run as they are, only shorter and with small networks."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import mbpo_cli
from tests.conftest import CONF, TINY

EXAMPLES = CONF.parent / "examples"
# What each prints, and how many runs it makes.
EXPECTED = {
    "first_run": (r"score -\d+; sac on pendulum, best checkpoint.*: -\d+ .*\nreturn of .*: -\d+\n", 1),
    "own_environment": (r"outflow 0.3: return -\d+\.\d\noutflow 0.6: return -\d+\.\d\n", 1),
    "own_agent": (r"\d+\.\d+\n", 1),
    "compare_runs": (r"with the model, .* returns -?\d+ \[.*\nA: sac mbpo.use_model=true\n.*", 6),
    "learned_model": (r"policy -\d+, plans -\d+\n", 1),
}


def test_every_example_is_tried() -> None:
    assert {path.stem for path in EXAMPLES.iterdir() if path.suffix == ".py"} == set(EXPECTED)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "compare_runs")) for name in EXPECTED]
)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = mbpo_cli.make_config

    def short(*overrides: str, **others: Any) -> Any:
        return full(*overrides, *TINY, "mbpo.generate_every=5", "trainer.diagnostics=false", **others)

    monkeypatch.setattr(mbpo_cli, "make_config", short)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed, num_runs = EXPECTED[name]
    assert re.fullmatch(printed, capsys.readouterr().out, re.DOTALL)
    summaries = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    assert [summary["status"] for summary in summaries] == ["done"] * num_runs


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_is_short_and_has_cells(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert 20 <= len(lines) <= 55
    assert sum(line.startswith("# %% ") for line in lines) >= 3
