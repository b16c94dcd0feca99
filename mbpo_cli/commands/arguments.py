"""What commands share: arguments, one-line errors, and checks of output files.

Imports nothing slow. Knows no command.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from mbpo_cli.failures import ConfigError, Interrupted, RaiseOnSignal, RunFailed, StorageFailed, one_line
from mbpo_cli.storage import records


class PlainParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exit with one line and exit code 2."""
        reason = message.removeprefix("argument ")
        _end(self.prog, f"{one_line(reason)}; see {self.prog} --help", ConfigError.exit_code)


class Parser(PlainParser):
    """A parser with the arguments that choose a run and its policy."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description)
        run_help = "directory of a run, finished or not, or one of its checkpoints"
        self.add_argument("run", type=Path, metavar="RUN", help=run_help)
        self.add_argument("--best", action="store_true", help="use the policy of the best evaluation")
        self.add_argument(
            "--trust",
            action="append",
            default=[],
            metavar="PACKAGE",
            help="allow the run's configuration to import from this package",
        )


def start(
    parser: PlainParser, command: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None
) -> None:
    """Run a command with parsed arguments, by default those of the process."""
    logging.basicConfig(format=f"{parser.prog}: %(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    running(parser.prog, partial(command, parser.parse_intermixed_args(arguments)))


def running(prog: str, command: Callable[[], None]) -> None:
    """Run a command; after an error, exit with one line and the exit code that docs/commands.md lists."""
    try:
        with RaiseOnSignal():
            command()
    except (ConfigError, RunFailed) as error:
        _end(prog, error, error.exit_code)
    except OSError as error:
        _end(prog, error, StorageFailed.exit_code)
    except KeyboardInterrupt as error:
        _end(prog, "interrupted", error.exit_code if isinstance(error, Interrupted) else 130)


def _end(prog: str, error: object, exit_code: int) -> NoReturn:
    print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(exit_code) from None


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return a function that parses a whole number within a range."""

    def read(text: str) -> int:
        with suppress(ValueError):
            if low <= (number := int(text.replace("_", ""))) <= high:
                return number
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from {low:,} to {high:,}")

    return read


def check_output(argument: str, path: Path, suffixes: Collection[str]) -> None:
    """Check that the file that an argument names can be written and is not one of a run's own files."""
    folder = path.parent
    if path.suffix not in suffixes:
        raise ConfigError(f"{argument} {path}: must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{argument} {path}: is a directory; name a file")
    if path.is_symlink():
        raise ConfigError(f"{argument} {path}: is a link; name a file")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{argument} {path}: {folder} is not a writable directory")
    check_place(argument, path)


def places(paths: Iterable[Path]) -> str:
    """Return a line for each file that is about to be written: where, and whether it replaces another."""
    return "\n".join(
        f"written to {path}{', in place of an earlier one' if path.exists() else ''}" for path in paths
    )


def check_place(argument: str, path: Path) -> None:
    """Check that a place for output is not a run's own, and that no link in a run leads there."""
    real = path.resolve()
    for parent in Path(os.path.abspath(path)).parents:
        if (parent / records.CONFIG).exists() and not real.is_relative_to(parent.resolve()):
            raise ConfigError(f"{argument} {path}: a link leads out of the run in {parent}")
    for parent in real.parents:
        name = real.relative_to(parent).parts[0]
        if (parent / records.CONFIG).exists() and records.is_own(name):
            raise ConfigError(f"{argument} {path}: belongs to the run in {parent}; choose another name")


def hint_for_flag(message: str, arguments: Sequence[str], flags: Iterable[str]) -> str:
    """Say what to write instead of the flags that a message of argparse says are unknown."""
    unknown = message.partition("unrecognized arguments: ")[2].split()
    place = next((place for place, word in enumerate(arguments) if word in unknown), len(arguments))
    word, *rest = *arguments[place:], ""
    key, _, value = word.lstrip("-").partition("=")
    value = value or next((each for each in rest[:1] if each[:1] != "-" and "=" not in each), "")
    if near := difflib.get_close_matches(word.partition("=")[0], flags, n=1, cutoff=0.8):
        return f"did you mean {near[0]}?"
    if value and word.startswith("-"):
        option = shlex.quote(f"{key.replace('-', '_')}={value}")
        return f"options have no dashes: write {option}"
    if unknown and not word.startswith("-"):
        return "flags such as -m come before all options or after them"
    return "see mbpo-train --hydra-help"
