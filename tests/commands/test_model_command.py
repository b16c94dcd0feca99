"""`mbpo-model`, and the use of trained runs from Python."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mbpo_cli
from mbpo_cli.commands import model as model_cli
from mbpo_cli.config.compose import make_config
from mbpo_cli.run import run
from mbpo_cli.trained.model_errors import NUM_WORST
from tests.conftest import CONF, TINY


@pytest.fixture(scope="module")
def pole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a Gaussian transition model and a learned is-done model."""
    path = tmp_path_factory.mktemp("model") / "run"
    groups = ("agent=sac", "env=cartpole", "model/transition=gaussian", "model/is_done=learned")
    run(make_config(*groups, *TINY, "mbpo.generate_every=5"), path)
    return path


def test_the_model_is_compared_with_new_episodes(
    pole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_cli.main([str(pole), "--output", str(tmp_path / "m.png"), "--episodes", "3", "--horizon", "7"])
    found = json.loads((tmp_path / "m.json").read_text())
    assert len(found["error_by_element"]) == 4
    assert len(found["error_by_member"]) == 3
    assert len(found["error_by_steps_ahead"]) == 7
    assert min(found["error_by_steps_ahead"]) > 0
    assert 0 <= found["coverage"]["0.5"] <= found["coverage"]["0.95"] <= 1
    assert 0 <= found["is_done_recall"] <= 1
    errors = [worst["error"] for worst in found["worst"]]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == NUM_WORST
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "sac on cartpole, newest checkpoint, step 20" in printed
    assert f"error {errors[0]:.3g} at (" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "--episodes: 0: must be a whole number from 1 to 1,000"),
        (["--output", "m.jpg"], "--output m.jpg: must end in .png"),
        (["--output", "nowhere/m.png"], "--output nowhere/m.png: nowhere is not a writable directory"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    pole: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(pole.rglob("*"))
    with pytest.raises(SystemExit) as ending:
        model_cli.main([str(pole), *arguments])
    assert ending.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mbpo-model: error: {message}")
    assert sorted(pole.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("mbpo=off",), "the run has no model"),
        (("agent.num_warm_start_steps=19",), "the model has not been fitted yet"),
    ],
)
def test_a_run_without_a_fitted_model_is_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_config(*TINY, *options), tmp_path / "run")
    with pytest.raises(SystemExit):
        model_cli.main([str(tmp_path / "run")])
    assert message in capsys.readouterr().err


def test_the_lines_of_the_docs_work_from_python(tmp_path: Path) -> None:
    page = (CONF.parent / "docs" / "tasks" / "python.md").read_text()
    section = page.partition("## Train and evaluate")[2].partition("\n## ")[0]
    lines = "".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))
    tiny = ", ".join(f'"{override}"' for override in TINY)
    assert '"trainer.num_env_steps=1_000"' in lines
    program = lines.replace('"trainer.num_env_steps=1_000"', f'{tiny}, "mbpo.generate_every=5"')
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    score, mean = map(float, done.stdout.splitlines()[-1].split())
    assert score < 0
    assert mean < 0


def test_the_package_imports_lazily() -> None:
    code = "import sys, mbpo_cli; assert 'torch' not in sys.modules; assert callable(mbpo_cli.make_config)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mbpo_cli.nothing
