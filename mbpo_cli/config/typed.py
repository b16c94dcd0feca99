"""The typed configuration: composed values become dataclasses, or an error of one line.

Knows the options of every package and no values. The class that `_target_` names declares the options
of a component, so that a new agent needs no registration.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mbpo_cli.agents.options import AgentOptions
from mbpo_cli.envs.environment import EnvOptions
from mbpo_cli.evaluation.schedule import CheckpointOptions, TrainerOptions
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.fit import ModelTrainingOptions
from mbpo_cli.options import Component, Meaning, absolute, option, resolve
from mbpo_cli.rollouts import MBPOOptions
from mbpo_cli.storage.data_sets import is_minari_id

MAX_REASONS = 3  # that a message describes
NAMES = {
    bool: "true or false",
    str: "printable text",
    dict: "a mapping such as {key: value}",
    type(None): "null",
}


@dataclass
class ModelOptions:
    """The model of the environment: MATLAB's rlNeuralNetworkEnvironment."""

    transition: Component = option("transition functions (group model/transition)", matlab="TransitionFcn")
    reward: Component = option("reward function (group model/reward)", matlab="RewardFcn")
    is_done: Component = option("is-done function (group model/is_done)", matlab="IsDoneFcn")
    training: ModelTrainingOptions = option("how the model is fitted (group model/training)")
    allow_mismatch: bool = option(
        "true = warn once if a known function differs from what really happens; false = end the run if it "
        "does in more than 1 % of the steps"
    )
    from_run: str | None = option(
        "directory of a run, or of one of its checkpoints, whose learned functions this model begins with: "
        "the option of each function refers to it; null = random weights"
    )

    def __post_init__(self) -> None:
        self.from_run = absolute(self.from_run)
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

    seed: int = option("seed of all random streams", low=0, high=2**63 - 1)
    device: str = option("cpu, cuda, cuda:i, or auto = a GPU if there is one", matlab="UseDevice")
    threads: int | Literal["auto"] = option(
        "CPU threads of torch; auto = half of the cores, at most 4; 1 in a sweep and for small networks",
        low=1,
        high=1024,
    )
    compile: bool | Literal["auto"] = option(
        "compile the gradient steps of agent and model, which takes a minute or two each at the start; "
        "auto = if the run is long enough to gain from it"
    )
    precision: Literal["float32", "bfloat16"] = option(
        "precision of the matrix products between hidden layers and of their gradients; bfloat16 has 2 to 3 "
        "digits and takes half the time on processors and GPUs that support it"
    )
    data: str | None = option(
        "recorded experience to begin with, in place of the warm start: an .npz or HDF5 file with D4RL's "
        "arrays, a Minari data set on this machine, or the directory of a run or of one of its checkpoints; "
        "null = none"
    )
    agent: AgentOptions = option("the base agent (group agent)")
    env: EnvOptions = option("the environment (group env)")
    model: ModelOptions = option("the model of the environment")
    mbpo: MBPOOptions = option("model-based policy optimization (group mbpo)")
    checkpoint: CheckpointOptions = option("when checkpoints are written, and how many are kept")
    trainer: TrainerOptions = option("length of training, evaluation and logging (group trainer)")
    logger: dict[str, Component] = option(
        "where scalars and pictures are written besides metrics.jsonl (group logger, of which several can be "
        "chosen)"
    )

    def __post_init__(self) -> None:
        if self.data is not None and not is_minari_id(self.data):
            self.data = absolute(self.data)
        limit = self.mbpo.max_relative_error
        if limit is not None and self.mbpo.use_model and self.model.training.holdout_ratio == 0:
            raise ValueError(f"mbpo.max_relative_error={limit:g}: needs model.training.holdout_ratio > 0")
        if self.mbpo.use_model:
            self._check_uncertainty()
        if self.data is None:
            self._check_without_data()
        elif not self.agent.reset_experience_buffer_before_training:
            key = "agent.reset_experience_buffer_before_training"
            raise ValueError(f"{key}=false: brings experience of another run, and data={self.data}, too")
        if self.trainer.num_env_steps == 0 and not (self.mbpo.use_model and self.mbpo.first_updates > 0):
            raise ValueError("trainer.num_env_steps=0: needs mbpo.first_updates > 0, and the model")

    def _check_uncertainty(self) -> None:
        """Check that the ensemble is one that has the uncertainty that rollouts are limited by."""
        sizes = (getattr(self.model.transition, name, None) for name in ("num_elites", "num_networks"))
        is_single, distribution = 1 in sizes, getattr(self.model.transition, "distribution", None)
        for name in ("max_divergence", "max_lost_information"):
            limit = getattr(self.mbpo.model_rollout_options, name)
            if limit is None:
                continue
            key = f"mbpo.model_rollout_options.{name}={limit:g}"
            if is_single:
                raise ValueError(f"{key}: needs model.transition.num_elites greater than 1")
            if name == "max_lost_information" and distribution == "deterministic":
                raise ValueError(
                    f"{key}: needs model/transition=gaussian or constant_noise, which know noise"
                )

    def _check_without_data(self) -> None:
        if self.mbpo.data_ratio is not None:
            raise ValueError(f"mbpo.data_ratio={self.mbpo.data_ratio:g}: has no meaning without data")
        if self.trainer.num_env_steps == 0:
            raise ValueError("trainer.num_env_steps=0: needs data=... to learn from")

    @property
    def num_warm_start_steps(self) -> int:
        """Environment steps with random actions; with data, there are none."""
        return self.agent.num_warm_start_steps if self.data is None else 0


class WrongValues(ConfigError):
    """Options are wrong; the message has the first `reasons`, and the keys of the others."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(dict.fromkeys(reasons))
        told = list(self.reasons[:MAX_REASONS])
        others = ", ".join(re.split("[=:]", reason)[0] for reason in self.reasons[MAX_REASONS:])
        super().__init__("; also ".join(told + [f"wrong: {others}"] * bool(others)))


def typed(values: Mapping[str, Any]) -> Config:
    """Convert composed and resolved values to the typed configuration.

    Raises:
        WrongValues: Keys are unknown or missing, or values have the wrong type or range.
    """
    wrong: list[str] = []
    config: Config = _group(values, Config, "", wrong)
    if wrong:
        raise WrongValues(wrong)
    return config


def _group(values: Any, cls: type[Any], path: str, wrong: list[str]) -> Any:
    """Convert the values of a group; what is `wrong` with them is added to that list."""
    if not isinstance(values, Mapping):
        wrong.append(f"{path}={values}: must be a group of options, not a single value")
        return None
    prefix = f"{path}." if path else ""
    before = len(wrong)
    try:
        if issubclass(cls, Component):
            cls = _component_options(f"{prefix}_target_", str(values.get("_target_", "???")), cls)
        declared = options_of(cls)
        wrong += [_unknown(name, values[name], prefix, declared) for name in values if name not in declared]
        converted = {
            name: _option(values.get(name, "???"), hint, meaning, prefix + name, wrong)
            for name, (hint, meaning) in declared.items()
        }
        return cls(**converted) if len(wrong) == before else None
    except ConfigError as error:
        wrong.append(str(error))
    except ValueError as error:
        wrong.append(f"{prefix}{error}")
    return None


def _unknown(name: str, value: Any, prefix: str, declared: Mapping[str, tuple[Any, Meaning]]) -> str:
    near = [known for known, (_, meaning) in declared.items() if name in meaning.matlab]
    near = near or difflib.get_close_matches(str(name), declared, n=1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(sorted(declared))}"
    return f"{prefix}{name}={value}: no such option; {hint}"


def _option(value: Any, hint: Any, meaning: Meaning, key: str, wrong: list[str]) -> Any:
    """Convert the value of an option, which may be a group."""
    if value == "???":
        wrong.append(f"{key}: needs a value: {meaning.text}")
    elif isinstance(hint, type) and is_dataclass(hint):
        return _group(value, hint, key, wrong)
    elif component := component_in(hint):
        return _components(value, component, key, wrong)
    else:
        try:
            return _value(value, hint, meaning)
        except ValueError:
            shown = "null" if value is None else value
            reason = f"{key}={shown}: must be {words(hint, meaning)} ({meaning.text})"
            with suppress(ValueError):
                reason += f"; did you mean {_value(_number(value), hint, meaning)}?"
            wrong.append(reason)
    return None


def _number(value: Any) -> float:
    """Return the number that a text such as 20%, 5k or 2M stands for; raise a ValueError for others."""
    match = re.fullmatch(r"(\d*\.?\d+) ?([%kM])", str(value))
    if not match:
        raise ValueError(value)
    return float(match[1]) * {"%": 0.01, "k": 1e3, "M": 1e6}[match[2]]


def component_in(hint: Any) -> type[Component] | None:
    """Return the type of the components in a mapping of components by name, or None for another hint."""
    last = get_args(hint)[-1] if get_origin(hint) is dict else None
    return last if isinstance(last, type) and issubclass(last, Component) else None


def _components(values: Any, cls: type[Component], path: str, wrong: list[str]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        wrong.append(f"{path}={values}: must be a group of components, not a single value")
        return {}
    if "_target_" in values:
        remedy = f"let its file begin with # @package {path}.NAME"
        wrong.append(f"{path}._target_={values['_target_']}: needs a name; {remedy}")
        return {}
    return {str(name): _group(part, cls, f"{path}.{name}", wrong) for name, part in values.items()}


def _component_options(key: str, target: str, base: type[Component]) -> type[Component]:
    """Return the options dataclass that the class of a component declares as `Options`."""
    try:
        options = getattr(resolve(target), "Options", None)
    except ImportError as error:
        raise ConfigError(f"{key}={target}: {error}") from error
    if not (isinstance(options, type) and issubclass(options, base)):
        raise ConfigError(f"{key}={target}: has no dataclass 'Options' derived from {base.__name__}")
    return options


def options_of(cls: type[Any]) -> dict[str, tuple[Any, Meaning]]:
    """Return the type and the meaning of each option of a dataclass."""
    hints = get_type_hints(cls)
    return {field.name: (hints[field.name], field.metadata["meaning"]) for field in fields(cls)}


def is_mapping(key: str, values: Mapping[str, Any]) -> bool:
    """Return True if a key is an option that takes a mapping or a list of mappings, or lies in one."""
    cls: type[Any] = Config
    node: Any = values
    hint: Any = None
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
        # Of a mapping of components, each name is a component.
        hint = component_in(hint) or options_of(cls).get(name, (None, None))[0]
        if component_in(hint):
            continue
        if not (isinstance(hint, type) and is_dataclass(hint)):
            return "dict" in str(hint)
        cls = hint
        if issubclass(cls, Component) and isinstance(node, Mapping):
            cls = _component_options(f"{key}._target_", str(node.get("_target_", "???")), cls)
    return False


def choices(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union of types, or the type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _value(value: Any, hint: Any, meaning: Meaning) -> Any:
    """Convert a value to the first type of a hint that it fits, or raise a ValueError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    for choice in choices(hint):
        kind = get_origin(choice) or choice
        if kind is Literal and value in get_args(choice):
            return value
        if kind is list and isinstance(value, list) and value:
            return [_value(item, get_args(choice)[0], meaning) for item in value]
        if kind in (int, float) and is_number and meaning.allows(value) and (kind is float or value % 1 == 0):
            return kind(value)
        if kind is str and isinstance(value, str) and value.isprintable():
            return value
        if kind in (bool, dict, type(None)) and isinstance(value, kind):
            return value
    raise ValueError(value)


def words(hint: Any, meaning: Meaning) -> str:
    """Describe the values that an option may have."""
    described = []
    for choice in choices(hint):
        kind = get_origin(choice) or choice
        if kind is Literal:
            described.append(" or ".join(map(str, get_args(choice))))
        elif kind is list:
            described.append(f"a list [each {words(get_args(choice)[0], meaning)}]")
        elif kind in (int, float):
            described.append(f"{'a whole number' if kind is int else 'a number'} {meaning.range}".rstrip())
        else:
            described.append(NAMES[kind])
    return " or ".join(described)


def options_in(
    config: Any, prefix: str = "", groups: bool = False
) -> Iterator[tuple[str, Any, Meaning, Any]]:
    """Yield key, type, meaning and value of every option of a typed configuration, and of groups if asked."""
    for name, (hint, meaning) in options_of(type(config)).items():
        value = getattr(config, name)
        parts = {f"{name}.{part}": options for part, options in value.items()} if component_in(hint) else {}
        parts |= {name: value} if is_dataclass(value) else {}
        if groups or not (parts or component_in(hint)):
            yield prefix + name, hint, meaning, value
        for part, options in parts.items():
            yield from options_in(options, f"{prefix}{part}.", groups)
