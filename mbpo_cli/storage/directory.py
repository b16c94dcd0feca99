"""The directory of a run: locked while a process works in it, and closed with a summary.

Knows files and versions; does not know training.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.files import lock, unlock, write_whole
from mbpo_cli.storage.records import (
    CONFIG,
    EVENTS,
    HARMLESS,
    LOCK,
    METRICS,
    POLICY,
    STOP,
    SUMMARY,
    evaluations,
    leaves,
    stored_config,
)

PACKAGES = ("torch", "numpy", "gymnasium", "hydra-core", "tensorboard", "safetensors")


class RunDirectory:
    """Where one run writes; no two processes share one.

    Attributes:
        path: The directory.
        is_new: Whether no run was there before.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Claim the directory, until `close`, for a run of this configuration, new or to go on with.

        Raises:
            Busy: Another process has it.
            ConfigError: A run of another configuration is there.
        """
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(path / LOCK)
        try:
            os.ftruncate(self._lock, 0)
            os.write(self._lock, f"process {os.getpid()} on {platform.node()}\n".encode())
            check_same(path, config)
            self.is_new = not (path / CONFIG).exists()
            for left_over in (SUMMARY, STOP):  # a summary closes a run, which is open again
                (path / left_over).unlink(missing_ok=True)
            write_whole(path / CONFIG, yaml.safe_dump(config, sort_keys=False).encode())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the directory back."""
        unlock(self._lock)

    def __enter__(self) -> RunDirectory:
        """Use as a context that closes."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    @property
    def stop_requested(self) -> bool:
        """Whether somebody has put a file named `stop` there."""
        return (self.path / STOP).exists()

    @property
    def metrics(self) -> Path:
        """The scalars, one JSON object per logged step."""
        return self.path / METRICS

    @property
    def has_metrics(self) -> bool:
        """Whether anything was ever logged."""
        return self.metrics.exists() and self.metrics.stat().st_size > 0

    def score(self, num_evaluations: int) -> float | None:
        """Return the mean return of the last evaluations, or None before the first."""
        returns = list(evaluations(self.path).values())
        return statistics.fmean(returns[-num_evaluations:]) if returns else None

    def new_events(self) -> Path:
        """Return a name for TensorBoard's event file that is the same in no other run."""
        return self.path / f"{EVENTS}0000000000.{uuid.uuid4().hex[:12]}"

    def save_policy(self, state: Mapping[str, Tensor]) -> None:
        """Store the weights of the greedy policy; `torch.load(..., weights_only=True)` reads them."""
        contents = io.BytesIO()
        torch.save({name: tensor.cpu() for name, tensor in state.items()}, contents)
        write_whole(self.path / POLICY, contents.getvalue())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Store the summary, together with versions, commit and command."""
        full = {
            **summary,
            "command": shlex.join(["mbpo-train", *sys.argv[1:]]),
            "git_commit": git_commit(),
            "versions": versions(),
        }
        write_whole(self.path / SUMMARY, (json.dumps(full, indent=2) + "\n").encode())


def check_usable(path: Path, config: Mapping[str, Any]) -> None:
    """Check that a run may write into a directory, which need not exist yet.

    Raises:
        Busy: Another process has it.
        ConfigError: It belongs to a run of another configuration, or it cannot be made or written.
    """
    check_same(path, config)
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"hydra.run.dir={path}: {existing} is not a directory that can be written")
    check_free(path)


def check_free(path: Path) -> None:
    """Check that no process works in a directory, which need not exist.

    Raises:
        Busy: One does.
    """
    if (path / LOCK).exists():
        unlock(lock(path / LOCK))


def check_same(path: Path, config: Mapping[str, Any], chosen_by: str = "hydra.run.dir") -> None:
    """Check that a run that is in a directory, if one is, may go on with a configuration.

    Args:
        path: The directory.
        config: The configuration.
        chosen_by: The key by which the user chose the directory.

    Raises:
        ConfigError: More than its length and the like would change.
    """
    if not (path / CONFIG).exists():
        return
    old, new = (dict(leaves(tree)) for tree in (stored_config(path), config))
    changed = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(HARMLESS)
    ]
    if changed:
        raise ConfigError(f"{chosen_by}={path}: holds a run already, of other values ({', '.join(changed)})")


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
