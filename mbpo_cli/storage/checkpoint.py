"""The checkpoints of a run: each complete, or not there at all.

A checkpoint is a directory that appears by a single rename. Experience is stored beside it, in files that are
written once and never changed, so that a checkpoint costs only what is new. Knows trees of tensors and replay
buffers; does not know what they mean.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mbpo_cli.buffers import ReplayBuffer
from mbpo_cli.failures import ConfigError, NoUsableCheckpoint, one_line
from mbpo_cli.storage import files, tensor_tree
from mbpo_cli.storage.manifest import BadCheckpoint, Manifest, RowFile, StoredRows, describe, read_file
from mbpo_cli.storage.records import CHECKPOINTS, EXPERIENCE, MANIFEST, STATE, TENSORS

log = logging.getLogger(__name__)

# Begins the name of a checkpoint while another one of its step takes its place.
REPLACED = ".replaced-"

T = TypeVar("T")

# What reading a checkpoint may raise if it is not what was written.
UNUSABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        logs: The number of bytes of each log file that belong to it, by name.
        best: Environment steps at the best evaluation so far, or None before the first.
        saved: Environment steps of checkpoints that are kept because a criterion was satisfied.
    """

    step: int
    state: dict[str, Any]
    logs: dict[str, int]
    best: int | None
    saved: tuple[int, ...]


class Checkpoints:
    """The checkpoints of one run: `checkpoints/STEP/`, with the experience in `experience/`.

    All that reads raises `NoUsableCheckpoint` if there are checkpoints and none is usable.

    Attributes:
        last_step: Environment steps at the checkpoint that was saved or loaded last, or None.
    """

    def __init__(self, directory: Path, keep: int, keep_saved: int = 1) -> None:
        self._checkpoints = directory / CHECKPOINTS
        self._experience = directory / EXPERIENCE
        self._keep, self._keep_saved = keep, keep_saved
        self._stored: dict[str, StoredRows] = {}
        self._best: int | None = None
        self._saved: tuple[int, ...] = ()
        self.last_step: int | None = None

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        buffers: Mapping[str, ReplayBuffer],
        logs: Mapping[str, int],
        is_best: bool = False,
        is_saved: bool = False,
        replaces: bool = False,
    ) -> None:
        """Make a checkpoint durable, then remove old ones.

        Of the buffers, only new rows are written. The `logs` must already be durable. The best checkpoint is
        kept until there is a better one, and one with `is_saved` until there are `keep_saved` later ones.

        Another one of the same step is made only if it `replaces` the last one, as training went on since.

        Raises:
            OSError: It cannot be written; earlier checkpoints are unchanged.
            Diverged: A number is not finite.
        """
        if step == self.last_step and not replaces:
            return
        plain, tensors = tensor_tree.encode(state)
        stored = {name: self._store_new_rows(name, buffer) for name, buffer in buffers.items()}
        best = step if is_best else self._best
        saved = (*self._saved, step)[-self._keep_saved :] if is_saved else self._saved
        contents = {TENSORS: tensors, STATE: plain}
        described = [describe(name, data) for name, data in contents.items()]
        manifest = Manifest(
            step=step, best=best, saved=saved, files=described, experience=stored, logs=dict(logs)
        )
        contents[MANIFEST] = manifest.to_bytes()
        self._publish(step, contents)
        self._stored, self._best, self._saved, self.last_step = stored, best, saved, step
        for file in described:
            read_file(self._path(step), file)
        self._remove_unneeded(step)

    def load(self, buffers: Mapping[str, ReplayBuffer]) -> Checkpoint | None:
        """Restore the newest usable checkpoint, buffers included; None if none was ever made."""
        for replaced in self._checkpoints.glob(f"{REPLACED}*"):  # its process ended at that moment
            final = replaced.with_name(replaced.name.removeprefix(REPLACED))
            _remove(replaced) if final.exists() else os.rename(replaced, final)
        return self._newest(lambda step: self._load(step, buffers))

    def read(self, best: bool = False) -> Checkpoint | None:
        """Return the newest usable checkpoint, or that of the best evaluation, without its experience.

        Changes nothing; another process may be working on the run. None if none was ever made, or if there
        was no evaluation yet.
        """
        newest = self._newest(self._read)
        if newest is None or not best or newest.best == newest.step:
            return newest
        return None if newest.best is None else self._newest(self._read, [newest.best])

    def read_at(self, step: int) -> Checkpoint:
        """Return the checkpoint at a step, without its experience.

        Raises:
            ConfigError: There is none.
        """
        steps = sorted(self._steps())
        if step not in steps:
            there_are = ", ".join(map(str, steps)) or "none"
            raise ConfigError(f"{self._path(step)}: there is no such checkpoint; there are {there_are}")
        found = self._newest(self._read, [step])
        assert found is not None
        return found

    def experience(self, step: int, name: str) -> Tensor:
        """Return the packed rows of a buffer at a checkpoint, oldest first."""
        found = self._newest(
            lambda step: self._rows(Manifest.read(self._path(step)).experience[name]), [step]
        )
        assert found is not None
        return found

    def _newest(self, read: Callable[[int], T], steps: Iterable[int] | None = None) -> T | None:
        """Read the newest usable checkpoint, of all or of those at `steps`; None if there are none."""
        reasons = []
        for step in sorted(self._steps() if steps is None else steps, reverse=True):
            try:
                return read(step)
            except UNUSABLE as error:
                kind = "" if isinstance(error, BadCheckpoint | OSError) else f"{type(error).__name__}: "
                reasons.append(f"{self._path(step).name}: {kind}{one_line(error)}")
                log.warning("checkpoint not used: %s", reasons[-1])
        if reasons:
            raise NoUsableCheckpoint("; ".join(reasons))
        return None

    def _store_new_rows(self, name: str, buffer: ReplayBuffer) -> StoredRows:
        """Write what was added to a buffer since the last checkpoint; return all files that it needs."""
        oldest = buffer.total_added - buffer.size
        stored = self._stored[name].files if name in self._stored else []
        needed = [part for part in stored if part.end > oldest]
        start = max(needed[-1].end if needed else 0, oldest)
        if start < buffer.total_added:
            files.make_directory(self._experience)
            file_name = f"{name}-{start:012d}-{buffer.total_added:012d}.safetensors"
            data = safetensors.torch.save({"rows": buffer.rows(start, buffer.total_added).cpu()})
            files.write_whole(self._experience / file_name, data)
            needed.append(RowFile(start, buffer.total_added, describe(file_name, data)))
        return StoredRows(buffer.total_added, buffer.size, needed)

    def _publish(self, step: int, contents: Mapping[str, bytes]) -> None:
        """Write the files of a checkpoint; its directory appears when all of them are durable."""
        files.make_directory(self._checkpoints)
        temporary = self._checkpoints / f".new-{step:012d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, data in contents.items():
            files.write(temporary / name, data)
        files.sync(temporary)
        final = self._path(step)
        replaced = final.with_name(REPLACED + final.name)
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():  # an earlier state of the same step, or of a run that resumed from an earlier step
            os.rename(final, replaced)
        os.rename(temporary, final)
        files.sync(self._checkpoints)
        shutil.rmtree(replaced, ignore_errors=True)

    def _load(self, step: int, buffers: Mapping[str, ReplayBuffer]) -> Checkpoint:
        checkpoint = self._read(step)
        experience = Manifest.read(self._path(step)).experience
        if set(experience) != set(buffers):
            raise BadCheckpoint(f"it has experience of {sorted(experience)} instead of {sorted(buffers)}")
        contents = {name: self._rows(stored) for name, stored in experience.items()}
        for name, stored in experience.items():
            buffers[name].restore(contents[name], stored.total_added, stored.size)
        self._stored, self.last_step = experience, step
        self._best, self._saved = checkpoint.best, checkpoint.saved
        return checkpoint

    def _read(self, step: int) -> Checkpoint:
        manifest = Manifest.read(self._path(step))
        tensors, plain = (read_file(self._path(step), file) for file in manifest.files)
        state = tensor_tree.decode(plain, tensors)
        return Checkpoint(step, state, manifest.logs, manifest.best, manifest.saved)

    def _rows(self, stored: StoredRows) -> Tensor:
        pieces = []
        for part in stored.files:
            pieces.append(safetensors.torch.load(read_file(self._experience, part.file))["rows"])
            if len(pieces[-1]) != part.end - part.start:
                raise BadCheckpoint(f"{part.file.name} has {len(pieces[-1])} rows")
        rows = torch.cat(pieces) if pieces else torch.empty(0, 0)
        return rows[len(rows) - stored.size :]

    def _remove_unneeded(self, last: int) -> None:
        """Remove what no kept checkpoint up to step `last` needs; a failure only costs disk space."""
        steps = sorted(self._steps())
        kept = {*[step for step in steps if step <= last][-self._keep :], *self._saved}
        if self._best is not None:
            kept.add(self._best)
        for step in steps:
            if step not in kept:
                _remove(self._path(step))
        needed = set()
        for step in kept.intersection(steps):
            with suppress(*UNUSABLE):  # an unusable checkpoint needs nothing
                experience = Manifest.read(self._path(step)).experience.values()
                needed |= {part.file.name for stored in experience for part in stored.files}
        for path in self._experience.glob("*"):
            if path.name not in needed:
                _remove(path)

    def _steps(self) -> list[int]:
        if not self._checkpoints.exists():
            return []
        return [int(path.name) for path in self._checkpoints.iterdir() if re.fullmatch(r"\d{12,}", path.name)]

    def _path(self, step: int) -> Path:
        return self._checkpoints / f"{step:012d}"


def _remove(path: Path) -> None:
    """Remove a file or a directory, which is renamed first so that no checkpoint is left incomplete."""
    try:
        if path.is_dir():
            doomed = path.with_name(f".old-{path.name}")
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(path, doomed)
            shutil.rmtree(doomed)
        else:
            path.unlink()
    except OSError as error:
        log.warning("cannot remove %s, which is no longer needed: %s", path, error)
