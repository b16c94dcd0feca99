"""A run's greedy policy for whoever has observations of the environment, as arrays, and wants its actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from mbpo_cli.envs.environment import own_actions
from mbpo_cli.failures import ConfigError
from mbpo_cli.types import Agent, SpaceSpec


class RawPolicy:
    """A greedy policy in the environment's own terms.

    Attributes:
        obs_space: The environment's observation space.
        action_space: Its action space.
    """

    def __init__(
        self, agent: Agent, spaces: SpaceSpec, obs_space: gym.Space[Any], action_space: gym.Space[Any]
    ) -> None:
        self.obs_space, self.action_space = obs_space, action_space
        self._agent, self._spaces = agent, spaces

    def predict(self, obs: Any) -> tuple[Any, None]:
        """Return the action for an observation, or the actions for a batch, as the environment takes them.

        The second result is always None: policies have no memory. Other libraries return their state there.

        Args:
            obs: What the environment returns, a mapping for a Dict space; or a batch of it, with B as the
                first dimension of every array.

        Raises:
            ConfigError: The observation does not have the shape of its space.
        """
        flat, is_batch = _flat(obs, self.obs_space, "obs")
        with torch.no_grad():
            scaled = self._agent.act(torch.from_numpy(flat))
        actions = own_actions(scaled, self._spaces.actions, self.action_space)
        return (actions if is_batch else actions[0]), None


def _flat(obs: Any, space: gym.Space[Any], name: str) -> tuple[NDArray[np.float32], bool]:
    """Return observations of shape (B, O), flat in Gymnasium's order, and whether they were a batch."""
    if isinstance(space, gym.spaces.Box):
        array = np.asarray(obs, space.dtype)
        num_batches = array.ndim - len(space.shape)
        if num_batches not in (0, 1) or array.shape[num_batches:] != space.shape:
            wanted = f"{space.shape}, or {('B', *space.shape)} for a batch".replace("'", "")
            raise ConfigError(f"{name}: has shape {array.shape}, but must have {wanted}")
        size = math.prod(space.shape)
        return array.reshape(-1, size).astype(np.float32), num_batches == 1
    if isinstance(space, gym.spaces.Dict):
        keys = list(space.spaces)
        if not isinstance(obs, Mapping) or set(obs) != set(keys):
            raise ConfigError(f"{name}: must be a mapping with the keys {', '.join(map(str, keys))}")
        parts = [_flat(obs[key], space.spaces[key], f"{name}[{key!r}]") for key in keys]
    else:
        assert isinstance(space, gym.spaces.Tuple)
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise ConfigError(f"{name}: must be a tuple of {len(space.spaces)} arrays")
        pairs = zip(obs, space.spaces, strict=True)
        parts = [_flat(part, inner, f"{name}[{index}]") for index, (part, inner) in enumerate(pairs)]
    if len({(len(flat), is_batch) for flat, is_batch in parts}) > 1:
        raise ConfigError(f"{name}: its arrays are batches of different sizes")
    return np.concatenate([flat for flat, _ in parts], axis=1), parts[0][1]
