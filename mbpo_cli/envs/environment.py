"""A Gymnasium environment as the algorithm sees it: flat float32 observations, scaled or one-hot actions.

Observations are flattened and actions scaled here and nowhere else. Does not know agents or models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbpo_cli.envs import wrappers
from mbpo_cli.envs.spaces import space_spec
from mbpo_cli.envs.watchdog import watching
from mbpo_cli.failures import EnvironmentFailed, one_line, place_of
from mbpo_cli.options import import_registering, option
from mbpo_cli.storage.records import FROM_PYTHON
from mbpo_cli.types import ActionSpec, SpaceSpec

# What Gymnasium asks of the results of calls.
RETURNS = {
    "a reset": "observation, info",
    "a step": "observation, reward, terminated, truncated, info",
    "a render": "a picture",
}


@dataclass
class EnvOptions:
    """The environment and its known functions."""

    id: str = option("Gymnasium id, such as Pendulum-v1")
    name: str = option("short name, for tables and run names")
    kwargs: dict[str, Any] | None = option(
        "keyword arguments of gymnasium.make, such as max_episode_steps, the time limit; null = none",
        matlab="MaxStepsPerEpisode",
    )
    module: str | None = option("module to import first, which registers the id; null = none")
    num_envs: int = option(
        "parallel real environments: a training step is one step in each, with as many updates for each",
        low=1,
        high=1000,
    )
    wrappers: list[str | dict[str, Any]] | None = option(
        "wrappers, innermost first, as package.module.Class or {_target_: that, key: value}; null = none"
    )
    step_timeout: float | None = option(
        "seconds after which a call of the environment (a step, a reset, making it, closing it) counts as "
        "hanging, which ends the process; null = no limit",
        above=0,
        high=10**6,
    )
    reward_function: str | None = option(
        "known reward function as package.module.name, for model/reward=known; null = not known"
    )
    is_done_function: str | None = option(
        "known is-done function as package.module.name, for model/is_done=known; null = not known"
    )


class Misbehavior(ValueError):
    """An environment returned an invalid value."""


class Step(NamedTuple):
    """The result of one step; `obs` is the next observation, flat, shape (O,)."""

    obs: Tensor
    reward: float
    terminated: bool
    truncated: bool


class Environment:
    """A Gymnasium environment with flat observations and scaled actions.

    A call may take `step_timeout` seconds; None sets no limit. `reset`, `step` and `render` raise
    EnvironmentFailed if the environment raises an error or returns an invalid value. `obs_space` and
    `action_space` are the environment's own; `max_steps` is the time limit of an episode, or None if there is
    none or it is not known.

    Raises:
        UnsuitableSpace: No agent supports the environment's spaces.
    """

    def __init__(self, env: gym.Env[Any, Any], step_timeout: float | None = None) -> None:
        self.spaces: SpaceSpec = space_spec(env.observation_space, env.action_space)
        self.obs_space, self.action_space = env.observation_space, env.action_space
        self.max_steps = _time_limit(env)
        self._env = env
        self._name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self._num_steps = 0
        self._step_timeout = step_timeout

    def reset(self, seed: int) -> Tensor:
        """Start an episode and return its first observation, shape (O,)."""
        self._num_steps = 0
        with self._guarded("a reset"):
            obs, _ = self._env.reset(seed=seed)
            return self._flatten(obs)

    def step(self, action: Tensor) -> Step:
        """Take an action, scaled to [-1, 1] or one-hot, shape (A,)."""
        env_action = self._env_action(action.cpu())
        self._num_steps += 1
        with self._guarded("a step"):
            obs, reward, terminated, truncated, _ = self._env.step(env_action)
            return Step(self._flatten(obs), _number(reward), _flag(terminated), _flag(truncated))

    @property
    def render_modes(self) -> list[str]:
        """Gymnasium's render modes of the environment."""
        return list(self._env.metadata.get("render_modes", ()))

    @property
    def frames_per_second(self) -> float:
        """Steps per second of a video in real time."""
        return float(self._env.metadata.get("render_fps", 30))

    def render(self) -> NDArray[np.uint8]:
        """Return a picture of the present state, shape (height, width, 3)."""
        with self._guarded("a render"):
            frame: Any = self._env.render()
            if not isinstance(frame, np.ndarray) or frame.shape[2:] != (3,) or frame.dtype != np.uint8:
                raise Misbehavior(f"render returned {type(frame).__name__}, not an RGB picture")
            return frame

    def close(self) -> None:
        """Release the environment's resources."""
        with watching(self._step_timeout, self._name, "its close"):
            self._env.close()

    @contextmanager
    def _guarded(self, call: str) -> Iterator[None]:
        """Turn any error into EnvironmentFailed, with the environment's name and the step of the episode."""
        try:
            with watching(self._step_timeout, self._name, call):
                yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an environment may even try to exit the process
            reason = str(error) if isinstance(error, Misbehavior) else f"{type(error).__name__}: {error}"
            place = place_of(error)
            if "unpack" in reason and not place:  # by Gymnasium or here, from what the call returned
                reason += f"; {call} must return {RETURNS[call]}"
            raise EnvironmentFailed(
                f"{self._name}, step {self._num_steps} of the episode: {one_line(reason)}{place}"
            ) from error

    def _env_action(self, action: Tensor) -> Any:
        return own_actions(action[None], self.spaces.actions, self.action_space)[0]

    def _flatten(self, obs: Any) -> Tensor:
        _check_shape(obs, self.obs_space)
        # A copy, as some environments return the same array at every step.
        with np.errstate(over="ignore"):  # an overflow becomes infinite, which is reported below
            flat = torch.from_numpy(np.array(gym.spaces.flatten(self.obs_space, obs), dtype=np.float32))
        if not bool(torch.isfinite(flat).all()):
            raise Misbehavior(f"the observation is not finite: {flat.tolist()}")
        return flat


def own_actions(action: Tensor, spec: ActionSpec, space: gym.Space[Any]) -> NDArray[Any]:
    """Return actions (B, A), scaled to [-1, 1] or one-hot, as an environment takes them, in a batch."""
    actions: NDArray[Any] = spec.to_env(action).numpy().astype(space.dtype)
    if isinstance(space, gym.spaces.Box):
        # A float32 bound may exceed the space's own by a rounding error.
        actions = np.clip(actions.reshape(-1, *space.shape), space.low, space.high)
    return actions


def _time_limit(env: gym.Env[Any, Any]) -> int | None:
    """Return the smallest limit of the TimeLimit wrappers and of dm_control's task, or None without any."""
    limits = []
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    of_task = getattr(getattr(env, "_env", None), "_step_limit", math.inf)  # shimmy wraps dm_control's
    if isinstance(of_task, int | float) and of_task < math.inf:
        limits.append(int(of_task))
    return min(limits, default=None)


def _check_shape(obs: Any, space: gym.Space[Any]) -> None:
    """Check that an observation has the shape of its space, or the channels of a Dict or Tuple."""
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
            raise Misbehavior(f"the observation must have the keys {sorted(space.spaces)}")
        for key, channel in space.spaces.items():
            _check_shape(obs[key], channel)
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise Misbehavior(f"the observation must be a tuple of {len(space.spaces)}")
        for part, channel in zip(obs, space.spaces, strict=True):
            _check_shape(part, channel)
    elif np.shape(obs) != space.shape:
        raise Misbehavior(f"the observation has shape {np.shape(obs)}, but its space {space.shape}")


def _number(reward: Any) -> float:
    try:
        if isinstance(reward, str | bytes):
            raise TypeError("a string")  # which numpy would parse
        number = float(np.asarray(reward).item())
    except (TypeError, ValueError) as error:
        raise Misbehavior(f"the reward is {reward!r}, not a number") from error
    if not math.isfinite(number):
        raise Misbehavior(f"the reward is {number}")
    return number


def _flag(flag: Any) -> bool:
    if np.size(flag) != 1 or np.asarray(flag).dtype.kind not in "biu":
        raise Misbehavior(f"the end of the episode is {flag!r}, not true or false")
    return bool(flag)


def make(options: EnvOptions, render_mode: str | None = None) -> Environment:
    """Make the environment that the options describe, with one of Gymnasium's render modes or none.

    Raises:
        UnsuitableSpace: No agent supports the environment's spaces.
        BadWrapper: A wrapper does not exist, does not fit, or cannot be applied.
        TypeError: The environment does not accept `options.kwargs`.
    """
    return Environment(make_wrapped(options, render_mode), options.step_timeout)


def make_wrapped(options: EnvOptions, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make the same as Gymnasium sees it, with its wrappers."""
    import_registering(options.module, options.id)
    kwargs = dict(options.kwargs or {})
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    # The passive checker costs time at every step and only warns.
    env = gym.make(options.id, disable_env_checker=True, **kwargs)
    for wrapper in options.wrappers or ():
        env = wrappers.apply(env, wrapper)
    wrappers.check_fit(env)
    return env


def fault_of(error: Exception, env: EnvOptions) -> str:
    """Return the option at fault for an environment that cannot be built, with the reason."""
    place, own_module = place_of(error), env.id.rpartition(":")[0]
    match error:
        case wrappers.BadWrapper():
            return f"env.wrappers={error}"
        case TypeError() if not place:
            kwargs = "null" if env.kwargs is None else env.kwargs
            return f"env.kwargs={kwargs}: not accepted by {env.id}: {error}"
        case ModuleNotFoundError(name=str(name)) if name and f"{env.module}.".startswith(f"{name}."):
            return f"env.module={env.module}: {_no_module(str(env.module))}"
        case ModuleNotFoundError(name=str(name)) if name and f"{own_module}.".startswith(f"{name}."):
            return f"env.id={env.id}: {_no_module(own_module)}"
        case gym.error.UnregisteredEnv() if env.id.startswith(FROM_PYTHON):
            return (
                f"env.id={env.id}: a Python function makes it, which Python has to give: "
                "load(RUN, env=make_env) opens the run, and train(config, RUN, env=make_env) resumes it"
            )
        case gym.error.NameNotFound() | gym.error.NamespaceNotFound():
            registers = f"env.module={env.module} does not register it"
            if env.module is None:
                registers = "for one of your own add env.module=MODULE, which registers it"
            return f"env.id={env.id}: {str(error).rstrip('.')}{_extra(str(error)) or f'; {registers}'}"
        case gym.error.DependencyNotInstalled():
            return f"env.id={env.id}: {error}{_extra(str(error))}"
        case _:
            return f"env.id={env.id}: {error}{place}"


def _no_module(name: str) -> str:
    """Say that there is no module of that name, and what to do."""
    found = _extra(name) or f"; it must lie in {os.getcwd()} or in a folder of PYTHONPATH, or be installed"
    return f"there is no such module{found}"


def _extra(message: str) -> str:
    """Return a hint to the extra of this package that installs one named in an error message."""
    extras = {"mujoco": "mujoco", "box2d": "box2d", "shimmy": "dmc", "dm_control": "dmc"}
    extra = next((extra for name, extra in extras.items() if name in message.lower()), None)
    return f"; with this package's extra: pip install 'mbpo-cli[{extra}]'" if extra else ""
