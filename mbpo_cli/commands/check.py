"""A trial of a configuration before anything is written: do its components fit together?

`config` checks the types and ranges of single options.
"""

from __future__ import annotations

import torch

from mbpo_cli import build
from mbpo_cli.config.typed import Config
from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.models.known import KnownOptions
from mbpo_cli.nn.seeding import generator
from mbpo_cli.options import resolve
from mbpo_cli.types import ContinuousActions, DiscreteActions, SpaceSpec

# For error messages: a kind of actions, and the agents, their noise and the rollout noise that suit it.
SUITABLE = {
    ContinuousActions: ("a Box of actions", "sac, td3 or ddpg", "gaussian or ornstein_uhlenbeck", "gaussian"),
    DiscreteActions: ("Discrete actions", "dqn or sac", "epsilon_greedy", "epsilon_greedy"),
}


def check(config: Config) -> None:
    """Check that the configuration can be built; raise a ConfigError if not."""
    build.compiles(config, build.build_device(config), build.num_updates(config))
    env = build.build_env(config)
    env.close()
    _check_actions(config, env.spaces)
    if build.uses_model(config):
        _check_known_functions(config, env.spaces)


def _check_known_functions(config: Config, spaces: SpaceSpec) -> None:
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
            raise ConfigError(f"{key}: does not fit {config.env.id}: {reason}") from error
        if shape != (2,):
            raise ConfigError(f"{key}: returns shape {shape} for a batch of 2, but must return (2,)")


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
