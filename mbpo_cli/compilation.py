"""Compilation of whole gradient steps: forward pass, backward pass and optimiser together.

Knows functions of tensors, and how often they will be called; does not know what they compute.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])

# A cold compilation takes 20 to 60 s, and saves 1 to 3 ms of a gradient step.
MIN_CALLS_THAT_PAY = 20_000


def missing_compiler() -> str | None:
    """Return the name of the C++ compiler that torch would call, if there is none; else None."""
    name = os.environ.get("CXX", "g++")
    return None if shutil.which(name) else name


def compiled(function: F) -> F:
    """Return the function, to be compiled when it is first called, and again for tensors of other shapes.

    It must take, change and return nothing but tensors, apart from flags and what never changes. The
    results are the same within rounding.
    """
    torch._dynamo.config.trace_autograd_ops = True  # the backward pass belongs to the step
    return cast(F, torch.compile(function, fullgraph=True, dynamic=False))
