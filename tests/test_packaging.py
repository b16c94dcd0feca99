"""The built wheel carries conf/ and runs from any directory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import CONF

ROOT = CONF.parent


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_extra_all_is_every_extra_but_trackers_and_those_for_development() -> None:
    extras = PROJECT["optional-dependencies"]
    (named,) = (Requirement(line).extras for line in extras["all"])
    assert named == set(extras) - {"all", "docs", "dev", "wandb", "mlflow", "trackio"}


def test_the_pinned_versions_are_within_the_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    for bound in map(Requirement, bounds):
        version = pinned.get(bound.name.lower())
        assert version is None or bound.specifier.contains(version), bound


@pytest.mark.slow
def test_the_wheel_runs_from_another_directory(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(tmp_path / "dist"),
        str(ROOT),
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    yaml = {f"mbpo_cli/conf/{path.relative_to(CONF)}" for path in CONF.rglob("*.yaml")}
    assert yaml <= packed
    presets = {str(path.relative_to(ROOT)) for path in (ROOT / "hydra_plugins").rglob("*.yaml")}
    assert len(presets) == 2
    assert presets <= packed
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "mbpo_cli").rglob("*.html")}
    assert len(pages) == 4
    assert {"mbpo_cli/py.typed", *pages} <= packed

    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    # What it depends on is taken from here, where this checkout itself is not on the path.
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = str(tmp_path / "venv" / "bin" / "mbpo-train")
    subprocess.run([program, "experiment=smoke", "hydra.run.dir=mine"], check=True, cwd=elsewhere)
    where = [python, "-c", "import mbpo_cli, mbpo_cli.conf; print(mbpo_cli.__file__, mbpo_cli.conf.__file__)"]
    places = subprocess.run(where, check=True, cwd=elsewhere, capture_output=True, text=True).stdout.split()
    assert all(place.startswith(str(site)) for place in places)
    sweep = [program, "-m", "experiment=smoke", "seed=0", "hydra.sweep.dir=s"]
    subprocess.run(sweep, check=True, cwd=elsewhere)
    assert (elsewhere / "s" / "experiment=smoke,seed=0" / "summary.json").exists()
    summary = json.loads((elsewhere / "mine" / "summary.json").read_text())
    assert summary["status"] == "done"
    assert summary["git_commit"] is None
