"""Gradient steps, plain or compiled as a whole: forward pass, backward pass and optimizer.

It knows functions of tensors and the number of their calls, not what they compute.
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

# A cold compilation takes 20 to 60 s and saves 1 to 3 ms per gradient step.
MIN_CALLS_THAT_PAY = 20_000
# Four steps as one function save another 0.5 to 1 ms per step and take half a minute longer to compile.
SEVERAL, MIN_CALLS_FOR_SEVERAL = 4, 100_000
# Combinations of flags and shapes; each is compiled when it first occurs.
MAX_COMBINATIONS = 64


def missing_compiler() -> str | None:
    """Return the name of the C++ compiler that torch needs if it is not installed, else None."""
    name = os.environ.get("CXX", "g++")
    return None if shutil.which(name) else name


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
