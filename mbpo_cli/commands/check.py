"""Whether the parts of a configuration fit together, told before anything is written.

Types and ranges of single options are `config`'s business.
"""

from __future__ import annotations

import torch

from mbpo_cli.build import (
    build_component,
    build_device,
    build_env,
    compiles,
    exploration_of,
    num_updates,
    uses_model,
)
from mbpo_cli.config.typed import Config
from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.models.known import KnownOptions
from mbpo_cli.options import resolve
from mbpo_cli.seeding import generator
from mbpo_cli.types import ContinuousActions, DiscreteActions, SpaceSpec

# For an error message: each kind of actions, and what here serves it as agent, as its noise, and in rollouts.
SUITABLE = {
    ContinuousActions: ("a Box of actions", "sac, td3 or ddpg", "gaussian or ornstein_uhlenbeck", "gaussian"),
    DiscreteActions: ("Discrete actions", "dqn or sac", "epsilon_greedy", "epsilon_greedy"),
}


def check(config: Config) -> None:
    """Check, before anything is written, that the configuration can be built.

    Raises:
        ConfigError: It cannot.
    """
    compiles(config, build_device(config), num_updates(config))
    env = build_env(config)
    env.close()
    check_actions(config, env.spaces)
    if uses_model(config):
        check_known_functions(config, env.spaces)


def check_known_functions(config: Config, spaces: SpaceSpec) -> None:
    """Check, on two rows, that known functions take what the environment has and return one number a row.

    Raises:
        ConfigError: One of them does not.
    """
    stream = generator(config.seed, "check")
    obs, next_obs = torch.rand(2, 2, spaces.obs_size, generator=stream)
    action = torch.stack([spaces.actions.sample(stream), spaces.actions.sample(stream)])
    for name, options in (("reward", config.model.reward), ("is_done", config.model.is_done)):
        if not isinstance(options, KnownOptions):
            continue
        key = f"model.{name}.function={options.function}"
        try:
            shape = tuple(
                build_component(options, spaces, stream).predict(obs, action, next_obs, stream).shape
            )
        except Exception as error:  # whatever a user's function may raise
            reason = one_line(f"{type(error).__name__}: {error}")
            raise ConfigError(f"{key}: does not fit {config.env.id}: {reason}") from error
        if shape != (2,):
            raise ConfigError(f"{key}: returns shape {shape} for a batch of 2, but must return (2,)")


def check_actions(config: Config, spaces: SpaceSpec) -> None:
    """Check that the agent and all noise can serve the environment's actions.

    Raises:
        ConfigError: One of them needs the other kind.
    """
    kind, agents, explorations, noises = SUITABLE[type(spaces.actions)]
    exploration = exploration_of(config)
    noise = config.mbpo.model_rollout_options.noise_options if uses_model(config) else None
    for key, options, suitable in (
        ("agent", config.agent, agents),
        ("agent.exploration", exploration, explorations),
        ("mbpo.model_rollout_options.noise_options", noise, noises),
    ):
        if options is None:
            continue
        part = resolve(options._target_)
        if not isinstance(spaces.actions, getattr(part, "actions", object)):  # both kinds unless it says so
            name = config.agent.name if key == "agent" else part.__name__
            raise ConfigError(f"{key}={name}: not for {kind}, which {config.env.id} has; use {suitable}")
