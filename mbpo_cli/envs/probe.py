"""What random actions show before a run: do episodes end, do they repeat, and which actions matter?

Knows environments; does not know what a run does with them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np
import torch
from torch import Tensor

from mbpo_cli.envs.environment import Environment, Step
from mbpo_cli.failures import EnvironmentFailed, Stopped
from mbpo_cli.types import DiscreteActions

MAX_STEPS = 3_000
NUM_EPISODES = 5
NUM_REPEATED_STEPS = 10


def endless(env: Environment, stream: torch.Generator) -> str | None:
    """Return None if episodes have a limit, else what random episodes have shown.

    They have a limit if the environment tells it (`max_steps`), if an episode is truncated, or if all are of
    one length. An environment that fails is left to the run, which reports it.
    """
    if env.max_steps is not None:
        return None
    lengths = []
    try:
        for episode in range(NUM_EPISODES):
            length, last = _random_episode(env, episode, stream)
            if last.truncated:
                return None
            if not last.terminated:
                return f"a random episode did not end within {length:,} steps"
            lengths.append(length)
    except EnvironmentFailed:
        return None
    if len(set(lengths)) == 1:
        return None
    return f"random episodes ended by termination alone, after {min(lengths)} to {max(lengths)} steps"


def unrepeated(
    make_env: Callable[[], Environment],
    seed: int,
    stream: torch.Generator,
    should_stop: Callable[[], bool] = lambda: False,
) -> str | None:
    """Return what differs between short episodes with the same seed and actions, or None.

    Two are played in one environment, and one in another. Global random streams are as before afterwards. An
    environment that fails is left to the run, which reports it.

    Raises:
        Stopped: `should_stop`, asked before every step, returned True.
    """
    with _global_streams_kept():
        try:
            with closing(make_env()) as env:
                actions = [env.spaces.actions.sample(stream) for _ in range(NUM_REPEATED_STEPS)]
                first, second = (_trace(env, seed, actions, should_stop) for _ in range(2))
            with closing(make_env()) as env:
                other = _trace(env, seed, actions, should_stop)
        except EnvironmentFailed:
            return None
    if (what := _difference(first, other)) is not None:
        return (
            f"does not repeat with its seed ({what} differs between two environments): "
            "runs of one seed differ, and a resumed run differs from an uninterrupted one"
        )
    if (what := _difference(first, second)) is not None:
        return (
            f"does not repeat an episode with its seed ({what} differs the second time): "
            "a resumed run may differ from an uninterrupted one"
        )
    return None


def without_effect(env: Environment, seed: int, stream: torch.Generator, num_steps: int) -> list[int]:
    """Return the elements of an action that change nothing, or the actions that do what an earlier one does.

    Episodes of at most `num_steps` steps with the same seed are compared: with an element drawn anew, or with
    one or another of the discrete actions in half of the steps. For an environment that repeats.

    Raises:
        EnvironmentFailed: The environment has failed.
    """

    def trace(number: int | None) -> Trace:
        tried = [action.clone() for action in actions]
        for action, other, is_chosen in zip(tried, others, chosen, strict=True):
            if number is not None and is_discrete and is_chosen:
                action.zero_()[number] = 1
            elif number is not None and not is_discrete:
                action[number] = other[number]
        return _trace(env, seed, tried, lambda: False)

    is_discrete = isinstance(env.spaces.actions, DiscreteActions)
    actions, others = ([env.spaces.actions.sample(stream) for _ in range(num_steps)] for _ in range(2))
    chosen = (torch.rand(num_steps, generator=stream) < 0.5).tolist()
    traces, found = [] if is_discrete else [trace(None)], []
    for number in range(env.spaces.action_size):
        traced = trace(number)
        if any(_difference(traced, earlier) is None for earlier in traces):
            found.append(number)
        elif is_discrete:
            traces.append(traced)
    return found


Trace = list[tuple[Tensor, float, bool, bool]]


def _trace(env: Environment, seed: int, actions: Sequence[Tensor], should_stop: Callable[[], bool]) -> Trace:
    """Play until the episode ends or the actions are used up, and return all results, first the reset's."""
    trace: Trace = [(env.reset(seed), 0.0, False, False)]
    for action in actions:
        if should_stop():
            raise Stopped
        step = env.step(action)
        trace.append(step)
        if step.terminated or step.truncated:
            break
    return trace


def _difference(one: Trace, other: Trace) -> str | None:
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        for name, a, b in zip(("observation", "reward", "end", "end"), left, right, strict=True):
            if not torch.equal(torch.as_tensor(a), torch.as_tensor(b)):
                return f"the {name} of step {number}" if number else "the first observation"
    return None


def _random_episode(env: Environment, seed: int, stream: torch.Generator) -> tuple[int, Step]:
    """Return the number of steps of an episode, at most `MAX_STEPS`, and its last step."""
    env.reset(seed)
    length = 0
    while True:
        step = env.step(env.spaces.actions.sample(stream))
        length += 1
        if step.terminated or step.truncated or length == MAX_STEPS:
            return length, step


@contextmanager
def _global_streams_kept() -> Iterator[None]:
    """Restore the global random states, from which some environments draw."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - an environment may use it
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
