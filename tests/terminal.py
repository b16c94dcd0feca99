"""A terminal for commands that behave differently on one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def shown_on_terminal(
    command: Sequence[str], cwd: Path, columns: int = 120, **environment: str
) -> tuple[int, str]:
    """Return the exit code of a command, and all that it writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    variables = {**os.environ, "TERM": "xterm", **environment}
    process = subprocess.Popen(command, cwd=cwd, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    with suppress(OSError):  # which is how a terminal that nobody writes to any more ends
        while data := os.read(ours, 65_536):
            written += data
    os.close(ours)
    return process.wait(), written.decode().replace("\r\n", "\n")


def without_colors(text: str) -> str:
    """Return text without colors and movements of the cursor."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
