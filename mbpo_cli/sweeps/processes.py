"""Runs commands in parallel, each in a process of its own, so that a crash affects no other command.

Knows processes and signals; does not know what the commands do.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO

from mbpo_cli.failures import SIGNALS, Interrupted, StopOnSignal, one_line

POLL_SECONDS = 0.05
MAX_ERRORS = 65_536  # bytes of a command's errors that are read, from their end
SIGNAL_NAMES = {int(each): each.name for each in signal.Signals}  # without most real-time signals
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

OnEnd = Callable[[int, str | None], None]
"""Called when a command has ended, with its index and None or one line with the reason of its failure."""


@dataclass
class _Running:
    index: int
    slot: Mapping[str, str]
    process: subprocess.Popen[bytes]
    errors: IO[bytes]


def run_commands(
    commands: Sequence[Sequence[str]], slots: Sequence[Mapping[str, str]], on_end: OnEnd
) -> None:
    """Run commands, at most one at a time for each slot, which is a set of environment variables.

    The first signal to this process is sent to the running commands, and no other command is started. When
    all have ended, the signal is raised again for its previous handler, and then as `Interrupted`. A second
    Ctrl-C kills the commands; on Linux, they also stop if this process is killed.
    """
    waiting = list(enumerate(commands))[::-1]
    free = list(slots)[::-1]
    running: list[_Running] = []
    with StopOnSignal() as signals, ExitStack() as stack:
        stack.callback(_kill, running)
        is_forwarded = False
        while running or (waiting and not signals.requested):
            while waiting and free and not signals.requested:
                index, command = waiting.pop()
                try:
                    running.append(_start(index, command, free[-1]))
                    free.pop()
                except (OSError, subprocess.SubprocessError) as error:  # no memory, or too many processes
                    on_end(index, f"it cannot be started: {one_line(error)}")
            if signals.received is not None and not is_forwarded:
                is_forwarded = True
                for each in running:
                    each.process.send_signal(signals.received)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                free.append(each.slot)
                failure = _failure(each)
                _kill([each])  # processes that it has left behind
                on_end(each.index, failure)
            time.sleep(POLL_SECONDS)
    if signals.received is not None:
        signals.pass_on()
        raise Interrupted(signals.received)


def run_command(folder: str, command: Sequence[str], variables: Mapping[str, str]) -> str | None:
    """Run a command in a folder; return None, or one line with the reason of its failure.

    The calling process, perhaps on another machine, does nothing else.
    """
    os.chdir(folder)
    failures: list[str | None] = []
    run_commands([command], [variables], lambda _, failure: failures.append(failure))
    return failures[0]


def _start(index: int, command: Sequence[str], slot: Mapping[str, str]) -> _Running:
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **slot},
            start_new_session=True,  # or the terminal would send Ctrl-C to the command as well
            preexec_fn=_prepare_signals,
        )
        stack.pop_all()  # the errors are closed when the command has ended
    return _Running(index, slot, process, errors)


def _prepare_signals() -> None:
    """Unblock signals, which for example Ray's workers block, and receive SIGTERM if the parent dies."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _failure(ended: _Running) -> str | None:
    """Return None, or how a command failed: its last line of errors, its signal, or its exit code."""
    code = ended.process.returncode
    if code == 0:
        return None
    if code < 0:
        return f"killed by {SIGNAL_NAMES.get(-code, f'signal {-code}')}"
    ended.errors.seek(max(ended.errors.seek(0, os.SEEK_END) - MAX_ERRORS, 0))
    lines = ended.errors.read(MAX_ERRORS).decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    reason = last.partition(": error: ")[2] or last.removeprefix("mbpo-train: ")
    return one_line(reason) or f"exit code {code}"


def _kill(running: Sequence[_Running]) -> None:
    for each in running:
        with suppress(ProcessLookupError, PermissionError):  # no process is left, or it has other rights
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.wait()
        each.errors.close()


def slots_of(
    num_jobs: int | None, threads: int, devices: Collection[str], gpus: Sequence[str], num_cores: int
) -> list[dict[str, str]]:
    """Return the environment variables of each slot for a job; without `num_jobs`, as many slots as fit.

    They fit if the jobs, each with a number of threads, use no more threads than there are cores, and no two
    share a GPU. Jobs with a device such as cuda:1 need no variable, and run one at a time by default. The
    GPUs are named as in CUDA_VISIBLE_DEVICES.
    """
    by_cores = max(num_cores // threads, 1)
    if any(device.startswith("cuda:") for device in devices):
        return [{}] * (num_jobs or 1)
    if not (gpus and set(devices) - {"cpu"}):
        return [{}] * (num_jobs or by_cores)
    chosen = itertools.islice(itertools.cycle(gpus), num_jobs or min(len(gpus), by_cores))
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in chosen]
