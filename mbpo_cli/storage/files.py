"""Files and directories that survive a crash, and file locks that end with their process.

Knows bytes and paths; does not know what they mean.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mbpo_cli.failures import Busy


def write(path: Path, data: bytes) -> None:
    """Write a new file in place of what has its name, perhaps a link, and make its contents durable."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file atomically: after a crash it has either the new contents or the old ones."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary, data)
    os.replace(temporary, path)
    sync(path.parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a file atomically by one that holds these values as JSON."""
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())


def make_directory(path: Path) -> None:
    """Make a directory durably, unless it exists."""
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


def lock(path: Path, wait: bool = False) -> int:
    """Lock a file until the returned descriptor is closed; the owner may write its name into the file.

    Raises:
        Busy: Another process has locked it, and `wait` is false.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        for _ in range(6):  # a process that only checks whether the lock is free holds it for an instant
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                return descriptor
            time.sleep(0.01)
        owner = os.read(descriptor, 200).decode(errors="replace").strip()
        raise Busy(f"{path.parent}: in use by {owner or 'another process'}")
    except BaseException:
        os.close(descriptor)
        raise


def unlock(descriptor: int) -> None:
    """Release a lock."""
    os.close(descriptor)
