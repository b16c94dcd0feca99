"""Commands side by side, each in a process of its own, so that none can take another along.

Knows processes and signals; does not know what the commands do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from mbpo_cli.failures import SIGNALS, Interrupted, StopOnSignal, one_line

POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1
LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None) if LINUX else None


@dataclass
class _Running:
    index: int
    slot: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes]


def run_commands(
    commands: Sequence[Sequence[str]],
    slots: Sequence[Mapping[str, str]],
    on_end: Callable[[int, str | None], None],
) -> None:
    """Run commands, at most one in each slot at a time.

    A first signal to this process is handed on to all commands, and no further one is started; Ctrl-C
    pressed twice kills them. They are told to stop, too, if this process is killed. When all have ended,
    the signal goes to whoever handled it before.

    Args:
        commands: Programs with their arguments.
        slots: Environment variables of those that run in each slot.
        on_end: Called with a command's index, and None or one line that says how it failed.

    Raises:
        Interrupted: There was a signal; all commands have ended.
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    waiting = list(enumerate(commands))[::-1]
    free = list(range(len(slots)))[::-1]
    running: list[_Running] = []
    with StopOnSignal() as signals, _killed_on_exit(running):
        handed_on = False
        while running or (waiting and not signals.requested):
            while waiting and free and not signals.requested:
                index, command = waiting.pop()
                slot = free.pop()
                running.append(_start(index, slot, command, slots[slot]))
            if signals.received is not None and not handed_on:
                handed_on = True
                for each in running:
                    each.process.send_signal(signals.received)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                free.append(each.slot)
                on_end(each.index, _failure(each))
            time.sleep(POLL_SECONDS)
    if signals.received is not None:
        signals.pass_on()
        raise Interrupted(signals.received)


def run_command(folder: str, command: Sequence[str], variables: Mapping[str, str]) -> str | None:
    """Run a command in a folder, from a process that is there for nothing else, maybe on another machine.

    Returns:
        None, or one line that says how it failed.

    Raises:
        Interrupted: There was a signal; the command has ended.
    """
    os.chdir(folder)
    failures: list[str | None] = []
    run_commands([command], [variables], lambda _, failure: failures.append(failure))
    return failures[0]


def _start(index: int, slot: int, command: Sequence[str], variables: Mapping[str, str]) -> _Running:
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the command has ended
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env={**os.environ, **variables},
        start_new_session=True,  # out of reach of the terminal's Ctrl-C, which would come twice
        preexec_fn=_heed_signals if LINUX else None,
    )
    return _Running(index, slot, process, errors)


def _heed_signals() -> None:
    """Stop with the parent, and whenever it says so; Ray's workers, for one, have SIGINT blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    assert LIBC is not None
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _failure(ended: _Running) -> str | None:
    """Return how a command failed: by its last words, its signal, or its exit code."""
    code = ended.process.returncode
    ended.errors.seek(0)
    lines = ended.errors.read().decode(errors="replace").split("\n")
    ended.errors.close()
    if code == 0:
        return None
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    last = next((line for line in reversed(lines) if line.strip()), "")
    return one_line(last.partition(": error: ")[2] or last) or f"exit code {code}"


@contextmanager
def _killed_on_exit(running: Sequence[_Running]) -> Iterator[None]:
    """Leave no process behind, however the block ends."""
    try:
        yield
    finally:
        for each in running:
            with suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()
            each.errors.close()


def slots_of(
    num_jobs: int | None, threads: int, devices: Collection[str], gpus: Sequence[str], num_cores: int
) -> list[dict[str, str]]:
    """Return the environment variables of as many slots as there are to be jobs at a time.

    Jobs times threads do not exceed the cores, and no two jobs share a GPU, unless so many are asked for.
    Jobs that name a GPU find it themselves, one at a time.

    Args:
        num_jobs: Jobs at a time; None = as many as fit.
        threads: CPU threads of a job.
        devices: What jobs run on: cpu, auto, cuda or cuda:i.
        gpus: What there is, as CUDA_VISIBLE_DEVICES names them.
        num_cores: CPU cores that this process may use.
    """
    by_cores = max(num_cores // threads, 1)
    if any(device.startswith("cuda:") for device in devices):
        return [{} for _ in range(num_jobs or 1)]
    if not (gpus and set(devices) - {"cpu"}):
        return [{} for _ in range(num_jobs or by_cores)]
    chosen = [gpus[job % len(gpus)] for job in range(num_jobs or min(len(gpus), by_cores))]
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in chosen]
