"""A Gymnasium environment as the algorithm sees it: flat float32 observations, scaled or one-hot actions.

Scaling and flattening happen here and nowhere else. Knows nothing of agents or models.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbpo_cli.envs.spaces import space_spec
from mbpo_cli.envs.watchdog import Watchdog
from mbpo_cli.failures import EnvironmentFailed, one_line
from mbpo_cli.options import option, resolve
from mbpo_cli.types import SpaceSpec


@dataclass
class EnvOptions:
    """The environment, and what is known about it."""

    id: str = option("Gymnasium id, such as Pendulum-v1")
    name: str = option("short name, for tables and run names")
    kwargs: dict[str, Any] | None = option("keyword arguments of gymnasium.make; null = none")
    module: str | None = option("module to import first, which registers the id; null = none")
    num_envs: int = option(
        "real environments side by side: a step of training is one in each, with as many updates for each",
        low=1,
        high=1000,
    )
    wrappers: list[str | dict[str, Any]] | None = option(
        "wrappers, innermost first, as package.module.Class or {_target_: that, key: value}; null = none"
    )
    step_timeout: float | None = option(
        "seconds after which a step counts as hanging, which ends the process; null = no limit",
        above=0,
        high=10**6,
    )
    reward_function: str | None = option(
        "known reward function as package.module.name, for model/reward=known; null = not known"
    )
    is_done_function: str | None = option(
        "known is-done function as package.module.name, for model/is_done=known; null = not known"
    )


class BadWrapper(ValueError):
    """A wrapper cannot be put around the environment."""


class Misbehaviour(ValueError):
    """An environment returned what it must not."""


class Step(NamedTuple):
    """What one step of an environment returns.

    Attributes:
        obs: The observation after the step, flat, shape (O,).
        reward: The reward.
        terminated: The episode ended in a terminal state.
        truncated: The episode was cut off, by a time limit for instance.
    """

    obs: Tensor
    reward: float
    terminated: bool
    truncated: bool


class Environment:
    """A single Gymnasium environment with flat observations and scaled actions."""

    def __init__(self, env: gym.Env[Any, Any], step_timeout: float | None = None) -> None:
        """Wrap `env`, whose steps may take `step_timeout` seconds.

        Raises:
            UnsuitableSpace: No agent can serve the environment's spaces.
        """
        self.spaces: SpaceSpec = space_spec(env.observation_space, env.action_space)
        self._env = env
        self._name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self._steps = 0
        self._watched: Callable[[], AbstractContextManager[None]] = (
            nullcontext if step_timeout is None else Watchdog(step_timeout, self._name).watching
        )

    def reset(self, seed: int) -> Tensor:
        """Start an episode and return its first observation, shape (O,).

        Raises:
            EnvironmentFailed: The environment raised an error, or returned what it must not.
        """
        self._steps = 0
        with self._blamed():
            obs, _ = self._env.reset(seed=seed)
            return self._flatten(obs)

    def step(self, action: Tensor) -> Step:
        """Take an action, scaled to [-1, 1] or one-hot, shape (A,).

        Raises:
            EnvironmentFailed: The environment raised an error, or returned what it must not.
        """
        env_action = self._env_action(action.cpu())
        self._steps += 1
        with self._blamed():
            returned = self._env.step(env_action)
            if len(returned) != 5:
                raise Misbehaviour(
                    f"returned {len(returned)} values, not (obs, reward, terminated, truncated, info)"
                )
            obs, reward, terminated, truncated, _ = returned
            return Step(self._flatten(obs), _number(reward), _flag(terminated), _flag(truncated))

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Say of any error that it is the environment's, and at which step of the episode."""
        try:
            with self._watched():
                yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an environment may even try to exit the process
            reason = str(error) if isinstance(error, Misbehaviour) else f"{type(error).__name__}: {error}"
            raise EnvironmentFailed(
                f"{self._name}, step {self._steps} of the episode: {one_line(reason)}"
            ) from error

    @property
    def obs_space(self) -> gym.Space[Any]:
        """What the environment shows, before it is flattened."""
        return self._env.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """What the environment takes, before it is scaled or one-hot."""
        return self._env.action_space

    @property
    def max_steps(self) -> int | None:
        """The steps after which an episode is cut off; None where no time limit is told."""
        env, limits = self._env, []
        while isinstance(env, gym.Wrapper):
            if isinstance(env, gym.wrappers.TimeLimit) and env.spec is not None:
                limits.append(env.spec.max_episode_steps)
            env = env.env
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def render_modes(self) -> list[str]:
        """Gymnasium's ways to draw it."""
        return list(self._env.metadata.get("render_modes", ()))

    @property
    def frames_per_second(self) -> float:
        """Steps per second of what it renders."""
        return float(self._env.metadata.get("render_fps", 30))

    def render(self) -> NDArray[np.uint8]:
        """Draw what the environment is at, shape (height, width, 3), if it was made to.

        Raises:
            EnvironmentFailed: The environment raised an error, or returned what it must not.
        """
        with self._blamed():
            frame: Any = self._env.render()
            if not isinstance(frame, np.ndarray) or frame.shape[2:] != (3,) or frame.dtype != np.uint8:
                raise Misbehaviour(f"returned no picture, but {type(frame).__name__}")
            return frame

    def close(self) -> None:
        """Release what the environment holds."""
        self._env.close()

    def _env_action(self, action: Tensor) -> Any:
        space = self._env.action_space
        env_action = self.spaces.actions.to_env(action).numpy().astype(space.dtype)
        if isinstance(space, gym.spaces.Box):
            # In the space's own precision a bound may lie a rounding error further in.
            return np.clip(env_action.reshape(space.shape), space.low, space.high)
        return env_action[()]

    def _flatten(self, obs: Any) -> Tensor:
        space = self._env.observation_space
        _check_shape(obs, space)
        # A copy, as some environments return the same array at every step.
        with np.errstate(over="ignore"):  # what overflows is infinite, and told below
            flat = torch.from_numpy(np.array(gym.spaces.flatten(space, obs), dtype=np.float32))
        if not bool(torch.isfinite(flat).all()):
            raise Misbehaviour(f"the observation is not finite: {flat.tolist()}")
        return flat


def _check_shape(obs: Any, space: gym.Space[Any]) -> None:
    """Check that an observation has the shape, or the channels, of its space."""
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
            raise Misbehaviour(f"the observation must have the keys {sorted(space.spaces)}")
        for key, channel in space.spaces.items():
            _check_shape(obs[key], channel)
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise Misbehaviour(f"the observation must be a tuple of {len(space.spaces)}")
        for part, channel in zip(obs, space.spaces, strict=True):
            _check_shape(part, channel)
    elif np.shape(obs) != space.shape:
        raise Misbehaviour(f"the observation has shape {np.shape(obs)}, its space {space.shape}")


def _number(reward: Any) -> float:
    if isinstance(reward, str | bytes) or np.size(reward) != 1:
        raise Misbehaviour(f"the reward is {reward!r}, not a number")
    try:
        number = float(np.asarray(reward).item())
    except (TypeError, ValueError) as error:
        raise Misbehaviour(f"the reward is {reward!r}, not a number") from error
    if not math.isfinite(number):
        raise Misbehaviour(f"the reward is {number}")
    return number


def _flag(flag: Any) -> bool:
    if np.size(flag) != 1 or np.asarray(flag).dtype.kind not in "biu":
        raise Misbehaviour(f"the end of the episode is told by {flag!r}, not by true or false")
    return bool(flag)


def make(options: EnvOptions, render_mode: str | None = None) -> Environment:
    """Make the environment that the options describe, to be drawn in one of Gymnasium's ways or not at all.

    Raises:
        ImportError: `options.module` cannot be imported, or the environment needs a missing package.
        gymnasium.error.Error: There is no such environment.
        UnsuitableSpace: No agent can serve the environment's spaces.
        BadWrapper: There is no such wrapper, or it does not fit.
        TypeError: The environment does not accept `options.kwargs`.
    """
    if options.module is not None:
        importlib.import_module(options.module)
    # The passive checker costs time at every step and only warns.
    drawn = {} if render_mode is None else {"render_mode": render_mode}
    env = gym.make(options.id, disable_env_checker=True, **{**(options.kwargs or {}), **drawn})
    for wrapper in options.wrappers or ():
        kwargs = {"_target_": wrapper} if isinstance(wrapper, str) else dict(wrapper)
        try:
            env = resolve(str(kwargs.pop("_target_", None)))(env, **kwargs)
        except (ImportError, AssertionError, TypeError, ValueError) as error:
            raise BadWrapper(f"{wrapper}: {error}") from error
    return Environment(env, options.step_timeout)
