"""Conversion of Gymnasium spaces to `SpaceSpec`."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from mbpo_cli.types import ActionSpec, ContinuousActions, DiscreteActions, SpaceSpec


class UnsuitableSpace(ValueError):
    """No agent supports the environment's spaces; the message says why, and names the nearest alternative."""


def space_spec(observation: gym.Space[Any], action: gym.Space[Any]) -> SpaceSpec:
    """Describe the spaces of an environment.

    A Box observation is one channel. A Dict or Tuple of Boxes has one channel per entry, in the order in
    which Gymnasium flattens them.

    Raises:
        UnsuitableSpace: No agent supports them.
    """
    names: list[Any] = []
    if isinstance(observation, spaces.Dict):
        names, parts = list(observation.spaces), list(observation.spaces.values())
    elif isinstance(observation, spaces.Tuple):
        names, parts = list(range(len(observation.spaces))), list(observation.spaces)
    else:
        parts = [observation]
    if not parts:
        raise UnsuitableSpace(f"its observation {observation} has no entries")
    sizes = tuple(_channel_size(part) for part in parts)
    return SpaceSpec(sizes, _action_spec(action), tuple(map(str, names)))


def _action_spec(action: gym.Space[Any]) -> ActionSpec:
    if isinstance(action, spaces.Discrete):
        return DiscreteActions(int(action.n), int(action.start))
    if not isinstance(action, spaces.Box) or not np.issubdtype(action.dtype or np.int_, np.floating):
        hint = ""
        if isinstance(action, spaces.MultiDiscrete | spaces.MultiBinary):
            hint = "; number the combinations in a wrapper, which makes them Discrete"
        raise UnsuitableSpace(
            f"its action space is {action}, but actions must be Discrete or a Box of floats{hint}"
        )
    if 0 in action.shape:
        raise UnsuitableSpace(f"an action of shape {action.shape} has no elements")
    with np.errstate(over="ignore"):
        width = action.high.astype(np.float32) - action.low.astype(np.float32)
    if not np.isfinite(width).all():  # bounds near the largest float count as infinite, too
        raise UnsuitableSpace(
            "its actions are unbounded; give them finite bounds, in a gymnasium.wrappers.TransformAction"
        )
    low, high = action.low.astype(float).ravel(), action.high.astype(float).ravel()
    return ContinuousActions(tuple(low.tolist()), tuple(high.tolist()))


def _channel_size(space: gym.Space[Any]) -> int:
    if not isinstance(space, spaces.Box):
        raise UnsuitableSpace(
            f"an observation is {space}, but observations must be a Box, or a Dict or Tuple of Boxes; "
            "env.wrappers=[gymnasium.wrappers.FlattenObservation] makes it one Box"
        )
    if space.dtype == np.uint8 and len(space.shape) >= 2:
        raise UnsuitableSpace(
            f"its observations are images (uint8 of shape {space.shape}), which MBPO agents do not support; "
            "use a variant of the environment with a state vector"
        )
    if 0 in space.shape:
        raise UnsuitableSpace(f"an observation of shape {space.shape} has no elements")
    return math.prod(space.shape)
