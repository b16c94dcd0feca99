"""A trial of a configuration before anything is written: do its components fit together?

`config` checks the types and ranges of single options.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from contextlib import closing

import torch

from mbpo_cli import build
from mbpo_cli.buffers import num_bytes
from mbpo_cli.config.typed import Config
from mbpo_cli.envs.environment import Environment
from mbpo_cli.envs.probe import endless
from mbpo_cli.exploration import EmptyOptions
from mbpo_cli.failures import ConfigError, one_line, place_of
from mbpo_cli.models.known import KnownOptions
from mbpo_cli.nn.machine import free_memory
from mbpo_cli.nn.seeding import generator
from mbpo_cli.options import resolve
from mbpo_cli.trained import pretrained, video
from mbpo_cli.types import ContinuousActions, DiscreteActions, SpaceSpec

log = logging.getLogger(__name__)

# For error messages: a kind of actions, and the agents, their noise and the rollout noise that suit it.
SUITABLE = {
    ContinuousActions: ("a Box of actions", "sac, td3 or ddpg", "gaussian or ornstein_uhlenbeck", "gaussian"),
    DiscreteActions: ("Discrete actions", "dqn or sac", "epsilon_greedy", "epsilon_greedy"),
}


def check(config: Config, is_new: bool = True, trust: Sequence[str] = ()) -> None:
    """Check that the configuration can be built; raise a ConfigError if not.

    Only for a new run, episodes must have a limit (older versions accepted others, too), and what it begins
    with must fit.
    """
    device = build.build_device(config)
    build.agent_compiles(config, device)
    _check_packages(config)
    if episodes := config.trainer.film_episodes:
        video.render_off_screen()
        video.rendered_env(config, f"trainer.film_episodes={episodes}", "rgb_array").close()
    with closing(build.build_env(config)) as env:
        _check_actions(config, env.spaces)
        if is_new:
            check_limit(config, env, f"env.id={config.env.id}", "'env.kwargs={max_episode_steps: 1000}'")
            pretrained.check(config, env.spaces, trust)
    if is_new and device.type == "cpu":
        _check_memory(config, env.spaces)
    if build.uses_model(config):
        check_known_functions(config, env.spaces)
        if config.mbpo.training_horizon > 0:
            _check_gradients(config, env.spaces)


def _check_packages(config: Config) -> None:
    """Check that the packages of the trackers are installed."""
    for name, options in config.logger.items():
        package = getattr(resolve(options._target_), "package", None)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"logger={name}: needs the package {package}; pip install 'mbpo-cli[{package}]' installs it"
            )


def _check_memory(config: Config, spaces: SpaceSpec) -> None:
    """Check that the replay buffers fit into the free memory when they are full."""
    sizes = {"agent.experience_buffer_length": config.agent.experience_buffer_length}
    if build.uses_model(config):
        sizes["mbpo.model_experience_buffer_length"] = config.mbpo.model_experience_buffer_length
    free, total = free_memory(torch.device("cpu")), num_bytes(sum(sizes.values()), spaces)
    if free is not None and total > free:
        key, size = max(sizes.items(), key=lambda item: item[1])
        raise ConfigError(
            f"{key}={size:,}: the replay buffers take {total / 1e9:.1f} GB when they are full, but only "
            f"{free / 1e9:.1f} GB of memory is free; use a smaller one"
        )


def check_limit(config: Config, env: Environment, key: str, remedy: str) -> None:
    """Check that episodes end; if not, raise a ConfigError with the key at fault and the remedy."""
    reason = endless(env, generator(config.seed, "limit"))
    if reason is not None:
        wrapper = "the wrapper gymnasium.wrappers.TimeLimit"
        raise ConfigError(f"{key}: episodes have no time limit ({reason}); add {remedy} or {wrapper}")


def check_known_functions(config: Config, spaces: SpaceSpec) -> None:
    """Check on two rows that known functions accept the environment's data and return a number per row."""
    stream = generator(config.seed, "check")
    obs, next_obs = torch.rand(2, 2, spaces.obs_size, generator=stream)
    action = torch.stack([spaces.actions.sample(stream), spaces.actions.sample(stream)])
    for name, options in (("reward", config.model.reward), ("is_done", config.model.is_done)):
        if not isinstance(options, KnownOptions):
            continue
        key = f"model.{name}.function={options.function}"
        try:
            function = build.build_component(options, spaces, stream)
            shape = tuple(function.predict(obs, action, next_obs, stream).shape)
        except Exception as error:  # a user's function may raise anything
            reason = one_line(f"{type(error).__name__}: {error}")
            learned = f"model/{name}={'deterministic' if name == 'reward' else 'learned'}"
            raise ConfigError(
                f"{key}: does not fit {config.env.id}: {reason}{place_of(error)}; {learned} learns it, and "
                f"env=gym env.id={config.env.id} assumes nothing that is known of another environment"
            ) from error
        if shape != (2,):
            raise ConfigError(f"{key}: returns shape {shape} for a batch of 2, but must return (2,)")


def _check_gradients(config: Config, spaces: SpaceSpec) -> None:
    """Check that gradients can flow through actions and rewards."""
    key, remedy = f"mbpo.training_horizon={config.mbpo.training_horizon}", "or algorithm=mbpo"
    can_imagine = hasattr(resolve(config.agent._target_), "update_in_world")
    if not (can_imagine and isinstance(spaces.actions, ContinuousActions)):
        raise ConfigError(
            f"{key}: agent={config.agent.name} with {SUITABLE[type(spaces.actions)][0]} has no gradient "
            f"through the model; use sac, td3 or ddpg with continuous actions, {remedy}"
        )
    options = config.model.reward
    if not isinstance(options, KnownOptions):
        return
    stream = generator(config.seed, "check")
    reward = build.build_component(options, spaces, stream)
    obs, next_obs = torch.rand(2, 64, spaces.obs_size, generator=stream)
    action = spaces.actions.sample_rows(64, stream)
    try:
        result = reward.most_likely(*(each.requires_grad_() for each in (obs, action, next_obs)))
    except RuntimeError as error:  # of torch, such as for a conversion to NumPy
        raise ConfigError(
            f"model.reward.function={options.function}: not differentiable, as {key} needs it: "
            f"{one_line(str(error))}; use operations of torch, or model/reward=deterministic, {remedy}"
        ) from error
    if not result.requires_grad and result.std() > 0:
        log.warning(
            "model.reward.function=%s has no gradient: the actor learns from the critics' alone",
            options.function,
        )


def _check_actions(config: Config, spaces: SpaceSpec) -> None:
    """Check that the agent and all noise support the environment's kind of actions."""
    kind, agents, explorations, noises = SUITABLE[type(spaces.actions)]
    noise = config.mbpo.model_rollout_options.noise_options if build.uses_model(config) else None
    for key, options, suitable in (
        ("agent", config.agent, agents),
        ("agent.exploration", build.exploration_of(config), explorations),
        ("mbpo.model_rollout_options.noise_options", noise, noises),
    ):
        if options is None:
            continue
        component = resolve(options._target_)
        if not isinstance(spaces.actions, getattr(component, "actions", object)):  # default: both kinds
            name = config.agent.name if key == "agent" else component.__name__
            raise ConfigError(f"{key}={name}: not for {kind}, which {config.env.id} has; use {suitable}")
        if key != "agent" and not isinstance(options, EmptyOptions):
            try:
                build.build_component(options, spaces)
            except ValueError as error:
                raise ConfigError(f"{key}.{error} of {config.env.id}") from error
