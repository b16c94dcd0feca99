"""From composed values to the typed configuration: references are replaced by values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from mbpo_cli.failures import ConfigError

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config

MAX_REFERENCES = 10
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
NOT_OF_A_RUN = ("hydra", "resume", "trust")
# Groups of which several files can be chosen, or none.
LISTS = ("logger",)


def quoted(text: object) -> str:
    """Return text as a value that Hydra reads back unchanged."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(text))
    return f"'{escaped}'"


def typed_config(cfg: DictConfig) -> Config:
    """Convert a configuration composed by Hydra to the typed one.

    Raises:
        ConfigError: Keys are unknown or missing, or values have the wrong type or range.
    """
    from mbpo_cli.config.typed import WrongValues, typed

    values: Any = OmegaConf.to_container(cfg, resolve=False)
    for key in NOT_OF_A_RUN:
        values.pop(key, None)
    try:
        return typed(_resolved(values, values, ""))
    except WrongValues as error:
        own = {reason.partition("=")[0]: reason for reason in error.reasons}
        raise WrongValues([_at_source(key, reason, own, values) for key, reason in own.items()]) from error


def _at_source(key: str, reason: str, own: Mapping[str, str], values: Any) -> str:
    """Blame the option that a wrong value comes from, not the one that refers to it."""
    source = key
    for _ in range(MAX_REFERENCES):
        node = values
        for name in source.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        match = REFERENCE.fullmatch(node) if isinstance(node, str) else None
        source = match[1] if match else source
    here = f"{source}={reason.partition('=')[2]}; {key} takes its value from there"
    return reason if source == key else own.get(source, here)


def _resolved(node: Any, root: Any, path: str) -> Any:
    """Replace every `${another.key}` by the value of that key.

    OmegaConf would also resolve environment variables, which would then end up in files, and nested
    references, with which a few lines can define a tree that fills the memory.
    """
    if isinstance(node, dict):
        return {
            key: _resolved(value, root, f"{path}.{key}" if path else str(key)) for key, value in node.items()
        }
    if isinstance(node, list):
        return [_resolved(value, root, path) for value in node]
    for _ in range(MAX_REFERENCES):
        if not (isinstance(node, str) and "${" in node):
            return node
        match = REFERENCE.fullmatch(node)
        if not match:
            raise ConfigError(f"{path}={node}: only a whole value can be a reference, as in ${{another.key}}")
        node = root
        for part in match[1].split("."):
            if not isinstance(node, dict) or part not in node:
                raise ConfigError(f"{path}: refers to '{match[1]}', which does not exist")
            node = node[part]
        if isinstance(node, dict | list) and "${" in str(node):
            raise ConfigError(f"{path}: refers to '{match[1]}', which contains references itself")
    raise ConfigError(f"{path}: refers to itself, or through more than {MAX_REFERENCES} keys")
