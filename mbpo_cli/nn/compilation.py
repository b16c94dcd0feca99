"""Taking gradient steps, as they are or compiled as a whole: forward pass, backward pass and optimiser.

Knows functions of tensors, and how often they will be called; does not know what they compute.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.failures import one_line
from mbpo_cli.types import GradientStep, GradientSteps

log = logging.getLogger(__name__)

# A cold compilation takes 20 to 60 s, and saves 1 to 3 ms of a gradient step.
MIN_CALLS_THAT_PAY = 20_000
# Four steps as one function save another 0.5 to 1 ms each, and take half a minute longer to compile.
SEVERAL, MIN_CALLS_FOR_SEVERAL = 4, 100_000
# Of flags and shapes, each of which is compiled when it first occurs.
MAX_COMBINATIONS = 64


def missing_compiler() -> str | None:
    """Return the name of the C++ compiler that torch would call, if there is none; else None."""
    name = os.environ.get("CXX", "g++")
    return None if shutil.which(name) else name


def guards_of_arguments(guards: Sequence[Any]) -> list[bool]:
    """Tell of each guard whether it is to be checked at every call: not if it is of what never changes.

    Those of the object whose method was compiled are hundreds, and take as long as a small gradient step.
    """
    return [not (guard.is_global or guard.name.startswith("step.")) for guard in guards]


def one_by_one(step: GradientStep) -> GradientSteps:
    """Return what takes such steps as they are."""

    def steps(arguments: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        return [step(**each) for each in arguments]

    return steps


def compiled(step: GradientStep, optional: bool = False, per_launch: int = 1) -> GradientSteps:
    """Return what takes such steps, compiled when first called, and again for tensors of other shapes.

    As many steps as `per_launch` says are compiled as one function; what is left over of the steps that are
    asked for at once is another function.
    A step must take, change and return nothing but tensors, apart from flags and what never changes, all of
    which may also be reached through the object that it is a method of. The results are the same within
    rounding. If compilation fails, the step itself goes on where compilation is `optional`; otherwise
    torch's error is raised.

    On a GPU the function's kernels are captured as a graph, and launched all at once. For this, all that a
    step changes must be parameters, which keep their place in memory.
    """
    from torch._dynamo import config  # takes a second to import, which only runs that compile pay
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    config.trace_autograd_ops = True  # the backward pass belongs to the step
    config.recompile_limit = MAX_COMBINATIONS
    plain = one_by_one(step)
    accelerated: GradientSteps = torch.compile(  # type: ignore[call-overload]
        plain,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": guards_of_arguments, "triton.cudagraphs": True},
        isolate_recompiles=True,  # another object's step is compiled for that object
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
    """Return results of their own place, as a graph's next results overwrite the last; all at once."""
    values = [value for metrics in results for value in metrics.values()]
    flat = torch.cat([value.flatten() for value in values]) if values else torch.empty(0)
    copies = iter(torch.split(flat, [value.numel() for value in values]))
    return [{tag: next(copies).view_as(value) for tag, value in metrics.items()} for metrics in results]
