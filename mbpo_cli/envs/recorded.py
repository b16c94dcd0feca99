"""Recorded arrays as transitions, after a check of every number.

Arrays have the names of D4RL and the environment's units. Knows spaces; does not know files or training.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbpo_cli.failures import ConfigError
from mbpo_cli.types import ActionSpec, ContinuousActions, SpaceSpec, Transitions

log = logging.getLogger(__name__)

# Actions may exceed a bound by this fraction of the distance between both, as rounding does.
TOLERANCE = 1e-5

Numbers = NDArray[np.float64]


def transitions_of(
    arrays: Mapping[str, NDArray[Any]], spaces: SpaceSpec, max_steps: int | None = None
) -> Transitions:
    """Return all recorded transitions, or raise an error that names the array, the row and what is wrong.

    Observations are flat, (N, O), have the shape of a Box, (N, ...), or are an array per channel. Where there
    are no `next_observations`, the next row holds them, and the last steps of episodes are left out. A row
    with both flags is a termination. `max_steps` is the environment's time limit, if it is known.

    Raises:
        ConfigError: An array is missing, or does not fit.
    """
    missing = [name for name in ("actions", "rewards", "terminals") if name not in arrays]
    if missing:
        there = f"there are {', '.join(arrays)}" if arrays else "there is no known array"
        raise ConfigError(f"{missing[0]}: is missing; {there}")
    obs = _observations("observations", arrays, spaces)
    if len(obs) == 0:
        raise ConfigError("observations: has no rows")
    action = _actions(_rows("actions", arrays, _width(spaces.actions), obs), spaces.actions)
    reward = _rows("rewards", arrays, 1, obs)[:, 0]
    terminal = _flags("terminals", arrays, obs)
    timeout = _flags("timeouts", arrays, obs) if "timeouts" in arrays else None
    _check_ends(terminal, timeout, max_steps)
    if any(name.partition("/")[0] == "next_observations" for name in arrays):
        next_obs, kept = _observations("next_observations", arrays, spaces, obs), slice(None)
    elif timeout is None:
        raise ConfigError(
            "next_observations: is missing, and without timeouts nothing tells where episodes end"
        )
    else:
        next_obs, kept = _followers(obs, terminal | timeout)
    columns = (_tensor(obs), action, _tensor(reward), _tensor(next_obs), _tensor(terminal))
    return Transitions(*columns)[kept]


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _width(actions: ActionSpec) -> int:
    return actions.size if isinstance(actions, ContinuousActions) else 1


def _rows(
    name: str, arrays: Mapping[str, NDArray[Any]], width: int, like: Numbers | None = None, kinds: str = "iuf"
) -> Numbers:
    """Return an array as (N, width) if its type, shape and numbers are right; N is that of `like`."""
    array = arrays[name]
    if array.dtype.kind not in kinds:
        raise ConfigError(f"{name}: holds {array.dtype}, but must hold numbers")
    if array.ndim == 0 or math.prod(array.shape[1:]) != width:
        raise ConfigError(f"{name}: has shape {array.shape}, but must have {width:,} numbers in each row")
    if like is not None and len(array) != len(like):
        raise ConfigError(f"{name}: has {len(array):,} rows, but observations {len(like):,}")
    rows = array.reshape(len(array), width)
    with np.errstate(over="ignore"):
        finite = np.isfinite(rows.astype(np.float32))
    if not finite.all():
        row, element = np.argwhere(~finite)[0]
        raise ConfigError(f"{name}: row {row}, element {element} is {rows[row, element]}, must be finite")
    return rows.astype(np.float64)


def _observations(
    name: str, arrays: Mapping[str, NDArray[Any]], spaces: SpaceSpec, like: Numbers | None = None
) -> Numbers:
    """Return flat observations, (N, O), from one array or from one per channel."""
    channels, sizes = [f"{name}/{channel}" for channel in spaces.channel_names], spaces.channels
    if name in arrays or not any(channel in arrays for channel in channels):
        channels, sizes = [name], (spaces.obs_size,)
    parts: list[Numbers] = []
    for channel, size in zip(channels, sizes, strict=True):
        if channel not in arrays:
            raise ConfigError(f"{channel}: is missing; there are {', '.join(arrays)}")
        parts.append(_rows(channel, arrays, size, parts[0] if parts else like))
    return np.concatenate(parts, axis=1)


def _actions(rows: Numbers, actions: ActionSpec) -> Tensor:
    """Return actions as the buffer holds them: scaled to [-1, 1], or one-hot."""
    if isinstance(actions, ContinuousActions):
        low, high = np.array(actions.low), np.array(actions.high)
        margin = TOLERANCE * (high - low)
    else:
        low, high, margin = np.array([actions.start]), np.array([actions.start + actions.size - 1]), 0.0
    outside = (rows < low - margin) | (rows > high + margin)
    if outside.any():
        row, element = np.argwhere(outside)[0]
        raise ConfigError(
            f"actions: row {row}, element {element} is {rows[row, element]:g}, but the environment's bounds "
            f"are {low[element]:g} and {high[element]:g}"
        )
    if isinstance(actions, ContinuousActions):
        return actions.from_env(torch.from_numpy(rows)).float()
    uneven = rows[:, 0] % 1 != 0
    if uneven.any():
        row = int(uneven.argmax())
        raise ConfigError(f"actions: row {row} is {rows[row, 0]:g}, but must be a whole number")
    return actions.from_env(torch.from_numpy(rows[:, 0]).long())


def _flags(name: str, arrays: Mapping[str, NDArray[Any]], like: Numbers) -> NDArray[np.bool_]:
    flags = _rows(name, arrays, 1, like, "biuf")[:, 0]
    wrong = (flags != 0) & (flags != 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(f"{name}: row {row} is {flags[row]:g}, but must be 0 or 1")
    return flags.astype(np.bool_)


def _check_ends(
    terminal: NDArray[np.bool_], timeout: NDArray[np.bool_] | None, max_steps: int | None
) -> None:
    """Check that time limits are not recorded as terminations."""
    ends = terminal if timeout is None else terminal | timeout
    places = np.flatnonzero(ends)
    lengths = np.diff(places, prepend=-1)
    terminated = terminal[places]
    if max_steps is None or len(places) == 0:
        return
    if terminated.sum() > 1 and (lengths[terminated] == max_steps).all():
        raise ConfigError(
            f"terminals: all {terminated.sum():,} are set after exactly {max_steps:,} steps, which is the "
            "environment's time limit and belongs in timeouts"
        )
    # The last episode may have been cut off where the recording ended.
    num_early = int((lengths[:-1][~terminated[:-1]] < max_steps).sum())
    if num_early > 0:
        log.warning(
            "timeouts: %s episodes end there before the environment's time limit of %s steps; if they "
            "terminated, terminals must say so",
            f"{num_early:,}",
            f"{max_steps:,}",
        )


def _followers(obs: Numbers, ends: NDArray[np.bool_]) -> tuple[Numbers, Any]:
    """Return the observation after each row, and the rows after which it is known."""
    known = ~ends
    known[-1] = False
    if not known.any():
        raise ConfigError("next_observations: is missing, and no row is followed by another of its episode")
    log.info(
        "next_observations is missing: the last steps of episodes, %s of %s rows, are left out",
        f"{(~known).sum():,}",
        f"{len(known):,}",
    )
    return np.roll(obs, -1, axis=0), torch.from_numpy(known)
