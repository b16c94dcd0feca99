"""From the directory of a run to the configuration with which it resumes.

The files of a run are data: what they name is imported and called only if it is a part of this package or of
Gymnasium that is meant for its place, or if the user trusts its package.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
from omegaconf import OmegaConf

from mbpo_cli.config.typed import Config, is_mapping, typed
from mbpo_cli.envs import wrappers
from mbpo_cli.failures import ConfigError
from mbpo_cli.options import resolve
from mbpo_cli.storage.records import CONFIG, leaves, no_run, stored_config

# Options that name code, beside `_target_` and `function`, and where that may be without trust.
PLACES = {
    "checkpoint.save_agent_value": "mbpo_cli.evaluation.schedule",
    "env.id": "mbpo_cli.envs",
    "env.is_done_function": "mbpo_cli.envs.known",
    "env.module": "mbpo_cli.envs",
    "env.reward_function": "mbpo_cli.envs.known",
    "env.wrappers": "gymnasium.wrappers",
    "trainer.stop_training_value": "mbpo_cli.evaluation.schedule",
}


def resumed_config(path: Path, changes: Sequence[tuple[str, Any]], trust: Sequence[str]) -> Config:
    """Return the configuration of the run in a directory, with the changes of the command line.

    Raises:
        ConfigError: There is no run, its configuration is not trusted, or a change is not possible.
    """
    if not (path / CONFIG).is_file():
        raise ConfigError(f"resume={path}: {no_run(path)}")
    values = trusted_config(path, trust, "trust=[{}]")
    for key, value in changes:
        _set(values, key, value)
    return typed(values)


def trusted_config(path: Path, trust: Collection[str], remedy: str) -> dict[str, Any]:
    """Return the configuration stored in a run directory, as plain data.

    Args:
        path: The run's directory.
        trust: Packages whose code the configuration may name.
        remedy: What the user has to write to trust the package `{}`.

    Raises:
        ConfigError: There is none, or it names other code.
    """
    if not isinstance(trust, Collection):
        raise ConfigError(f"trust={trust}: must be a list of packages, as in trust=[my_lab]")
    values = stored_config(path)
    trusted = {trust} if isinstance(trust, str) else set(trust)  # of a text, every part would be in it
    for key, value, package in untrusted(values, trusted):
        reason = f"{key}={value}: the run directory names code outside the safe parts of {_place(key)}"
        # Nobody should trust all of this package because a run directory has the program propose it.
        hint = "" if package == "mbpo_cli" else f"; {remedy.format(package)} lets it be imported"
        raise ConfigError(reason + hint)
    return values


def untrusted(values: Mapping[str, Any], trust: Collection[str] = ()) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and package of the code that a configuration names outside the safe places."""
    for key, value, name in _named(values, trust):
        package = name.partition(".")[0]
        if package not in trust and not _is_shipped(name, key, _place(key)):
            yield key, value, package


def _named(values: Mapping[str, Any], trust: Collection[str]) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and dotted name of everything that a configuration would have imported or called."""
    env = values.get("env")
    if isinstance(env, dict):
        yield from (("env.id", env.get("id"), name) for name in _creators(env, trust))
    for key, value in leaves(values):
        if key == "env.wrappers" and isinstance(value, list):
            for wrapper in value:
                name = wrapper.get("_target_") if isinstance(wrapper, dict) else wrapper
                yield key, name, str(name)
        elif (
            value is None
            or key == "env.id"  # yielded above
            or ".kwargs." in key  # the environment's own arguments
            or (key.endswith("_value") and isinstance(value, float))  # a number, not a function
        ):
            continue
        elif key in PLACES or key.endswith(("_target_", ".function")):
            yield key, value, str(value)


def _creators(env: Mapping[str, Any], trust: Collection[str]) -> Iterator[str]:
    """Yield what Gymnasium would import and call for an environment's id."""
    module, _, env_id = str(env.get("id")).rpartition(":")
    if module:
        yield module
    if any(str(source).partition(".")[0] in trust for source in (module, env.get("module"))):
        return  # it registers what it wants
    for known, spec in gym.registry.items():
        if env_id in (known, known.rpartition("-v")[0]):  # without a version, Gymnasium takes the latest
            creator = getattr(spec.entry_point, "func", spec.entry_point)  # of a partial
            place = creator if isinstance(creator, str) else getattr(creator, "__module__", None)
            yield str(place).replace(":", ".")


def _place(key: str) -> str:
    """Return the package or module with what a key may name without trust."""
    if key.endswith(".function"):
        return "mbpo_cli.envs.known"
    places = {"model": "mbpo_cli.models", "logger": "mbpo_cli.logs"}
    other = places.get(key.partition(".")[0], "mbpo_cli.exploration")
    return "mbpo_cli.agents" if key == "agent._target_" else PLACES.get(key, other)


def _is_shipped(name: str, key: str, place: str) -> bool:
    """Return True for a part of `place` that is meant for a key; only modules of that place are imported."""
    module, _, last = name.rpartition(".")
    if place == "mbpo_cli.envs":
        return module == place or (
            key == "env.id" and f"{name}.".startswith((f"{place}.", "gymnasium.envs."))
        )
    if place not in (module, module.rpartition(".")[0]):
        return False
    try:
        found = resolve(name)
    except Exception:  # Gymnasium has errors of its own for packages that are missing
        return False
    if place == "gymnasium.wrappers":
        return wrappers.is_harmless(found)
    if getattr(found, "__module__", None) != module:  # imported there from elsewhere
        return False
    if place == "mbpo_cli.envs.known":
        return inspect.isfunction(found) and not last.startswith("_")
    return isinstance(found, type) and is_dataclass(getattr(found, "Options", None))


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    if is_mapping(key, values):  # as in a new run, keys are added
        config = OmegaConf.create(values)
        OmegaConf.update(config, key, value, merge=True, force_add=True)
        values.update(cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False)))
        return
    *groups, name = key.split(".")
    for group in groups:
        values = values[group] if isinstance(values.get(group), dict) else {}
    if name not in values:
        raise ConfigError(f"{key}={value}: no such option of the run to resume")
    if isinstance(values[name], dict) and not isinstance(value, dict):
        raise ConfigError(f"{key}={value}: a resumed run keeps its groups; only values can change")
    values[name] = value
