"""Which wrappers an environment may have, and their application.

The reward and the next observation must be functions of observation and action, as the model learns them, and
each copy of an environment must behave like any other, as evaluation has copies of its own.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from mbpo_cli.options import resolve

# Gymnasium's wrappers that keep nothing from step to step but what the observation shows, or what only
# decides when an episode is cut off. They write no files and open no windows.
FITTING = {
    "Autoreset",
    "ClipAction",
    "ClipReward",
    "DiscretizeAction",
    "DtypeObservation",
    "FilterObservation",
    "FlattenObservation",
    "FrameStackObservation",
    "OrderEnforcing",
    "PassiveEnvChecker",
    "RecordEpisodeStatistics",
    "RepeatAction",
    "RescaleAction",
    "RescaleObservation",
    "TimeAwareObservation",
    "TimeLimit",
}

# Gymnasium's wrappers that do not fit: why, and what to use instead.
UNFIT = {
    "NormalizeObservation": "its statistics give one state other observations over time, and in evaluation; "
    "leave it out, as the model normalizes its inputs, or use RescaleObservation",
    "NormalizeReward": "its statistics give one transition other rewards over time, and in evaluation; "
    "scale rewards by a constant in a wrapper of your own, or use ClipReward",
    "DelayObservation": "rewards belong to states that it does not show yet; leave it out",
    "MaxAndSkipObservation": "it mixes the observations of several steps, even of the episode before; "
    "use RepeatAction",
    "StickyAction": "the action that it repeats is not in the observation; use RepeatAction",
}


class BadWrapper(ValueError):
    """A wrapper does not exist, does not fit, or cannot be applied to the environment."""


def apply(env: gym.Env[Any, Any], wrapper: str | dict[str, Any]) -> gym.Env[Any, Any]:
    """Apply a wrapper, given by the name of its class, or by that as `_target_` beside its arguments.

    Raises:
        BadWrapper: There is no such subclass of `gymnasium.Wrapper`, or it raised an error.
    """
    arguments = {"_target_": wrapper} if isinstance(wrapper, str) else dict(wrapper)
    try:
        kind = resolve(str(arguments.pop("_target_", None)))
        if not (isinstance(kind, type) and issubclass(kind, gym.Wrapper)):
            raise TypeError("not a subclass of gymnasium.Wrapper")
        return kind(env, **arguments)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise BadWrapper(f"{wrapper}: {error}") from error


def check_fit(env: gym.Env[Any, Any]) -> None:
    """Raise `BadWrapper` if one of an environment's wrappers, or a base of its class, is known not to fit."""
    while isinstance(env, gym.Wrapper):
        for kind in type(env).__mro__:
            if kind.__name__ in UNFIT and _is_gymnasiums(kind):
                raise BadWrapper(f"{type(env).__name__}: does not fit: {UNFIT[kind.__name__]}")
        env = env.env


def is_harmless(kind: object) -> bool:
    """Return True for a wrapper of Gymnasium's that does nothing but compute."""
    return (
        isinstance(kind, type)
        and issubclass(kind, gym.Wrapper)
        and _is_gymnasiums(kind)
        and (kind.__name__ in FITTING or kind.__name__ in UNFIT)
    )


def _is_gymnasiums(kind: type) -> bool:
    return kind.__module__.startswith("gymnasium.wrappers.")
