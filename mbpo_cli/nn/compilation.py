"""Gradient steps, plain or compiled as a whole: forward pass, backward pass and optimizer.

It knows functions of tensors and the number of their calls, not what they compute.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.failures import Stopped, one_line
from mbpo_cli.types import Agent, GradientStep, GradientSteps

log = logging.getLogger(__name__)

# A cold compilation takes 20 to 60 s and saves 1 to 3 ms per gradient step.
MIN_CALLS_THAT_PAY = 20_000
# Four steps as one function save another 0.5 to 1 ms per step and take half a minute longer to compile.
SEVERAL, MIN_CALLS_FOR_SEVERAL = 4, 100_000
# Updates in which all combinations of flags occur, as a rule; to be able to undo one takes as long as a step.
FIRST_UPDATES = 100
ALARM_SECONDS = 0.2
# Combinations of flags and shapes; each is compiled when it first occurs.
MAX_COMBINATIONS = 64


def missing_compiler() -> str | None:
    """Return the name of the C++ compiler that torch needs if it is not installed, else None."""
    name = os.environ.get("CXX", "g++")
    return None if shutil.which(name) else name


@contextmanager
def interruptible(should_stop: Callable[[], bool]) -> Iterator[None]:
    """Raise `Stopped` out of a compilation in the `with` block, before it computes, once a stop is requested.

    Whatever compiles ends with it. Only in the main thread, where alarms arrive.
    """
    if "torch._dynamo" not in sys.modules or threading.current_thread() is not threading.main_thread():
        yield  # nothing is compiled
        return
    from torch._dynamo.callback import callback_handler as compiler

    earlier = descendants()

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if should_stop():
            signal.setitimer(signal.ITIMER_REAL, 1.0)  # again, in case that the exception is swallowed
            terminate(descendants() - earlier)
            raise Stopped

    def start(arguments: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, ALARM_SECONDS, ALARM_SECONDS)

    def end(arguments: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    previous = signal.signal(signal.SIGALRM, on_alarm)
    compiler.register_start_callback(start)
    compiler.register_end_callback(end)
    try:
        yield
    except (Stopped, Exception) as error:
        end(None)
        # A signal to all processes of a terminal or a job ends the compiler, too, which is then an error.
        if not isinstance(error, Stopped) and not should_stop():
            raise
        _cancel_waiting()
        terminate(descendants() - earlier)
        raise Stopped from error
    finally:
        end(None)
        compiler.remove_start_callback(start)
        compiler.remove_end_callback(end)
        signal.signal(signal.SIGALRM, previous)


class UndoingIfStopped:
    """Contexts of the first updates of an agent, which compile its gradient step.

    A stop request interrupts the compilation; agent and random stream are then as before the update.
    """

    def __init__(self, should_stop: Callable[[], bool], is_compiled: bool) -> None:
        self._should_stop = should_stop
        self._num_left = FIRST_UPDATES if is_compiled else 0

    @contextmanager
    def __call__(self, agent: Agent, stream: torch.Generator) -> Iterator[None]:
        """Return the context of an update, which draws from the random stream."""
        if self._num_left == 0:
            yield
            return
        self._num_left -= 1
        before = copy.deepcopy(agent.state_dict()), stream.get_state()
        try:
            with interruptible(self._should_stop):
                yield
        except Stopped:
            agent.load_state_dict(before[0])
            stream.set_state(before[1])
            raise


def _cancel_waiting() -> None:
    """Cancel the kernels that wait for a thread to compile them, which would delay the end of the process."""
    from torch._inductor.async_compile import AsyncCompile

    if AsyncCompile.pool.cache_info().currsize > 0:
        AsyncCompile.pool().shutdown(wait=False, cancel_futures=True)
        AsyncCompile.pool.cache_clear()


def descendants(process: int | None = None) -> set[int]:
    """Return the child processes of a process, by default this one, and theirs; on Linux only."""
    found: set[int] = set()
    with suppress(OSError):  # a process may end meanwhile
        for children in Path(f"/proc/{process or os.getpid()}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found |= {child} | descendants(child)
    return found


def terminate(processes: Iterable[int]) -> None:
    """Send SIGTERM, after which a compiler removes what it has half written."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)


def guards_of_arguments(guards: Sequence[Any]) -> list[bool]:
    """Return for each guard whether to check it at every call: only guards of arguments can fail.

    The object whose method is compiled has hundreds of guards, which take as long as a small gradient step.
    """
    return [not (guard.is_global or guard.name.startswith("step.")) for guard in guards]


def one_by_one(step: GradientStep) -> GradientSteps:
    """Return a function that calls `step` once for each element of its argument."""

    def steps(arguments: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        return [step(**each) for each in arguments]

    return steps


def compiled(step: GradientStep, optional: bool = False, per_launch: int = 1) -> GradientSteps:
    """Return `one_by_one(step)`, compiled at the first call and again for other shapes.

    Results are the same within rounding. On a GPU the kernels are captured as a graph and launched together.

    Args:
        step: May use tensors, flags and constants, also through the object that it is a method of; may
            change only parameters, because a captured graph relies on their place in memory.
        optional: If compilation fails, log a warning and use the plain step; without it, torch's error
            is raised.
        per_launch: The number of steps that are compiled as one function; a remainder is another function.
    """
    from torch._dynamo import config  # imported here because it takes a second
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    config.trace_autograd_ops = True  # the backward pass belongs to the step
    config.recompile_limit = MAX_COMBINATIONS
    plain = one_by_one(step)
    accelerated: GradientSteps = torch.compile(  # type: ignore[call-overload]
        plain,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": guards_of_arguments, "triton.cudagraphs": True},
        isolate_recompiles=True,  # each object has compiled code of its own
    )

    def launch(arguments: Sequence[Mapping[str, Any]]) -> Sequence[dict[str, Tensor]]:
        nonlocal accelerated
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            return copied(accelerated(arguments))
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:  # before anything was computed
            if not optional:
                raise
            log.warning("not compiled: %s", one_line(str(error).partition("\n\n")[0]))
            accelerated = plain
            return plain(arguments)

    def steps(arguments: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        starts = range(0, len(arguments), per_launch)
        return [metrics for start in starts for metrics in launch(arguments[start : start + per_launch])]

    return steps


def copied(results: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Copy all results in one operation, because a graph's next launch overwrites them."""
    values = [value for metrics in results for value in metrics.values()]
    flat = torch.cat([value.flatten() for value in values]) if values else torch.empty(0)
    copies = iter(torch.split(flat, [value.numel() for value in values]))
    return [{tag: next(copies).view_as(value) for tag, value in metrics.items()} for metrics in results]
