"""Checkpoints: the state of a run as files that are whole, or not there at all.

A checkpoint is a directory that appears by a single rename and names its files with their sizes and
checksums. Stored experience lies beside, in files that are written once and never changed, so that a
checkpoint costs what is new. Knows trees of tensors and plain values; does not know what they mean, and
reads nothing that could be executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mbpo_cli.buffers import ReplayBuffer
from mbpo_cli.failures import Diverged, NoUsableCheckpoint, one_line
from mbpo_cli.options import option
from mbpo_cli.storage import files
from mbpo_cli.storage.records import CHECKPOINTS, EXPERIENCE

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 1
TENSOR = "tensor:"  # stands for a tensor in the tree of plain values
STATE, TENSORS, MANIFEST = "state.json", "tensors.safetensors", "manifest.json"


@dataclass
class CheckpointOptions:
    """When the state of a run is kept, and how much of it."""

    every_steps: int | None = option(
        "environment steps between two checkpoints; null = not by steps", low=1, high=10**12
    )
    every_minutes: float | None = option(
        "minutes between two checkpoints; null = not by time", above=0, high=10**6
    )
    keep: int = option("latest checkpoints to keep, beside that of the best evaluation", low=2, high=1000)


class BadCheckpoint(ValueError):
    """A checkpoint is not what its manifest says."""


# What reading a checkpoint may raise that is not what was written.
UNUSABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True)
class File:
    """A file as the manifest knows it.

    Attributes:
        name: Its name within its directory.
        bytes: Its size.
        sha256: Its checksum.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Rows:
    """A file of experience: the rows of a buffer from number `start` to `end`, counted from its first."""

    start: int
    end: int
    file: File


@dataclass(frozen=True)
class Checkpoint:
    """What was restored.

    Attributes:
        step: Environment steps when it was made.
        state: The tree that was saved.
        logs: Bytes of each log file that belong to it, by name.
        best: Environment steps at the best evaluation so far, or None before the first.
    """

    step: int
    state: dict[str, Any]
    logs: dict[str, int]
    best: int | None


class Checkpoints:
    """The checkpoints of one run: `checkpoints/STEP/`, and `experience/` beside."""

    def __init__(self, directory: Path, keep: int) -> None:
        """Keep the last `keep`, at least 2, within a run's directory."""
        self._checkpoints = directory / CHECKPOINTS
        self._experience = directory / EXPERIENCE
        self._keep = keep
        self._rows: dict[str, list[Rows]] = {}
        self._best: int | None = None
        self.last_step: int | None = None

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        buffers: Mapping[str, ReplayBuffer],
        logs: Mapping[str, int],
        is_best: bool = False,
    ) -> None:
        """Make a checkpoint durable, then drop old ones.

        Args:
            step: Environment steps, by which it is named.
            state: Mappings and lists of tensors and plain values.
            buffers: Experience, of which only new rows are written.
            logs: Bytes of each log file that belong to it, durable already.
            is_best: Keep it until a better one comes.

        Raises:
            OSError: It cannot be written; earlier checkpoints are as they were.
            Diverged: A number is not finite.
        """
        if step == self.last_step:
            return
        plain, tensors = _taken_apart(state)
        rows = {name: self._add_rows(name, buffer) for name, buffer in buffers.items()}
        best = step if is_best else self._best
        files.make_directory(self._checkpoints)
        temporary = self._checkpoints / f".new-{step:012d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        contents = {
            TENSORS: safetensors.torch.save(tensors),
            STATE: json.dumps(plain, allow_nan=False).encode(),
        }
        for name, data in contents.items():
            files.write(temporary / name, data)
        described = [_described(name, data) for name, data in contents.items()]
        manifest = {
            "format": FORMAT,
            "step": step,
            "best": best,
            "files": [asdict(file) for file in described],
            "experience": {
                name: {
                    "total_added": buffers[name].total_added,
                    "size": buffers[name].size,
                    "files": [asdict(part) for part in parts],
                }
                for name, parts in rows.items()
            },
            "logs": dict(logs),
        }
        files.write(temporary / MANIFEST, signed(manifest))
        files.sync(temporary)
        final = self._path(step)
        if final.exists():  # left by a run that went on from an earlier one
            shutil.rmtree(final)
        os.rename(temporary, final)
        files.sync(self._checkpoints)
        self._rows, self._best, self.last_step = rows, best, step
        _verified(final, described)
        self._prune()

    def load(self, buffers: Mapping[str, ReplayBuffer]) -> Checkpoint | None:
        """Restore the newest usable checkpoint, buffers included; None if none was ever made.

        Raises:
            NoUsableCheckpoint: There are some, but none can be used.
        """
        return self._newest(lambda step: self._read(step, buffers))

    def read(self, best: bool = False) -> Checkpoint | None:
        """Return the newest usable checkpoint, or that of the best evaluation, without its experience.

        Nothing is changed, and another process may be at work on the run.

        Returns:
            The checkpoint; None if none was ever made, or if there was no evaluation yet.

        Raises:
            NoUsableCheckpoint: There are some, but none can be used.
        """
        newest = self._newest(self._state)
        if newest is None or not best or newest.best == newest.step:
            return newest
        wanted = newest.best
        return None if wanted is None else self._newest(self._state, [wanted])

    def experience(self, step: int, name: str) -> Tensor:
        """Return the packed rows that a buffer had at a checkpoint, oldest first.

        Raises:
            NoUsableCheckpoint: They cannot be read.
        """

        def rows(step: int) -> Tensor:
            stored = self._manifest(step)["experience"][name]
            contents = self._rows_of(_parts(stored))
            return contents[len(contents) - stored["size"] :]

        found = self._newest(rows, [step])
        assert found is not None
        return found

    def _newest(self, read: Callable[[int], T], steps: Iterable[int] | None = None) -> T | None:
        """Return what the newest usable checkpoint, of all or of some, is read as; None if there is none."""
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

    def _add_rows(self, name: str, buffer: ReplayBuffer) -> list[Rows]:
        """Write what was added to a buffer since the last checkpoint; return all files that it needs."""
        oldest = buffer.total_added - buffer.size
        parts = [part for part in self._rows.get(name, []) if part.end > oldest]
        start = max(parts[-1].end if parts else 0, oldest)
        if start < buffer.total_added:
            files.make_directory(self._experience)
            name = f"{name}-{start:012d}-{buffer.total_added:012d}.safetensors"
            data = safetensors.torch.save({"rows": buffer.rows(start, buffer.total_added).cpu()})
            files.write_whole(self._experience / name, data)
            parts.append(Rows(start, buffer.total_added, _described(name, data)))
        return parts

    def _read(self, step: int, buffers: Mapping[str, ReplayBuffer]) -> Checkpoint:
        checkpoint = self._state(step)
        experience = self._manifest(step)["experience"]
        if set(experience) != set(buffers):
            raise BadCheckpoint(f"it has experience of {sorted(experience)}, needed is {sorted(buffers)}")
        parts, contents = {}, {}
        for name, stored in experience.items():
            parts[name] = _parts(stored)
            contents[name] = self._rows_of(parts[name])
        for name, rows in contents.items():
            buffers[name].restore(rows, experience[name]["total_added"], experience[name]["size"])
        self._rows, self._best, self.last_step = parts, checkpoint.best, step
        return checkpoint

    def _state(self, step: int) -> Checkpoint:
        path = self._path(step)
        manifest = self._manifest(step)
        if manifest["format"] != FORMAT or manifest["step"] != step:
            raise BadCheckpoint(f"the manifest is of format {manifest['format']}, step {manifest['step']}")
        described = [File(**file) for file in manifest["files"]]
        if [file.name for file in described] != [TENSORS, STATE]:
            raise BadCheckpoint("the manifest names other files")
        tensors, plain = _verified(path, described)
        state = _put_together(_parsed(plain), safetensors.torch.load(tensors))
        logs = {str(name): int(size) for name, size in manifest["logs"].items()}
        if not all(_is_plain_name(name) for name in logs):
            raise BadCheckpoint("a log file has a strange name")
        best = manifest["best"]
        if not isinstance(best, int | None):
            raise BadCheckpoint("the best checkpoint has a strange name")
        return Checkpoint(step, state, logs, best)

    def _rows_of(self, parts: list[Rows]) -> Tensor:
        pieces = []
        for part in parts:
            (data,) = _verified(self._experience, [part.file])
            pieces.append(safetensors.torch.load(data)["rows"])
            if len(pieces[-1]) != part.end - part.start:
                raise BadCheckpoint(f"{part.file.name} has {len(pieces[-1])} rows")
        return torch.cat(pieces) if pieces else torch.empty(0, 0)

    def _prune(self) -> None:
        """Drop what no kept checkpoint needs; a failure costs room and nothing else."""
        steps = sorted(self._steps())
        assert self.last_step is not None
        past = [step for step in steps if step <= self.last_step]
        kept = set(past[-self._keep :])
        if self._best is not None:
            kept.add(self._best)
        for step in steps:
            if step not in kept:
                _remove(self._path(step))
        needed = set()
        for step in kept.intersection(steps):
            try:
                for stored in self._manifest(step)["experience"].values():
                    needed |= {part["file"]["name"] for part in stored["files"]}
            except UNUSABLE:
                continue  # it needs nothing
        if self._experience.exists():
            for path in self._experience.iterdir():
                if path.name not in needed:
                    _remove(path)

    def _steps(self) -> list[int]:
        if not self._checkpoints.exists():
            return []
        return [int(path.name) for path in self._checkpoints.iterdir() if re.fullmatch(r"\d{12,}", path.name)]

    def _manifest(self, step: int) -> dict[str, Any]:
        manifest = _parsed((self._path(step) / MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or manifest.pop("sha256") != _checksum(
            json.dumps(manifest).encode()
        ):
            raise BadCheckpoint(f"{MANIFEST} is not what was written")
        return manifest

    def _path(self, step: int) -> Path:
        return self._checkpoints / f"{step:012d}"


def _taken_apart(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a tree into plain values and named tensors, each of which must be finite."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            if node.is_floating_point() and not bool(torch.isfinite(node).all()):
                raise Diverged(f"{path} is not finite")
            tensors[path] = node.detach().cpu().contiguous()
            return TENSOR + path
        if isinstance(node, Mapping):
            return {
                str(key): walk(value, f"{path}/{key}" if path else str(key)) for key, value in node.items()
            }
        if isinstance(node, list | tuple):
            return [walk(value, f"{path}/{index}") for index, value in enumerate(node)]
        if isinstance(node, float) and not math.isfinite(node):
            raise Diverged(f"{path} is {node}")
        return node

    return walk(tree, ""), tensors


def _put_together(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(plain, str) and plain.startswith(TENSOR):
        return tensors[plain.removeprefix(TENSOR)]
    if isinstance(plain, dict):
        return {key: _put_together(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_put_together(value, tensors) for value in plain]
    return plain


def _parsed(data: bytes) -> Any:
    """Read JSON, in which every number must be finite."""

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise BadCheckpoint(f"{text} is not a finite number")
        return number

    return json.loads(data, parse_float=finite, parse_constant=finite)


def signed(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest with its own checksum, as its file holds it."""
    checksum = _checksum(json.dumps(manifest).encode())
    return json.dumps({**manifest, "sha256": checksum}, indent=1).encode()


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _described(name: str, data: bytes) -> File:
    return File(name, len(data), _checksum(data))


def _verified(directory: Path, described: list[File]) -> list[bytes]:
    """Return the contents of files, which must be as the manifest says."""
    contents = []
    for file in described:
        if not _is_plain_name(file.name):
            raise BadCheckpoint("a file has a strange name")
        data = (directory / file.name).read_bytes()
        if len(data) != file.bytes:
            raise BadCheckpoint(f"{file.name} has {len(data):,} bytes instead of {file.bytes:,}")
        if _checksum(data) != file.sha256:
            raise BadCheckpoint(f"{file.name} is not what was written")
        contents.append(data)
    return contents


def _parts(stored: Mapping[str, Any]) -> list[Rows]:
    """Return the files of a buffer's experience, as the manifest has them."""
    return [Rows(part["start"], part["end"], File(**part["file"])) for part in stored["files"]]


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None


def _remove(path: Path) -> None:
    """Remove what is no longer needed: a file, or a directory, which is renamed first."""
    try:
        if not path.is_dir():
            path.unlink()
            return
        doomed = path.with_name(f".old-{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        log.warning("what is no longer needed stays: %s", error)
