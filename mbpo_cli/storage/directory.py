"""The run directory: locked while a process works in it, and closed with a summary.

Knows files and versions; does not know training.
"""

from __future__ import annotations

import io
import os
import platform
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mbpo_cli.failures import ConfigError
from mbpo_cli.storage import records
from mbpo_cli.storage.files import lock, unlock, write_json, write_whole

MAX_SHOWN = 4  # values that a message shows


class RunDirectory(AbstractContextManager["RunDirectory"]):
    """The directory of a new or resumed run, locked from construction until the context ends.

    Attributes:
        is_new: True if there was no run before.

    Raises:
        Busy: Another process is using the directory.
        ConfigError: It holds a run with another configuration, or links.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        records.check_own(path, writes=True)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(path / records.LOCK)
        try:
            os.ftruncate(self._lock, 0)
            os.write(self._lock, f"process {os.getpid()} on {platform.node()}\n".encode())
            check_same(path, config)
            self.is_new = not (path / records.CONFIG).exists()
            for closing in (records.SUMMARY, records.STOP):  # the run is now open again
                (path / closing).unlink(missing_ok=True)
            write_whole(path / records.CONFIG, yaml.safe_dump(config, sort_keys=False).encode())
            self._config_digest = records.config_digest(path)
        except BaseException:
            unlock(self._lock)
            raise

    def __exit__(self, *exception: object) -> None:
        unlock(self._lock)

    def save_policy(self, state: Mapping[str, Tensor]) -> None:
        """Store the weights of the greedy policy for `torch.load(..., weights_only=True)`."""
        contents = io.BytesIO()
        torch.save({name: tensor.cpu() for name, tensor in state.items()}, contents)
        write_whole(self.path / records.POLICY, contents.getvalue())

    def tracker_id(self) -> str:
        """Return what trackers know the run by, the same for a resumed run: 12 letters and digits."""
        path = self.path / records.TRACKER
        if path.exists() and re.fullmatch(r"[0-9a-f]{12}", stored := path.read_text(errors="replace")):
            return stored
        new = uuid.uuid4().hex[:12]
        write_whole(path, new.encode())
        return new

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Store the summary, together with versions, commit and command."""
        full = {
            **summary,
            "config": self._config_digest,
            "command": shlex.join(["mbpo-train", *sys.argv[1:]]),
            "git_commit": git_commit(),
            "versions": versions(),
        }
        write_json(self.path / records.SUMMARY, full)


def check_usable(path: Path, config: Mapping[str, Any]) -> None:
    """Check that a run may write into a directory, which need not exist yet.

    Raises:
        Busy: Another process is using it.
        ConfigError: It holds a run with another configuration, or links, or cannot be made or written.
    """
    check_same(path, config)
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"hydra.run.dir={path}: {existing} is not a writable directory")
    check_free(path)


def check_free(path: Path) -> None:
    """Raise `Busy` if a process is using a directory, which need not exist."""
    if (path / records.LOCK).exists():
        unlock(lock(path / records.LOCK))


def check_same(path: Path, config: Mapping[str, Any], chosen_by: str = "hydra.run.dir") -> None:
    """Check that the run in a directory, if there is one, can be resumed with a configuration.

    The message names `chosen_by`, the option that the user chose the directory with.

    Raises:
        ConfigError: The configuration would change the results, not just the length of the run and the
            like, or the directory holds links.
    """
    records.check_own(path, writes=True)
    if not (path / records.CONFIG).exists():
        return
    changes = records.changes(records.stored_config(path), config)
    changed = [f"{key}: {both}" for key, both in changes.items() if not key.startswith(records.HARMLESS)]
    if changed:
        more = f", and {len(changed) - MAX_SHOWN} more" if len(changed) > MAX_SHOWN else ""
        shown = ", ".join(changed[:MAX_SHOWN]) + more
        raise ConfigError(
            f"{chosen_by}={path}: already holds a run with other values ({shown}); choose another directory"
        )


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a result."""
    packages = ("torch", "numpy", "gymnasium", "hydra-core", "tensorboard", "safetensors")
    own = {"mbpo-cli": version("mbpo-cli"), "python": platform.python_version()}
    return own | {name: version(name) for name in packages}


def git_commit() -> str | None:
    """Return the commit of this program's checkout, with '-dirty' if changed, or None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        # An installed copy may lie in an ignored folder of some other repository.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
