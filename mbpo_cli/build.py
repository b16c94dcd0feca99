"""The composition root: builds the objects that the typed configuration describes.

The only module that builds what `_target_` names. Does not know how training works.
"""

from __future__ import annotations

import itertools
import logging
import operator
import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, cast

import gymnasium as gym
import torch

from mbpo_cli.buffers import LookAheadBuffer, ReplayBuffer, Unseen, num_bytes, num_real_of
from mbpo_cli.config.typed import Config, options_in
from mbpo_cli.envs import environment
from mbpo_cli.envs.collector import Collector
from mbpo_cli.envs.environment import Environment
from mbpo_cli.envs.spaces import UnsuitableSpace
from mbpo_cli.envs.watchdog import watching
from mbpo_cli.envs.wrappers import BadWrapper
from mbpo_cli.evaluation.diagnostics import examined
from mbpo_cli.evaluation.evaluate import Evaluator
from mbpo_cli.exploration import EmptyOptions, RolloutPolicy
from mbpo_cli.failures import ConfigError, RunFailed
from mbpo_cli.logs.logger import Logger
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.fit import ModelFitter
from mbpo_cli.models.guard import Guard
from mbpo_cli.models.known import Comparison
from mbpo_cli.models.uncertainty import Uncertainty
from mbpo_cli.models.world import LearnedWorld
from mbpo_cli.nn import compilation
from mbpo_cli.nn.machine import free_memory, has_bfloat16, num_cores
from mbpo_cli.nn.networks import hidden_products_in
from mbpo_cli.nn.seeding import episode_seed, generator
from mbpo_cli.options import Component, resolve
from mbpo_cli.rollouts import lost_experience
from mbpo_cli.trainer import ModelBased, Trainer
from mbpo_cli.types import Accelerate, Agent, ImaginingAgent, SpaceSpec

log = logging.getLogger(__name__)

# A second thread does not speed up layers of 64 units; it makes layers of 256 units 1.5 times as fast.
MIN_UNITS_FOR_THREADS = 128
MAX_THREADS = 4


def build_component(options: Component, *arguments: Any) -> Any:
    """Build the class that `_target_` names from its options and further arguments."""
    return resolve(options._target_)(options, *arguments)


def build_device(config: Config) -> torch.device:
    """Return the device to train on.

    Raises:
        ConfigError: It does not exist.
    """
    name = config.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(0|[1-9]\d*))?", name)
    if match is None:
        raise ConfigError(f"device={name}: must be auto, cpu, cuda or cuda:i")
    count = torch.cuda.device_count()
    if name != "cpu" and int(match[1] or 0) >= count:
        raise ConfigError(f"device={name}: torch sees {count} GPUs; use device=cpu or device=auto")
    return torch.device(name)


def build_env(config: Config, render_mode: str | None = None) -> Environment:
    """Build the environment, with one of Gymnasium's render modes or none.

    Raises:
        ConfigError: It cannot be built, or no agent supports its spaces.
    """
    try:
        with watching(config.env.step_timeout, config.env.id, "making it"):
            return environment.make(config.env, render_mode)
    except (UnsuitableSpace, BadWrapper, gym.error.Error, ImportError, TypeError) as error:
        raise ConfigError(environment.fault_of(error, config.env)) from error


def exploration_of(config: Config) -> Component | None:
    """Return the options of the agent's exploration noise, or None if it has none."""
    options = getattr(config.agent, "exploration", None)
    return options if isinstance(options, Component) else None


def build_agent(config: Config, spaces: SpaceSpec, device: torch.device) -> Agent:
    """Build the base agent, with its exploration noise if it has one."""
    exploration = exploration_of(config)
    noise = [] if exploration is None else [build_component(exploration, spaces)]
    with hidden_products_in(getattr(torch, config.precision)):
        stream = generator(config.seed, "agent", device=device)
        agent: Agent = build_component(config.agent, spaces, stream, *noise)
    return agent


def num_threads(config: Config, in_sweep: bool) -> int:
    """Return the number of CPU threads for torch.

    Torch's threads spin while they wait for each other, which makes them much slower than a single thread
    on cores that other jobs use. `auto` therefore leaves half of this process's cores free.
    """
    if config.threads != "auto":
        return config.threads
    sizes = [value for key, _, _, value in options_in(config) if key.endswith("hidden_sizes")]
    if in_sweep or max(itertools.chain(*sizes), default=0) < MIN_UNITS_FOR_THREADS:
        return 1
    return min(max(num_cores() // 2, 1), MAX_THREADS)


def num_updates(config: Config) -> int:
    """Return a lower estimate of the number of gradient steps that the agent will take."""
    agent, every = config.agent, config.agent.learning_frequency
    num_iterations = 0  # the length of episodes is unknown
    if every != "episode":
        num_iterations = (config.trainer.num_env_steps - config.num_warm_start_steps) // every
    return num_iterations * agent.num_gradient_steps_per_update + config.mbpo.first_updates


def agent_compiles(config: Config, device: torch.device) -> bool:
    """Return True if the agent's gradient step should be compiled."""
    # Through the model, a step gains more than it takes longer to compile.
    gain = 2 if config.mbpo.training_horizon else 1
    return compiles(config, device, gain * num_updates(config))


def num_fit_steps(config: Config) -> int:
    """Return a lower estimate of the number of gradient steps that a learned function will take."""
    training, mbpo = config.model.training, config.mbpo
    if mbpo.generate_every == "episode":
        return 0  # the length of episodes is unknown
    every = mbpo.fit_every or mbpo.generate_every
    num_fits = (config.trainer.num_env_steps - config.num_warm_start_steps) // every
    num_epochs = training.least_epochs(mbpo.num_epoch_for_training_model)
    num_batches = training.num_mini_batches
    if num_batches == "all":  # the buffer is half full on average
        rows = min(config.trainer.num_env_steps, config.agent.experience_buffer_length) // 2
        num_batches = int(rows * (1 - training.holdout_ratio)) // training.mini_batch_size
    return num_fits * num_epochs * num_batches


def compiles(config: Config, device: torch.device, num_steps: int) -> bool:
    """Return True if a function that takes `num_steps` gradient steps should be compiled.

    Raises:
        ConfigError: `compile=true` needs a compiler that is missing.
    """
    missing = compilation.missing_compiler()
    if config.compile == "auto":
        # The threshold holds for CPUs; compiling for GPUs also needs other tools.
        return device.type == "cpu" and missing is None and num_steps >= compilation.MIN_CALLS_THAT_PAY
    if config.compile and device.type == "cpu" and missing:
        raise ConfigError(f"compile=true: there is no C++ compiler {missing}; install it or use compile=auto")
    return config.compile


def updates_per_launch(config: Config) -> int:
    """Return the number of the agent's gradient steps to compile as one function."""
    if num_updates(config) < compilation.MIN_CALLS_FOR_SEVERAL:
        return 1
    per_step = config.agent.num_gradient_steps_per_update
    # A remainder would be another function to compile.
    return max(count for count in range(1, compilation.SEVERAL + 1) if per_step % count == 0)


def accelerator(config: Config, part: str, per_launch: int = 1) -> Accelerate:
    """Return a function that compiles gradient steps, `per_launch` of them as one function.

    With `compile=auto`, steps that cannot be compiled run uncompiled.
    """
    log.info("compiling the %s's gradient step: a minute or two (compile=false skips it)", part)
    return partial(compilation.compiled, optional=config.compile == "auto", per_launch=per_launch)


def build_rollout_policy(config: Config, agent: Agent, spaces: SpaceSpec) -> RolloutPolicy:
    """Build the policy that chooses actions in rollouts."""
    options = config.mbpo.model_rollout_options.noise_options
    is_empty = isinstance(options, EmptyOptions)
    return RolloutPolicy(agent, None if is_empty else build_component(options, spaces))


def build_model(config: Config, spaces: SpaceSpec, device: torch.device) -> EnvironmentModel:
    """Build the environment model."""
    functions = {}
    with hidden_products_in(getattr(torch, config.precision)):
        for name in ("transition", "reward", "is_done"):
            stream = generator(config.seed, "model", name, device=device)
            functions[name] = build_component(getattr(config.model, name), spaces, stream)
    return EnvironmentModel(**functions)


def uses_model(config: Config) -> bool:
    """Return True if mini-batches can contain generated experience."""
    size = config.mbpo.mini_batch_size
    return config.mbpo.use_model and num_real_of(size, config.mbpo.real_ratio) < size


def build_buffer(
    config: Config,
    key: str,
    spaces: SpaceSpec,
    device: torch.device,
    make: Callable[..., ReplayBuffer] = ReplayBuffer,
) -> ReplayBuffer:
    """Build a replay buffer whose capacity is the option `key`.

    Raises:
        RunFailed: It does not fit into the memory of the device.
    """
    capacity = operator.attrgetter(key)(config)
    try:
        return make(capacity, spaces, device)
    except RuntimeError as error:  # torch's, for lack of memory
        free = "" if (size := free_memory(device)) is None else f", but {size / 1e9:.1f} GB is free"
        needed = f"takes {num_bytes(capacity, spaces) / 1e9:.1f} GB of the memory of {device}"
        raise RunFailed(f"{key}={capacity:,}: {needed}{free}; use a smaller buffer") from error


def build_real_buffer(config: Config, spaces: SpaceSpec, device: torch.device) -> ReplayBuffer:
    """Build the replay buffer of real experience, which looks ahead if the agent's targets do."""
    key, agent = "agent.experience_buffer_length", config.agent
    if agent.num_steps_to_look_ahead == 1:
        return build_buffer(config, key, spaces, device)
    make = partial(
        LookAheadBuffer,
        num_steps=agent.num_steps_to_look_ahead,
        discount_factor=agent.discount_factor,
        num_envs=config.env.num_envs,
    )
    return build_buffer(config, key, spaces, device, make)


def build_model_based(
    config: Config, agent: Agent, spaces: SpaceSpec, device: torch.device
) -> ModelBased | None:
    """Build what MBPO adds to the base agent, or return None if all experience is real."""
    if not uses_model(config):
        return None
    if lost := lost_experience(config.mbpo, config.trainer.num_env_steps, config.num_warm_start_steps):
        log.warning("%s", lost)
    model = build_model(config, spaces, device)
    if model.learned and compiles(config, device, num_fit_steps(config)):
        model.compile(accelerator(config, "model"), config.model.training.mini_batch_size)
    stream = generator(config.seed, "model", "fit", device=device)
    uncertainty = Uncertainty(config.mbpo.model_rollout_options, spaces.obs_size, device)
    world = None
    if config.mbpo.training_horizon > 0:
        world = LearnedWorld(model, config.mbpo.training_horizon, uncertainty)
        cast(ImaginingAgent, agent).enter(world, config.mbpo.critic_share)
    return ModelBased(
        model=model,
        fitter=ModelFitter(config.model.training, config.agent.experience_buffer_length, stream),
        policy=build_rollout_policy(config, agent, spaces),
        buffer=build_buffer(config, "mbpo.model_experience_buffer_length", spaces, device),
        guard=Guard(config.mbpo.max_relative_error, through_model=world is not None),
        uncertainty=uncertainty,
        compare=Unseen(Comparison(model.known, config.model.allow_mismatch)),
        world=world,
    )


def examine(evaluator: Evaluator, trainer: Trainer) -> None:
    """Run the diagnostics on the episodes of the last evaluation, and log the results."""
    learned = trainer.model_based
    fitted = None
    if learned is not None and trainer.num_model_trainings > 0:
        fitted = (learned.model, learned.buffer)
    found = examined(
        agent=trainer.agent,
        discount_factor=trainer.agent_options.discount_factor,
        channels=trainer.collector.spaces.channels,
        episodes=evaluator.episodes,
        real_buffer=trainer.real_buffer,
        fitted=fitted,
        stream=generator(trainer.seed, "diagnostics", trainer.env_steps, device=trainer.device),
    )
    trainer.logger.log(found.metrics)
    if not trainer.options.picture_is_due(trainer.env_steps):
        return
    from mbpo_cli.evaluation import pictures  # takes half a second, which runs without pictures save

    trainer.logger.show(trainer.env_steps, {"diagnose/actions": found.actions})
    picture = pictures.of_model(found)
    if picture is not None:
        trainer.logger.show(trainer.env_steps, {"diagnose/model": picture})


def build_trainer(
    config: Config,
    logger: Logger,
    stack: ExitStack,
    should_stop: Callable[[], bool] = lambda: False,
    before_step: Callable[[Trainer], None] = lambda trainer: None,
) -> Trainer:
    """Build everything that a run needs; `stack` closes the environments when it is closed."""
    device = build_device(config)
    if config.precision == "bfloat16" and not has_bfloat16(device):
        log.warning("precision=bfloat16: this %s has no instructions for it; float32 is faster", device.type)
    envs = [stack.enter_context(closing(build_env(config))) for _ in range(config.env.num_envs)]
    spaces = envs[0].spaces
    evaluator = Evaluator(
        partial(build_env, config),
        config.trainer.num_eval_episodes,
        config.seed,
        device,
        should_stop=should_stop,
        keeps_episodes=config.trainer.diagnostics,
    )
    agent = build_agent(config, spaces, device)
    model_based = build_model_based(config, agent, spaces, device)
    is_compiled = agent_compiles(config, device)
    if is_compiled:
        agent.compile(accelerator(config, "agent", updates_per_launch(config)))
    return Trainer(
        options=config.trainer,
        agent_options=config.agent,
        mbpo_options=config.mbpo,
        seed=config.seed,
        device=device,
        agent=agent,
        real_buffer=build_real_buffer(config, spaces, device),
        model_based=model_based,
        collector=Collector(envs, partial(episode_seed, config.seed, "environment")),
        evaluate=evaluator,
        logger=logger,
        begins_with_data=config.data is not None,
        should_stop=should_stop,
        before_step=before_step,
        after_evaluation=partial(examine, evaluator) if config.trainer.diagnostics else lambda trainer: None,
        undoing_if_stopped=compilation.UndoingIfStopped(should_stop, is_compiled),
    )
