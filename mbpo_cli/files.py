"""Files that survive: written so that they, and their names, are there after a crash.

Knows bytes and paths; does not know what they hold.
"""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a file and make its contents durable."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there with all its contents, or as it was before."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary, data)
    os.replace(temporary, path)
    sync(path.parent)


def make_directory(path: Path) -> None:
    """Make a directory, durably, unless it is there."""
    if not path.exists():
        path.mkdir()
        sync(path.parent)


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
