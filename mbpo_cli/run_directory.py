"""The directory of a run: claimed once, filled as the run goes, and closed with a summary.

Knows files and versions; does not know training.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.options import ConfigError

PACKAGES = ("torch", "numpy", "gymnasium", "hydra-core", "tensorboard")


class RunDirectory:
    """Where one run writes; no two runs share one."""

    def __init__(self, path: Path, config_yaml: str) -> None:
        """Claim the directory by creating `config.yaml` in it, which only one run can do.

        Raises:
            ConfigError: The directory belongs to another run.
        """
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        try:
            with (path / "config.yaml").open("x", encoding="utf-8") as file:
                file.write(config_yaml)
        except FileExistsError as error:
            raise taken(path) from error

    @property
    def metrics(self) -> Path:
        """The scalars, one JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """TensorBoard's event file, whose name is the same in no other run."""
        return self.path / f"events.out.tfevents.0000000000.{uuid.uuid4().hex[:12]}"

    def save_policy(self, state: Mapping[str, Tensor]) -> None:
        """Store the weights of the greedy policy; `torch.load(..., weights_only=True)` reads them."""
        temporary = self.path / "policy.pt.tmp"
        torch.save({name: tensor.cpu() for name, tensor in state.items()}, temporary)
        os.replace(temporary, self.path / "policy.pt")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Store the summary, together with versions, commit and command."""
        full = {
            **summary,
            "command": shlex.join(["mbpo-train", *sys.argv[1:]]),
            "git_commit": git_commit(),
            "versions": versions(),
        }
        temporary = self.path / "summary.json.tmp"
        temporary.write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path / "summary.json")


def check_usable(path: Path) -> None:
    """Check that a run may write into a directory, which need not exist yet.

    Raises:
        ConfigError: It belongs to another run, or it cannot be made or written.
    """
    if (path / "config.yaml").exists():
        raise taken(path)
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"hydra.run.dir={path}: {existing} is not a directory that can be written")


def taken(path: Path) -> ConfigError:
    """Return the error that says so."""
    return ConfigError(f"hydra.run.dir={path}: holds a run already; name another directory, or none")


def versions() -> dict[str, str]:
    """Return the versions of everything that may change a result."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "mbpo-cli": importlib.metadata.version("mbpo-cli"),
        "python": platform.python_version(),
        **packages,
    }


def git_commit() -> str | None:
    """Return the commit of this program's checkout, with '-dirty' if changed, or None outside of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        # An installed copy may lie in an ignored folder of somebody else's repository.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
