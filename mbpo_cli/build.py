"""The composition root: from the typed configuration to live objects, and nothing else.

The only room that makes objects out of `_target_`.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import gymnasium as gym
import torch

from mbpo_cli.buffers import ReplayBuffer, num_real_of
from mbpo_cli.config.typed import Config, options_in
from mbpo_cli.envs import environment
from mbpo_cli.envs.collector import Collector
from mbpo_cli.envs.environment import BadWrapper, Environment
from mbpo_cli.envs.spaces import UnsuitableSpace
from mbpo_cli.evaluation.diagnostics import Diagnostics
from mbpo_cli.evaluation.evaluate import Evaluator
from mbpo_cli.exploration import EmptyOptions, RolloutPolicy
from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.logs.logger import Logger
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.fit import ModelFitter
from mbpo_cli.nn import compilation
from mbpo_cli.nn.machine import has_bfloat16, num_cores
from mbpo_cli.nn.networks import hidden_products_in
from mbpo_cli.options import Component, resolve
from mbpo_cli.seeding import episode_seed, generator
from mbpo_cli.trainer import ModelBased, Trainer, TrainerOptions
from mbpo_cli.types import Accelerate, Agent, SpaceSpec

log = logging.getLogger(__name__)

# Two threads make layers of 64 units no faster, and those of 256 by half.
MIN_UNITS_THAT_PAY = 128
MAX_THREADS = 4
# Pictures of a run, the last one at its end: what they show changes slowly, and each takes half a second.
NUM_PICTURES = 3

# What an error names, and the group of optional dependencies that mends it.
EXTRAS = {"mujoco": "mujoco", "box2d": "box2d", "shimmy": "dmc", "dm_control": "dmc"}


def build_component(options: Component, *arguments: Any) -> Any:
    """Make an object of the class that `_target_` names, from its options and further arguments."""
    return resolve(options._target_)(options, *arguments)


def build_device(config: Config) -> torch.device:
    """Return the device to train on.

    Raises:
        ConfigError: There is no such device.
    """
    name = config.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9]\d*))?", name):
        raise ConfigError(f"device={name}: must be auto, cpu, cuda or cuda:i")
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= count:
        raise ConfigError(f"device={name}: torch sees {count} GPUs; use device=cpu or device=auto")
    return torch.device(name)


def build_env(config: Config, render_mode: str | None = None) -> Environment:
    """Make the environment, to be drawn in one of Gymnasium's ways or not at all.

    Raises:
        ConfigError: There is no such environment, or no agent can serve its spaces.
    """
    key = f"env.id={config.env.id}"
    try:
        return environment.make(config.env, render_mode)
    except UnsuitableSpace as error:
        raise ConfigError(f"{key}: {error}") from error
    except ModuleNotFoundError as error:
        if error.name and f"{config.env.module}.".startswith(f"{error.name}."):
            key = f"env.module={config.env.module}"
            raise ConfigError(f"{key}: there is no such module{_extra(key)}") from error
        raise ConfigError(f"{key}: {one_line(error)}") from error
    except BadWrapper as error:
        raise ConfigError(f"env.wrappers={one_line(error)}") from error
    except (gym.error.DependencyNotInstalled, gym.error.NamespaceNotFound) as error:
        raise ConfigError(f"{key}: {one_line(error)}{_extra(str(error))}") from error
    except (gym.error.Error, ImportError) as error:
        raise ConfigError(f"{key}: {one_line(error)}") from error
    except TypeError as error:
        kwargs = "null" if config.env.kwargs is None else config.env.kwargs
        raise ConfigError(f"env.kwargs={kwargs}: not accepted by {config.env.id}: {error}") from error


def _extra(message: str) -> str:
    """Return a hint to the extra that installs what an error message misses."""
    extra = next((extra for name, extra in EXTRAS.items() if name in message.lower()), None)
    return f"; with this package's extra: pip install 'mbpo-cli[{extra}]'" if extra else ""


def exploration_of(config: Config) -> Component | None:
    """Return the options of the agent's noise, if it has such an option."""
    options = getattr(config.agent, "exploration", None)
    return options if isinstance(options, Component) else None


def build_agent(config: Config, spaces: SpaceSpec, device: torch.device) -> Agent:
    """Make the base agent, with its exploration noise if its options name one."""
    arguments = [spaces, generator(config.seed, "agent", device=device)]
    exploration = exploration_of(config)
    if exploration is not None:
        arguments.append(build_component(exploration, spaces))
    with hidden_products_in(getattr(torch, config.precision)):
        agent: Agent = build_component(config.agent, *arguments)
    return agent


def num_threads(config: Config, in_sweep: bool) -> int:
    """Return how many CPU threads torch is to use.

    Threads of torch wait for each other by spinning, which is many times slower than a single thread
    where another job is at work. `auto` therefore leaves half of this process's cores to others.
    """
    if config.threads != "auto":
        return config.threads
    sizes = [value for key, _, _, value in options_in(config) if key.endswith("hidden_sizes")]
    if in_sweep or max(itertools.chain(*sizes), default=0) < MIN_UNITS_THAT_PAY:
        return 1
    return min(max(num_cores() // 2, 1), MAX_THREADS)


def num_updates(config: Config) -> int:
    """Return how many gradient steps the agent is going to take."""
    steps = config.trainer.num_env_steps - config.agent.num_warm_start_steps
    return steps * config.agent.num_gradient_steps_per_update


def num_fit_steps(config: Config) -> int:
    """Estimate how many gradient steps a learned function is going to take, from below."""
    training, mbpo = config.model.training, config.mbpo
    if mbpo.generate_every == "episode":
        return 0  # who knows how long they are
    num_fits = (config.trainer.num_env_steps - config.agent.num_warm_start_steps) // mbpo.generate_every
    num_epochs = mbpo.num_epoch_for_training_model
    if training.patience is not None:
        num_epochs = min(num_epochs, training.patience + 1)
    num_batches = training.num_mini_batches
    if num_batches == "all":  # of a buffer that is half full on average
        rows = min(config.trainer.num_env_steps, config.agent.experience_buffer_length) // 2
        num_batches = int(rows * (1 - training.holdout_ratio)) // training.mini_batch_size
    return num_fits * num_epochs * num_batches


def compiles(config: Config, device: torch.device, num_steps: int) -> bool:
    """Tell whether gradient steps of which there are to be so many are to be compiled.

    Raises:
        ConfigError: They must be, and there is no compiler.
    """
    missing = compilation.missing_compiler()
    if config.compile == "auto":
        # Compilation for GPUs needs other tools, and has other gains.
        return device.type == "cpu" and missing is None and num_steps >= compilation.MIN_CALLS_THAT_PAY
    if config.compile and device.type == "cpu" and missing:
        raise ConfigError(f"compile=true: there is no C++ compiler {missing}; install it or use compile=auto")
    return config.compile


def updates_per_launch(config: Config) -> int:
    """Return how many of the agent's gradient steps are to be compiled as one function."""
    if num_updates(config) < compilation.MIN_CALLS_FOR_SEVERAL:
        return 1
    per_step = config.agent.num_gradient_steps_per_update
    # What is left over would be one more function to compile.
    return max(count for count in range(1, compilation.SEVERAL + 1) if per_step % count == 0)


def accelerator(config: Config, what: str, per_launch: int = 1) -> Accelerate:
    """Return what compiles the steps of `what`, so many of them as one function.

    Where nobody asked for it, they may go on without.
    """
    log.info("the %s's first gradient step is compiled: a minute or two (compile=false skips it)", what)
    return partial(compilation.compiled, optional=config.compile == "auto", per_launch=per_launch)


def build_rollout_policy(config: Config, agent: Agent, spaces: SpaceSpec) -> RolloutPolicy:
    """Make what chooses the actions in rollouts."""
    options = config.mbpo.model_rollout_options.noise_options
    is_empty = isinstance(options, EmptyOptions)
    return RolloutPolicy(agent, None if is_empty else build_component(options, spaces))


def build_model(config: Config, spaces: SpaceSpec, device: torch.device) -> EnvironmentModel:
    """Make the model of the environment."""
    model = config.model
    parts = {"transition": model.transition, "reward": model.reward, "is_done": model.is_done}
    with hidden_products_in(getattr(torch, config.precision)):
        return EnvironmentModel(
            **{
                name: build_component(options, spaces, generator(config.seed, "model", name, device=device))
                for name, options in parts.items()
            }
        )


def uses_model(config: Config) -> bool:
    """Tell whether any generated experience can enter a mini-batch."""
    size = config.mbpo.mini_batch_size
    return config.mbpo.use_model and num_real_of(size, config.mbpo.real_ratio) < size


def build_model_based(
    config: Config, agent: Agent, spaces: SpaceSpec, device: torch.device
) -> ModelBased | None:
    """Make what MBPO adds to the agent, or None if all experience is to be real."""
    if not uses_model(config):
        return None
    model = build_model(config, spaces, device)
    if compiles(config, device, num_fit_steps(config)):
        model.compile(accelerator(config, "model"), config.model.training.mini_batch_size)
    return ModelBased(
        model=model,
        fitter=ModelFitter(
            config.model.training,
            config.agent.experience_buffer_length,
            generator(config.seed, "model", "fit", device=device),
        ),
        policy=build_rollout_policy(config, agent, spaces),
        buffer=ReplayBuffer(config.mbpo.model_experience_buffer_length, spaces, device),
    )


def picture_is_due(env_steps: int, options: TrainerOptions) -> bool:
    """Tell whether the evaluation after so many steps is the first in a new share of the training."""
    last = max(env_steps - options.evaluate_every_steps, 0)
    shares = [NUM_PICTURES * step // options.num_env_steps for step in (last, env_steps)]
    return shares[0] < shares[1]


def build_examiner(
    config: Config, spaces: SpaceSpec, device: torch.device, evaluator: Evaluator
) -> Callable[[Trainer], None]:
    """Make what looks at a trainer after each evaluation, and logs what it finds."""
    if not config.trainer.diagnostics:
        return lambda trainer: None

    def examine(trainer: Trainer) -> None:
        learned = trainer.model_based
        found = Diagnostics(
            trainer.agent,
            config.agent.discount_factor,
            spaces.channels,
            trainer.real_buffer,
            None if learned is None else learned.model,
            None if learned is None else learned.buffer,
            config.seed,
            device,
        )(trainer.env_steps, evaluator.episodes, trainer.num_model_trainings > 0)
        trainer.logger.log(found.metrics)
        if not picture_is_due(trainer.env_steps, config.trainer):
            return
        from mbpo_cli.evaluation import pictures  # half a second, which a run without pictures saves

        trainer.logger.show(trainer.env_steps, {"diagnose/actions": found.actions})
        picture = pictures.of_model(found)
        if picture is not None:
            trainer.logger.show(trainer.env_steps, {"diagnose/model": picture})

    return examine


def build_trainer(
    config: Config,
    logger: Logger,
    stack: ExitStack,
    should_stop: Callable[[], bool] = lambda: False,
    at_boundary: Callable[[Trainer], None] = lambda trainer: None,
) -> Trainer:
    """Make everything that a run needs.

    Args:
        config: What to build.
        logger: Where the run's metrics go.
        stack: Closes the environments when it is unwound.
        should_stop: Asked before every step.
        at_boundary: Called before every step.

    Raises:
        ConfigError: The parts do not fit together.
    """
    device = build_device(config)
    if config.precision == "bfloat16" and not has_bfloat16(device):
        log.warning("precision=bfloat16: this %s has no instructions for it; float32 is faster", device.type)
    envs = []
    for _ in range(config.env.num_envs):
        envs.append(build_env(config))
        stack.callback(envs[-1].close)
    spaces = envs[0].spaces
    evaluator = Evaluator(lambda: build_env(config), config.trainer.num_eval_episodes, config.seed, device)
    stack.callback(evaluator.close)
    agent = build_agent(config, spaces, device)
    if compiles(config, device, num_updates(config)):
        agent.compile(accelerator(config, "agent", updates_per_launch(config)))
    real_buffer = ReplayBuffer(config.agent.experience_buffer_length, spaces, device)
    model_based = build_model_based(config, agent, spaces, device)
    return Trainer(
        options=config.trainer,
        agent_options=config.agent,
        mbpo_options=config.mbpo,
        seed=config.seed,
        device=device,
        collector=Collector(envs, partial(episode_seed, config.seed, "environment")),
        agent=agent,
        real_buffer=real_buffer,
        model_based=model_based,
        evaluate=evaluator,
        logger=logger,
        should_stop=should_stop,
        at_boundary=at_boundary,
        after_evaluation=build_examiner(config, spaces, device, evaluator),
    )
