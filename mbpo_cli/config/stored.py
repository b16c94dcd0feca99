"""From the directory of a run to the configuration with which it resumes.

The files of a run are data: code outside this package that they name is imported only if the user trusts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mbpo_cli.config.typed import Config, typed
from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.records import stored_config

# Options whose values are imported, beside `_target_` and `function`.
IMPORTED = ("env.module", "env.reward_function", "env.is_done_function", "env.wrappers")


def resumed_config(path: Path, changes: Sequence[tuple[str, Any]], trust: Sequence[str]) -> Config:
    """Return the configuration of the run in a directory, with the changes of the command line.

    Raises:
        ConfigError: There is no run, its configuration is not trusted, or a change is not possible.
    """
    values = trusted_config(path, trust, "trust=[{}]")
    for key, value in changes:
        _set(values, key, value)
    return typed(values)


def trusted_config(path: Path, trust: Sequence[str], remedy: str) -> dict[str, Any]:
    """Return the configuration stored in a run directory, as plain data.

    Args:
        path: The run's directory.
        trust: Packages outside this one whose code the configuration may name.
        remedy: What the user has to write to trust the package `{}`.

    Raises:
        ConfigError: There is none, or it names other code.
    """
    values = stored_config(path)
    for key, name in _imported(values):
        package = name.partition(".")[0]
        if package not in ("mbpo_cli", *trust) and not name.startswith("gymnasium.wrappers."):
            raise ConfigError(
                f"{key}={name}: the run directory names code outside mbpo_cli; "
                f"{remedy.format(package)} lets it be imported"
            )
    return values


def _imported(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the dotted name of everything in a configuration that would be imported."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if path == "env.wrappers":
            for wrapper in value or ():
                yield path, str(wrapper.get("_target_") if isinstance(wrapper, dict) else wrapper)
        elif path == "env.kwargs":
            continue
        elif path == "env.id" and ":" in str(value):  # Gymnasium imports what is before the colon
            yield path, str(value).partition(":")[0]
        elif isinstance(value, dict):
            yield from _imported(value, f"{path}.")
        elif value is not None and (key in ("_target_", "function") or path in IMPORTED):
            yield path, str(value)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    for group in groups:
        values = values[group] if isinstance(values.get(group), dict) else {}
    if name not in values:
        raise ConfigError(f"{key}={value}: no such option of the run to resume")
    if isinstance(values[name], dict) and not isinstance(value, dict):
        raise ConfigError(f"{key}={value}: a resumed run keeps its groups; only values can change")
    values[name] = value
