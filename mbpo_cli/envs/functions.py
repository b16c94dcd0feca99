"""Environments that a Python function makes, under an id of Gymnasium for as long as they are needed.

Everything else knows only the id. Does not know runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import gymnasium as gym

from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.records import FROM_PYTHON

Env = gym.Env[Any, Any]
EnvSource = Callable[..., Env] | Env
"""A function or class that makes environments, or one that can be made anew."""

# Those that functions have made and that are still in use, by Python's id.
_made: WeakValueDictionary[int, Env] = WeakValueDictionary()
_numbers = itertools.count(1)


@contextmanager
def registered(env: EnvSource | None) -> Iterator[str | None]:
    """Let Gymnasium make environments by a function within the block; yield their id, or None without one.

    The id follows from the function's name, so that it is the same in another process.

    Raises:
        ConfigError: `env` is neither a function nor an environment that can be made anew.
    """
    if env is None:
        yield None
        return
    make, name = _maker(env)
    env_id = FROM_PYTHON + name
    other = gym.registry.get(env_id)  # of a run in whose callback this one trains
    _register(env_id, make)
    try:
        yield env_id
    finally:
        del gym.registry[env_id]
        if other is not None:
            gym.registry[env_id] = other


def register(env: EnvSource) -> str:
    """Let Gymnasium make environments by a function, and return their id, which no other function gets.

    Raises:
        ConfigError: As `registered`.
    """
    make, name = _maker(env)
    env_id = f"{FROM_PYTHON}{name}.{next(_numbers)}"
    _register(env_id, make)
    return env_id


def _maker(env: EnvSource) -> tuple[Callable[..., Env], str]:
    """Return the function that makes environments, and its name as a part of an id."""
    if not isinstance(env, gym.Env):
        if not callable(env):
            raise ConfigError(f"env: must be a function or a class that makes an environment, not {env!r}")
        named = getattr(env, "func", env)  # of a partial
        named = named if hasattr(named, "__qualname__") else type(named)
        return env, _as_part(f"{named.__module__}.{named.__qualname__}")
    spec, kind = env.spec, type(env.unwrapped).__name__
    if spec is None or any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
        raise ConfigError(
            f"env: this {kind} cannot be made anew, for evaluation; give what makes it: a class, as in "
            f"env={kind}, or a function, as in env=lambda: {kind}()"
        )
    # The passive checker costs time at every step and only warns.
    return partial(gym.make, spec, disable_env_checker=True), _as_part(spec.id)


def _as_part(name: str) -> str:
    return name.translate(str.maketrans("/:-", "...", "<>"))


def _register(env_id: str, make: Callable[..., Env]) -> None:
    def made(**kwargs: Any) -> Env:
        env = make(**kwargs)
        if not isinstance(env, gym.Env):
            raise ConfigError(f"env: the function returned {env!r}, which is not a Gymnasium environment")
        if _made.get(id(env.unwrapped)) is env.unwrapped:
            raise ConfigError(
                "env: the function returned one environment twice; it must make a new one at each call, as "
                "training and evaluation have their own"
            )
        _made[id(env.unwrapped)] = env.unwrapped
        return env

    # What the function returns is complete: nothing is added but a time limit that env.kwargs names.
    gym.registry[env_id] = gym.envs.registration.EnvSpec(
        env_id, made, order_enforce=False, disable_env_checker=True
    )
