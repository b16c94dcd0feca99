"""The manifest of a checkpoint: its files with sizes and checksums, signed with a checksum of its own.

Nothing is accepted that is not exactly what was written. Does not know what the files contain.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mbpo_cli.storage.records import MANIFEST, STATE, TENSORS
from mbpo_cli.storage.tensor_tree import parse

FORMAT = 1


class BadCheckpoint(ValueError):
    """A checkpoint is not what its manifest says."""


@dataclass(frozen=True)
class StoredFile:
    """The name of a file within its directory, its size and its checksum."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class RowFile:
    """A file with the rows of a replay buffer from number `start` to `end`, counted from its first row."""

    start: int
    end: int
    file: StoredFile


@dataclass(frozen=True)
class StoredRows:
    """The contents of a replay buffer: the last `size` rows in the files, of `total_added` so far."""

    total_added: int
    size: int
    files: list[RowFile]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of a manifest: the format, the files, and the attributes of the `Checkpoint`."""

    format: int = FORMAT
    step: int
    best: int | None
    saved: tuple[int, ...]
    files: list[StoredFile]
    experience: dict[str, StoredRows]
    logs: dict[str, int]

    def to_bytes(self) -> bytes:
        """Return what the manifest file holds."""
        return signed(asdict(self))

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read the manifest in the directory of a checkpoint.

        Raises:
            BadCheckpoint: It is not what was written, or a name in it could leave the run directory.
        """
        values = parse((directory / MANIFEST).read_bytes())
        if not isinstance(values, dict) or values.pop("sha256") != _checksum(json.dumps(values).encode()):
            raise BadCheckpoint(f"{MANIFEST} is corrupt")
        if values["format"] != FORMAT or values["step"] != int(directory.name):
            raise BadCheckpoint(f"the manifest has format {values['format']} and step {values['step']}")
        if [file["name"] for file in values["files"]] != [TENSORS, STATE]:
            raise BadCheckpoint("the manifest names other files")
        if not isinstance(values["best"], int | None):
            raise BadCheckpoint("the best checkpoint has an invalid name")
        saved = values.get("saved", [])  # older versions saved none
        if not (isinstance(saved, list) and all(isinstance(step, int) for step in saved)):
            raise BadCheckpoint("a saved checkpoint has an invalid name")
        return cls(
            step=values["step"],
            best=values["best"],
            saved=tuple(saved),
            files=[StoredFile(**file) for file in values["files"]],
            experience={name: _stored_rows(stored) for name, stored in values["experience"].items()},
            logs={_checked_name(name): int(size) for name, size in values["logs"].items()},
        )


def describe(name: str, data: bytes) -> StoredFile:
    """Return the description of a file with these contents."""
    return StoredFile(name, len(data), _checksum(data))


def read_file(directory: Path, file: StoredFile) -> bytes:
    """Return the contents of a file, or raise `BadCheckpoint` if they are not as described."""
    data = (directory / _checked_name(file.name)).read_bytes()
    if len(data) != file.bytes:
        raise BadCheckpoint(f"{file.name} has {len(data):,} bytes instead of {file.bytes:,}")
    if _checksum(data) != file.sha256:
        raise BadCheckpoint(f"{file.name} is corrupt")
    return data


def _stored_rows(values: Mapping[str, Any]) -> StoredRows:
    files = [RowFile(part["start"], part["end"], StoredFile(**part["file"])) for part in values["files"]]
    return StoredRows(values["total_added"], values["size"], files)


def signed(values: Mapping[str, Any]) -> bytes:
    """Return values with their own checksum, as the manifest file holds them."""
    return json.dumps({**values, "sha256": _checksum(json.dumps(values).encode())}, indent=1).encode()


def _checked_name(name: Any) -> str:
    """Return a file name from a manifest, which must not contain a path."""
    if not isinstance(name, str) or re.fullmatch(r"\w[\w.-]*", name) is None:
        raise BadCheckpoint("a file has an invalid name")
    return name


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
