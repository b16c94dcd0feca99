"""Trees of tensors and plain values as bytes: JSON for the tree, safetensors for its tensors.

Decoding executes nothing. Does not know what the values mean or where the bytes are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mbpo_cli.failures import Diverged

PLACEHOLDER = "tensor:"  # followed by the tensor's path, in place of the tensor


def encode(tree: Any) -> tuple[bytes, bytes]:
    """Return the JSON and the safetensors of a tree of mappings, lists, tensors and plain values.

    Raises:
        Diverged: A number is not finite.
    """
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(tree, "", tensors)
    return json.dumps(plain, allow_nan=False).encode(), safetensors.torch.save(tensors)


def decode(plain: bytes, tensors: bytes) -> Any:
    """Return the tree that `encode` returned as bytes."""
    return _with_tensors(parse(plain), safetensors.torch.load(tensors))


def parse(data: bytes) -> Any:
    """Parse JSON in which every number must be finite."""

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is not a finite number")
        return number

    return json.loads(data, parse_float=finite, parse_constant=finite)


def _without_tensors(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return a tree with placeholders for its tensors, which are added to `tensors` by path."""
    if isinstance(node, Tensor):
        if node.is_floating_point() and not bool(torch.isfinite(node).all()):
            raise Diverged(f"{path} is not finite")
        tensors[path] = node.detach().cpu().contiguous()
        return PLACEHOLDER + path
    prefix = f"{path}/" if path else ""
    if isinstance(node, Mapping):
        return {str(key): _without_tensors(value, f"{prefix}{key}", tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_tensors(value, f"{prefix}{index}", tensors) for index, value in enumerate(node)]
    if isinstance(node, float) and not math.isfinite(node):
        raise Diverged(f"{path} is {node}")
    return node


def _with_tensors(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, str) and node.startswith(PLACEHOLDER):
        return tensors[node.removeprefix(PLACEHOLDER)]
    if isinstance(node, dict):
        return {key: _with_tensors(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_tensors(value, tensors) for value in node]
    return node
