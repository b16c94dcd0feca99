"""The machine's limit: the matrix products that a measure cannot do without, and nothing else.

Their shapes follow from the sizes of the networks; their operands are ready, the quicker way round, and their
results have a place.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.sizes import (
    BATCH,
    ENSEMBLE,
    MODEL_HIDDEN,
    NUM_STARTS,
    POLICY_HIDDEN,
    SPACES,
    UPDATE_SPACES,
)

Product = tuple[int, int, int, int]  # members, rows, inner size, columns
CHUNK = 1_000  # rows that stay in the cache


def forward(members: int, rows: int, sizes: Sequence[int]) -> list[Product]:
    """Return the products of a forward pass."""
    return [(members, rows, fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)]


def weight_gradients(members: int, rows: int, sizes: Sequence[int]) -> list[Product]:
    """Return the products that give the gradients of all weights, from those of all outputs."""
    return [(members, fan_in, rows, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)]


def input_gradients(members: int, rows: int, sizes: Sequence[int], from_layer: int = 1) -> list[Product]:
    """Return the products that carry gradients back to the inputs of all layers from `from_layer` on."""
    return [(members, rows, fan_out, fan_in) for fan_in, fan_out in itertools.pairwise(sizes[from_layer:])]


def backward(members: int, rows: int, sizes: Sequence[int]) -> list[Product]:
    """Return the products of a backward pass that ends in weights."""
    return weight_gradients(members, rows, sizes) + input_gradients(members, rows, sizes)


def timed(products: Sequence[Product]) -> Callable[[int], None]:
    """Return the work of computing all products once, for a count of repetitions."""
    quickest = [min(_ways(product), key=_seconds) for product in products]

    def work(count: int) -> None:
        for _ in range(count):
            for left, right, out in quickest:
                torch.bmm(left, right, out=out)

    return work


def _ways(product: Product) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return operands and place of a product and of its transpose, which matters to narrow ones."""
    members, rows, inner, columns = product
    shapes = ((rows, inner, columns), (columns, inner, rows))
    return [
        (torch.randn(members, m, k), torch.randn(members, k, n), torch.empty(members, m, n))
        for m, k, n in shapes
    ]


def _seconds(way: tuple[Tensor, Tensor, Tensor]) -> float:
    left, right, out = way
    times = []
    for _ in range(20):
        start = time.perf_counter()
        torch.bmm(left, right, out=out)
        times.append(time.perf_counter() - start)
    return min(times)


def update(name: str) -> Callable[[int], None]:
    """Return the products of one update of an agent."""
    obs, action = UPDATE_SPACES[name]
    hidden = POLICY_HIDDEN
    critics = 1 if name in ("ddpg", "dqn") else 2
    if name == "dqn":
        sizes = (obs, *hidden, action)
        return timed(2 * forward(1, BATCH, sizes) + backward(1, BATCH, sizes))
    actor_sizes = (obs, *hidden, 2 * action if name == "sac" else action)
    critic_sizes = (obs + action, *hidden, 1)
    critic_part = (
        forward(1, BATCH, actor_sizes)
        + 2 * forward(critics, BATCH, critic_sizes)
        + backward(critics, BATCH, critic_sizes)
    )
    # TD3's actor climbs its first critic alone, and only every second time.
    valued = critics if name == "sac" else 1
    actor_part = (
        forward(1, BATCH, actor_sizes)
        + forward(valued, BATCH, critic_sizes)
        + input_gradients(valued, BATCH, critic_sizes, from_layer=0)
        + backward(1, BATCH, actor_sizes)
    )
    if name != "td3":
        return timed(critic_part + actor_part)
    both, critic_only = timed(critic_part + actor_part), timed(critic_part)

    def work(count: int) -> None:
        both(count // 2)
        critic_only(count - count // 2)

    return work


def fit_step() -> Callable[[int], None]:
    """Return the products of one gradient step of the ensemble."""
    obs, action = SPACES
    sizes = (obs + action, *MODEL_HIDDEN, 2 * (obs + 1))
    return timed(forward(ENSEMBLE, BATCH, sizes) + backward(ENSEMBLE, BATCH, sizes))


def rollouts() -> Callable[[int], None]:
    """Return the products of policy and model on all starts, each through one member."""
    obs, action = SPACES
    policy = forward(1, CHUNK, (obs, *POLICY_HIDDEN, 2 * action))
    model = forward(1, CHUNK, (obs + action, *MODEL_HIDDEN, 2 * (obs + 1)))
    work = timed(policy + model)
    return lambda count: work(count * NUM_STARTS // CHUNK)


MEASURES = {
    **{f"{name}_update": partial(update, name) for name in UPDATE_SPACES},
    "fit_step": fit_step,
    "rollouts": rollouts,
}
