"""The limit: the time of only the matrix products that a measure needs.

Shapes follow from the network sizes. Operands and results are preallocated, in the faster layout.
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
    NUM_TRAINING,
    NUM_TRANSITIONS,
    POLICY_HIDDEN,
    SPACES,
    UNROLLED_CRITICS,
    UNROLLED_ENSEMBLE,
    UNROLLED_HIDDEN,
    UPDATE_SPACES,
)
from mbpo_cli.agents.sac import SACOptions
from mbpo_cli.config.compose import make_config
from mbpo_cli.models.transition import TransitionOptions

Product = tuple[int, int, int, int]  # members, rows, inner size, columns
CHUNK = 1_000  # rows that fit in the cache
MODEL_SIZES = (sum(SPACES), *MODEL_HIDDEN, 2 * (SPACES[0] + 1))  # mean and variance of observation and reward


def forward(members: int, rows: int, sizes: Sequence[int]) -> list[Product]:
    """Return the products of a forward pass."""
    return [(members, rows, fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)]


def weight_gradients(members: int, rows: int, sizes: Sequence[int]) -> list[Product]:
    """Return the products from output gradients to weight gradients."""
    return [(members, fan_in, rows, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)]


def input_gradients(members: int, rows: int, sizes: Sequence[int], from_layer: int = 1) -> list[Product]:
    """Return the products from output gradients to input gradients, of layers from `from_layer` on."""
    return [(members, rows, fan_out, fan_in) for fan_in, fan_out in itertools.pairwise(sizes[from_layer:])]


def backward(members: int, rows: int, sizes: Sequence[int]) -> list[Product]:
    """Return the products of a backward pass to the weights."""
    return weight_gradients(members, rows, sizes) + input_gradients(members, rows, sizes)


def timed(products: Sequence[Product]) -> Callable[[int], None]:
    """Return the work of computing all products, `count` times."""
    fastest = [min(_layouts(product), key=_seconds) for product in products]

    def work(count: int) -> None:
        for _ in range(count):
            for left, right, out in fastest:
                torch.bmm(left, right, out=out)

    return work


def _layouts(product: Product) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return operands and result of a product and of its transpose; the layout matters for narrow ones."""
    members, rows, inner, columns = product
    shapes = ((rows, inner, columns), (columns, inner, rows))
    return [
        (torch.randn(members, m, k), torch.randn(members, k, n), torch.empty(members, m, n))
        for m, k, n in shapes
    ]


def _seconds(layout: tuple[Tensor, Tensor, Tensor]) -> float:
    left, right, out = layout
    times = []
    for _ in range(20):
        start = time.perf_counter()
        torch.bmm(left, right, out=out)
        times.append(time.perf_counter() - start)
    return min(times)


def update_products(
    name: str, obs: int, action: int, hidden: Sequence[int], batch: int
) -> tuple[list[Product], list[Product]]:
    """Return the products of one update: of the critics, and of the actor."""
    critics = 1 if name in ("ddpg", "dqn") else 2
    if name == "dqn":
        sizes = (obs, *hidden, action)
        return 2 * forward(1, batch, sizes) + backward(1, batch, sizes), []
    actor_sizes = (obs, *hidden, 2 * action if name == "sac" else action)
    critic_sizes = (obs + action, *hidden, 1)
    critic_part = (
        forward(1, batch, actor_sizes)
        + 2 * forward(critics, batch, critic_sizes)
        + backward(critics, batch, critic_sizes)
    )
    # The actors of TD3 and DDPG use only the first critic.
    valued = critics if name == "sac" else 1
    actor_part = (
        forward(1, batch, actor_sizes)
        + forward(valued, batch, critic_sizes)
        + input_gradients(valued, batch, critic_sizes, from_layer=0)
        + backward(1, batch, actor_sizes)
    )
    return critic_part, actor_part


def update(name: str) -> Callable[[int], None]:
    """Return the products of one update of an agent."""
    critic_part, actor_part = update_products(name, *UPDATE_SPACES[name], POLICY_HIDDEN, BATCH)
    if name != "td3":
        return timed(critic_part + actor_part)
    both, critic_only = timed(critic_part + actor_part), timed(critic_part)

    def work(count: int) -> None:  # the actor is updated in every second update
        both(count // 2)
        critic_only(count - count // 2)

    return work


def unrolled_products(num_steps: int) -> list[Product]:
    """Return the products of one update of SAC through that many steps in the model."""
    obs, action = SPACES
    actor = (1, BATCH, (obs, *UNROLLED_HIDDEN, 2 * action))
    critics = (UNROLLED_CRITICS, BATCH, (obs + action, *UNROLLED_HIDDEN, 1))
    model = (UNROLLED_ENSEMBLE, BATCH // UNROLLED_ENSEMBLE, (obs + action, *UNROLLED_HIDDEN, obs))
    reward = (1, BATCH, (2 * obs + action, *UNROLLED_HIDDEN, 1))
    return (
        num_steps * (forward(*model) + forward(*reward))
        + (num_steps + 1) * (forward(*actor) + backward(*actor))
        # The first observations need no gradient, the others do.
        + num_steps * input_gradients(1, BATCH, actor[2][:2], from_layer=0)
        + num_steps * (input_gradients(*model, from_layer=0) + input_gradients(*reward, from_layer=0))
        + 3 * forward(*critics)
        + backward(*critics)
        + input_gradients(*critics, from_layer=0)
    )


def unrolled_update(num_steps: str) -> Callable[[int], None]:
    """Return the products of one update through the model."""
    return timed(unrolled_products(int(num_steps)))


def fit_products(members: int, batch: int, sizes: Sequence[int]) -> list[Product]:
    """Return the products of one gradient step of networks on a mini-batch."""
    return forward(members, batch, sizes) + backward(members, batch, sizes)


def fit_step() -> Callable[[int], None]:
    """Return the products of one gradient step of the ensemble."""
    return timed(fit_products(ENSEMBLE, BATCH, MODEL_SIZES))


def fit_epoch() -> Callable[[int], None]:
    """Return the products of one epoch of the ensemble's fit, including the hold-out loss."""
    whole, rest = divmod(NUM_TRAINING, BATCH)
    step, last = fit_step(), timed(fit_products(ENSEMBLE, rest, MODEL_SIZES))
    held_out = timed(forward(ENSEMBLE, NUM_TRANSITIONS - NUM_TRAINING, MODEL_SIZES))

    def work(count: int) -> None:
        step(count * whole)
        last(count)
        held_out(count)

    return work


def rollouts() -> Callable[[int], None]:
    """Return the products of policy and model on all initial observations, each by one member."""
    obs, action = SPACES
    policy = forward(1, CHUNK, (obs, *POLICY_HIDDEN, 2 * action))
    model = forward(1, CHUNK, MODEL_SIZES)
    work = timed(policy + model)
    return lambda count: work(count * NUM_STARTS // CHUNK)


def env_step() -> Callable[[int], None]:
    """Return the products of environment steps of the default run, with rollouts and the shortest fits."""
    config = make_config()
    agent, model, mbpo = config.agent, config.model.transition, config.mbpo
    training, rollout = config.model.training, mbpo.model_rollout_options
    assert isinstance(model, TransitionOptions)
    generate_every, num_mini_batches = mbpo.generate_every, training.num_mini_batches
    assert isinstance(generate_every, int)
    assert isinstance(num_mini_batches, int)
    obs, action = 3, 1  # Pendulum
    critic_part, actor_part = update_products("sac", obs, action, agent.hidden_sizes, mbpo.mini_batch_size)
    assert isinstance(agent, SACOptions)
    of_critics, of_actor = timed(critic_part), timed(actor_part)
    sizes = (obs + action, *model.hidden_sizes, obs)
    one_fit_step = timed(fit_products(model.num_networks, training.mini_batch_size, sizes))
    policy = forward(1, rollout.num_rollout, (obs, *agent.hidden_sizes, 2 * action))
    one_rollout_step = timed(policy + forward(1, rollout.num_rollout, sizes))

    def work(count: int) -> None:
        generations = count // generate_every
        num_updates = count * agent.num_gradient_steps_per_update
        of_critics(num_updates)
        of_actor(num_updates // agent.policy_update_frequency)
        num_epochs = training.least_epochs(mbpo.num_epoch_for_training_model)
        one_fit_step(generations * num_epochs * num_mini_batches)
        one_rollout_step(generations * rollout.horizon)

    return work


MEASURES = {
    **{f"{name}_update": partial(update, name) for name in UPDATE_SPACES},
    "unrolled_update": unrolled_update,
    "fit_step": fit_step,
    "fit_epoch": fit_epoch,
    "rollouts": rollouts,
    "env_step": env_step,
}
