"""Begin a run with what is there already: recorded data, or another run's agent, model or real experience.

All is read before the first step and never again, as a checkpoint of the new run holds everything. Does not
know training.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mbpo_cli.build import build_agent, build_env, build_model, uses_model
from mbpo_cli.config.typed import Config
from mbpo_cli.envs.recorded import transitions_of
from mbpo_cli.exploration import Noise
from mbpo_cli.failures import ConfigError, RunFailed
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.function import LearnedFunction
from mbpo_cli.models.known import Comparison
from mbpo_cli.nn.optimizers import Optimizer
from mbpo_cli.storage import data_sets
from mbpo_cli.trained.load import Trained, load
from mbpo_cli.trainer import Trainer
from mbpo_cli.types import Agent, SpaceSpec, Transitions

# Options that make a network what it is, of functions of the model and of agents.
OF_FUNCTIONS = (
    "_target_",
    "distribution",
    "num_networks",
    "num_elites",
    "hidden_sizes",
    "layer_norm",
    "predict_difference",
    "inputs",
)
OF_AGENTS = (
    "_target_",
    "hidden_sizes",
    "activation",
    "normalize_observations",
    "critics.number",
    "critics.layer_norm",
    "critics.scale_outputs",
)
# What an agent has besides what it has learned; a new run has its own.
ANEW = (Optimizer, Noise, torch.Generator)


def begin(trainer: Trainer, config: Config, trust: Sequence[str]) -> None:
    """Give a trainer, before its first step, what the options `data` and `from_run` name."""
    mbpo = trainer.model_based
    spaces = trainer.collector.spaces
    experience = _load(config, spaces, trust, trainer.agent, None if mbpo is None else mbpo.model)
    if experience is not None:
        trainer.begin_with(experience.to(trainer.device))
    if mbpo is not None and mbpo.world is not None:
        mbpo.world.refresh()


def check(config: Config, spaces: SpaceSpec, trust: Sequence[str]) -> None:
    """Check that everything that the options `data` and `from_run` name can be read and fits.

    Raises:
        ConfigError: It cannot, or does not.
    """
    parts = (config.agent, config.model.transition, config.model.reward, config.model.is_done)
    if config.data is None and all(getattr(part, "from_run", None) is None for part in parts):
        return  # nothing is built in vain
    cpu = torch.device("cpu")
    model = build_model(config, spaces, cpu) if uses_model(config) else None
    _load(config, spaces, trust, build_agent(config, spaces, cpu), model)


def _load(
    config: Config, spaces: SpaceSpec, trust: Sequence[str], agent: Agent, model: EnvironmentModel | None
) -> Transitions | None:
    """Load agent and model, and return the real experience to begin with, or None."""

    @cache
    def trained(path: str) -> Trained:
        return load(Path(path), trust=trust, remedy="trust=[{}]")

    functions = {} if model is None else model.functions
    for name, function in functions.items():
        options = getattr(config.model, name)
        if options.from_run is not None:
            with _explained(f"model.{name}.from_run", options.from_run):
                if Path(options.from_run).is_file():
                    _begin_with_weights(function, Path(options.from_run))
                    continue
                run = trained(options.from_run)
                _check_same_spaces(run.spaces, spaces)
                _check_same_options(getattr(run.config.model, name), options, OF_FUNCTIONS)
                if not run.state.get("num_model_trainings"):
                    raise ConfigError("it has no fitted model")
                function.begin_with(run.state["model"][name])
    experience = None
    if config.agent.from_run is not None:
        with _explained("agent.from_run", config.agent.from_run):
            run = trained(config.agent.from_run)
            _check_same_spaces(run.spaces, spaces)
            _check_same_options(run.config.agent, config.agent, OF_AGENTS)
            _load_agent(agent, run.state["agent"])
            if not config.agent.reset_experience_buffer_before_training:
                experience = _experience_of(run)
    if config.data is not None:
        with _explained("data", config.data):
            experience = _data(config, spaces, trained)
            if model is not None:
                Comparison(model.known, config.model.allow_mismatch)(experience, 0)
    return experience


def _data(config: Config, spaces: SpaceSpec, trained: Callable[[str], Trained]) -> Transitions:
    """Return the transitions that the option `data` names."""
    name = str(config.data)
    if name.endswith(data_sets.SUFFIXES) or data_sets.is_minari_id(name):
        arrays = data_sets.read(name)
        with closing(build_env(config)) as env:
            found = transitions_of(arrays, spaces, env.max_steps)
    elif Path(name).is_file():
        raise ConfigError(f"must be a run, a Minari data set, or end in {', '.join(data_sets.SUFFIXES)}")
    else:
        run = trained(name)
        _check_same_spaces(run.spaces, spaces)
        found = _experience_of(run)
    if len(found) > config.agent.experience_buffer_length:
        size = f"agent.experience_buffer_length={config.agent.experience_buffer_length:,}"
        raise ConfigError(f"has {len(found):,} transitions; {size} must be at least that")
    return found


def _experience_of(run: Trained) -> Transitions:
    experience = run.experience()
    if len(experience) == 0:
        raise ConfigError("it has no real experience yet")
    return experience


def _begin_with_weights(function: LearnedFunction, path: Path) -> None:
    """Begin with the tensors in a file, named as in the `state_dict` of the function's network."""
    is_safe = path.suffix == ".safetensors"
    try:
        read = safetensors.torch.load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, safetensors.SafetensorError):
        read = None  # whose message recommends to run what the file contains
    if not isinstance(read, Mapping):
        raise ConfigError("must have tensors by name, such as mlp.weights.0, and nothing else")
    own = function.network.state_dict()
    if unknown := sorted(map(str, read.keys() - own.keys())):
        raise ConfigError(f"has {', '.join(unknown)}, which the network has not")
    for name, tensor in own.items():
        value, shape = read.get(name), list(tensor.shape)
        if not isinstance(value, Tensor) or list(value.shape) != shape:
            found = list(value.shape) if isinstance(value, Tensor) else "missing"
            raise ConfigError(f"{name} must have the shape {shape}, and is {found}")
        if not bool(value.isfinite().all()):
            raise ConfigError(f"{name} is not finite")
        if name.endswith(".std") and not bool((value > 0).all()):
            raise ConfigError(f"{name}, which normalizes, must be above 0")
    function.begin_with({**function.state_dict(), "network": read})


def _load_agent(agent: Agent, state: dict[str, Any]) -> None:
    """Load what another agent has learned, without its optimizers, exploration and random streams."""
    own = agent.state_dict()
    kept = {name: part for name, part in own.items() if isinstance(getattr(agent, name, None), ANEW)}
    missing = sorted(own.keys() - state.keys() - kept.keys())
    if missing:
        raise ConfigError(f"its agent has no {', '.join(missing)}, as its options differ")
    agent.load_state_dict({**state, **kept})


def _check_same_spaces(theirs: SpaceSpec, own: SpaceSpec) -> None:
    for name, value in vars(own).items():
        other = getattr(theirs, name)
        if other != value:
            raise ConfigError(f"its environment has other spaces: {name} {other} instead of {value}")


def _check_same_options(theirs: Any, own: Any, names: Sequence[str]) -> None:
    for name in names:
        values = [_option(options, name) for options in (theirs, own)]
        if values[0] != values[1]:
            raise ConfigError(f"it has {name}={values[0]}, this run {values[1]}")


def _option(options: Any, name: str) -> Any:
    """Return the value of an option by its dotted name; None if there is no such option."""
    for part in name.split("."):
        options = getattr(options, part, None)
    return options


@contextmanager
def _explained(key: str, path: str) -> Iterator[None]:
    """Turn whatever is wrong with a run or with data into an error that names the option."""
    try:
        yield
    except Exception as error:  # whatever unsuitable files and weights raise
        is_own = isinstance(error, ConfigError | RunFailed)
        reason = str(error).removeprefix(f"{path}: ") if is_own else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}={path}: {reason}") from error
