"""Files that survive a crash, with their names; and locks, which end with the process that has them.

Knows bytes and paths; does not know what they hold.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from mbpo_cli.failures import Busy

LOOK_SECONDS = 0.01


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


def lock(path: Path, wait: bool = False) -> int:
    """Lock a file for as long as the descriptor that is returned lives; its owner may write its name into it.

    Raises:
        Busy: Another process has it, and `wait` is false.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    # Who only looks whether a lock is free has it for an instant.
    for patience in (*([LOOK_SECONDS] * 5), 0.0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            time.sleep(patience)
        except OSError:  # a file system without locks
            os.close(descriptor)
            raise
        else:
            return descriptor
    owner = os.read(descriptor, 200).decode(errors="replace").strip()
    os.close(descriptor)
    raise Busy(f"{path.parent}: in use by {owner or 'another process'}")


def unlock(descriptor: int) -> None:
    """Give back what `lock` returned."""
    os.close(descriptor)
