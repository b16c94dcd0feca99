"""What the commands that use a run have in common: arguments, one-line errors, and files that are safe.

Imports nothing that takes long. Knows no command.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from mbpo_cli.failures import ConfigError, RunFailed, StorageFailed, one_line
from mbpo_cli.storage.records import (
    CHECKPOINTS,
    CONFIG,
    EVENTS,
    EXPERIENCE,
    LOCK,
    LOG,
    METRICS,
    POLICY,
    STOP,
    SUMMARY,
)

# What a run needs of its directory, beside its events.
OWN = {CHECKPOINTS, CONFIG, EXPERIENCE, LOCK, LOG, METRICS, POLICY, STOP, SUMMARY}


class Parser(argparse.ArgumentParser):
    """A parser that tells what is wrong in one line."""

    def __init__(self, prog: str, description: str) -> None:
        """Name the command, and take the arguments that say which policy of which run is meant."""
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("run", type=Path, metavar="RUN", help="directory of a run, finished or going on")
        self.add_argument("--best", action="store_true", help="take the policy of the best evaluation")
        self.add_argument(
            "--trust",
            action="append",
            default=[],
            metavar="PACKAGE",
            help="import what the run's configuration names in this package",
        )

    def error(self, message: str) -> NoReturn:
        """End with one line and exit code 2."""
        reason = message.removeprefix("argument ")
        print(f"{self.prog}: error: {one_line(reason)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(ConfigError.exit_code)


def start(
    parser: Parser, command: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None
) -> None:
    """Read the arguments, by default the process's own, and run a command with them."""
    logging.basicConfig(format=f"{parser.prog}: %(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    options = parser.parse_args(arguments)
    running(parser.prog, lambda: command(options))


def running(prog: str, command: Callable[[], None]) -> None:
    """Run a command; what goes wrong ends it with one line and the exit code that README.md tells."""
    try:
        command()
    except (ConfigError, RunFailed) as error:
        _end(prog, error, error.exit_code)
    except OSError as error:
        _end(prog, error, StorageFailed.exit_code)
    except KeyboardInterrupt:
        _end(prog, "interrupted", 130)


def _end(prog: str, error: object, exit_code: int) -> NoReturn:
    print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(exit_code) from None


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a whole number of that range."""

    def read(text: str) -> int:
        try:
            number = int(text.replace("_", ""))
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number from {low:,} to {high:,}")
        return number

    return read


def check_output(argument: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Check that a file can be written, and that it is none that a run needs.

    Args:
        argument: What names the file on the command line.
        path: The file.
        suffixes: How its name may end.

    Raises:
        ConfigError: It cannot, or it is.
    """
    folder = path.parent
    if path.suffix not in suffixes:
        raise ConfigError(f"{argument} {path}: must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{argument} {path}: is a directory; name a file")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{argument} {path}: {folder} is not a directory that can be written")
    real = path.resolve()
    for parent in real.parents:
        name = real.relative_to(parent).parts[0]
        if (parent / CONFIG).exists() and (name in OWN or name.startswith(EVENTS)):
            raise ConfigError(f"{argument} {path}: belongs to the run in {parent}; choose another name")
