"""From overrides to the typed configuration, by way of Hydra and the files in conf/.

Torch is imported only when types are needed, so that help and tab completion are quick.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mbpo_cli.config import loader
from mbpo_cli.failures import ConfigError

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config

CONFIG_MODULE = "mbpo_cli.conf"
CONFIG_NAME = "train"
HYDRA_VERSION_BASE = "1.3"
MAX_REFERENCES = 10
NOT_OF_A_RUN = ("hydra", "resume", "trust")


def config_folder() -> Path:
    """Return the folder of the YAML files that come with this program."""
    return Path(str(files(CONFIG_MODULE)))


def typed_config(cfg: DictConfig) -> Config:
    """Convert a configuration composed by Hydra to the typed one.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or range.
    """
    from mbpo_cli.config.typed import typed

    values: Any = OmegaConf.to_container(cfg, resolve=False)
    for key in NOT_OF_A_RUN:
        values.pop(key, None)
    try:
        return typed(_resolved(values, values, ""))
    except ConfigError as error:
        node = values
        for name in str(error).partition("=")[0].split("."):
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, str) and "${" in node and node not in str(error):
            raise ConfigError(f"{error}; it is {node}") from error
        raise


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
        match = re.fullmatch(r"\$\{([\w.]+)\}", node)
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


def parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Return keys and values of the overrides that concern a run, as Hydra reads them."""
    read = OverridesParser.create().parse_overrides(list(overrides))
    return [(item.key_or_group, item.value()) for item in read if item.key_or_group not in NOT_OF_A_RUN]


def composed(*overrides: str) -> DictConfig:
    """Compose the configuration that the command line would, with Hydra's own part.

    Raises:
        ConfigError: An override or a file is wrong.
    """
    loader.install()
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base=HYDRA_VERSION_BASE):
        return compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def make_config(*overrides: str) -> Config:
    """Compose the configuration that the command line would, and convert it."""
    return typed_config(composed(*overrides))
