"""The typed configuration: from composed values to dataclasses, or one line that says what is wrong.

Knows the options of every room and no values. Components choose their options by `_target_`: the
class that it names declares them, so that a new agent needs no registration.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mbpo_cli.agents.options import AgentOptions
from mbpo_cli.envs.environment import EnvOptions
from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.models.fit import ModelTrainingOptions
from mbpo_cli.options import Component, Meaning, option, options_of, resolve
from mbpo_cli.storage.checkpoint import CheckpointOptions
from mbpo_cli.trainer import MBPOOptions, TrainerOptions


@dataclass
class ModelOptions:
    """The model of the environment: MATLAB's rlNeuralNetworkEnvironment."""

    transition: Component = option("transition functions (group model/transition)")
    reward: Component = option("reward function (group model/reward)")
    is_done: Component = option("is-done function (group model/is_done)")
    training: ModelTrainingOptions = option("how the model is fitted")

    def __post_init__(self) -> None:
        """Check what no single option can tell."""
        num_networks = getattr(self.transition, "num_networks", None)
        num_elites = getattr(self.transition, "num_elites", None)
        if num_elites not in (None, num_networks) and self.training.holdout_ratio == 0:
            raise ValueError(
                f"transition.num_elites={num_elites}: needs training.holdout_ratio > 0, "
                "as elites are chosen by their hold-out error"
            )


@dataclass
class Config:
    """Everything that determines a run."""

    seed: int = option("the one seed that feeds every random stream", low=0, high=2**63 - 1)
    device: str = option("auto = a GPU if there is one, cpu, cuda, or cuda:i")
    threads: int | Literal["auto"] = option(
        "CPU threads of torch; auto = half of the cores, at most 4, or 1 in a sweep and for small networks",
        low=1,
        high=1024,
    )
    compile: bool | Literal["auto"] = option(
        "whether gradient steps of agent and model are compiled, which takes a minute or two each at first; "
        "auto = where so many are to come that it pays"
    )
    precision: Literal["float32", "bfloat16"] = option(
        "of the matrix products between hidden layers, and of their gradients; bfloat16 has 2 to 3 digits "
        "and takes half the time, where processor or GPU have it"
    )
    agent: AgentOptions = option("the base agent (group agent)")
    env: EnvOptions = option("the environment (group env)")
    model: ModelOptions = option("the model of the environment")
    mbpo: MBPOOptions = option("model-based policy optimization (group mbpo)")
    checkpoint: CheckpointOptions = option("what is kept of a run while it runs")
    trainer: TrainerOptions = option("length of training, evaluation, logging (group trainer)")


def typed(values: Mapping[str, Any]) -> Config:
    """Convert composed and resolved values to the typed configuration.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or range.
    """
    config: Config = _dataclass(values, Config, "")
    return config


def _dataclass(values: Any, cls: type[Any], path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}={values}: must be a group of options, not a single value")
    if issubclass(cls, Component):
        cls = _component_options(values, cls, path)
    hints = get_type_hints(cls)
    prefix = f"{path}." if path else ""
    names = [field.name for field in fields(cls)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = (
                f"did you mean {prefix}{near[0]}?" if near else f"known here are {', '.join(sorted(names))}"
            )
            raise ConfigError(f"{prefix}{name}={values[name]}: no such option; {hint}")
    converted = {}
    for field in fields(cls):
        key = prefix + field.name
        if values.get(field.name, "???") == "???":
            raise ConfigError(f"{key}: needs a value: {field.metadata['meaning'].text}")
        converted[field.name] = _value(values[field.name], hints[field.name], field.metadata["meaning"], key)
    try:
        return cls(**converted)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _component_options(values: Mapping[str, Any], base: type[Component], path: str) -> type[Component]:
    target = values.get("_target_", "???")
    try:
        options = options_of(resolve(str(target)))
    except (ImportError, TypeError) as error:
        raise ConfigError(f"{path}._target_={target}: {error}") from error
    if not issubclass(options, base):
        raise ConfigError(f"{path}._target_={target}: its options must derive from {base.__name__}")
    return options


def _value(value: Any, hint: Any, meaning: Meaning, key: str) -> Any:
    """Convert one value to what the type hint asks for."""
    if is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(value, hint, key)
    for choice in _choices(hint):
        if get_origin(choice) is list and isinstance(value, list) and value:
            return [_value(item, get_args(choice)[0], meaning, key) for item in value]
        if get_origin(choice) is dict and isinstance(value, dict):
            return value
        if choice is type(None) and value is None:
            return None
        if get_origin(choice) is Literal and value in get_args(choice):
            return value
        if choice is bool and isinstance(value, bool):
            return value
        if choice is str and isinstance(value, str):
            if not value.isprintable():
                raise ConfigError(f"{key}={value!r}: must be text without control characters")
            return value
        if choice in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
            if choice is int and value != value // 1:
                break
            if not meaning.allows(value) or abs(value) == float("inf"):
                raise ConfigError(f"{key}={value}: must be a number {meaning.range or 'that is finite'}")
            return choice(value)
    raise ConfigError(f"{key}={_shown(value)}: must be {_words(hint)} ({meaning.text})")


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _shown(value: Any) -> str:
    return "null" if value is None else one_line(value)


def _words(hint: Any) -> str:
    """Describe a type to a person."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    words = []
    for choice in _choices(hint):
        if get_origin(choice) is Literal:
            words += [str(literal) for literal in get_args(choice)]
        elif get_origin(choice) is list:
            lists = {int: "a list such as [64, 64]", float: "a list of numbers"}
            words.append(lists.get(get_args(choice)[0], "a list"))
        elif get_origin(choice) is dict:
            words.append("a mapping such as {key: value}")
        else:
            words.append(names[choice])
    return " or ".join(words)


def options_in(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Meaning, Any]]:
    """Yield key, type, meaning and value of every option of a typed configuration, leaves only."""
    hints = get_type_hints(type(config))
    for field in fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        if is_dataclass(value):
            yield from options_in(value, f"{key}.")
        else:
            yield key, hints[field.name], field.metadata["meaning"], value


def _groups_in(config: Any, prefix: str = "") -> Iterator[tuple[str, Meaning]]:
    """Yield key and meaning of every option that is a group of options."""
    for field in fields(config):
        if is_dataclass(value := getattr(config, field.name)):
            yield prefix + field.name, field.metadata["meaning"]
            yield from _groups_in(value, f"{prefix}{field.name}.")


def suggest(key: str, config: Config) -> str | None:
    """Return the option that somebody who typed `key` probably meant, or None.

    MATLAB names are known; of several options with one MATLAB name, that nearest to `key` is meant.
    """
    known = {name: meaning for name, _, meaning, _ in options_in(config)}
    last = key.rpartition(".")[2]
    named = {**known, **dict(_groups_in(config))}
    matlab = [name for name, meaning in named.items() if last.lower() in map(str.lower, meaning.matlab)]
    for candidates, cutoff in ((matlab, 0.0), (list(known), 0.75)):
        near = difflib.get_close_matches(key, candidates, n=1, cutoff=cutoff)
        if near:
            return near[0]
    ends = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(last, ends, n=1, cutoff=0.75)
    return ends[near[0]] if near else None
