"""From overrides to the typed configuration, by way of Hydra and the files in conf/.

Torch is imported only when types are needed, so that help and tab completion are quick.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from mbpo_cli.config import loader, rules
from mbpo_cli.config.values import NOT_OF_A_RUN, quoted, typed_config
from mbpo_cli.failures import ConfigError

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config
    from mbpo_cli.envs.functions import EnvSource

CONFIG_MODULE = "mbpo_cli.conf"
CONFIG_NAME = "train"
HYDRA_VERSION_BASE = "1.3"


def config_folder() -> Path:
    """Return the folder of the YAML files that come with this program."""
    return Path(str(files(CONFIG_MODULE)))


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


def make_config(
    *overrides: str,
    config_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    env: EnvSource | None = None,
) -> Config:
    """Compose the configuration that the command line would, and convert it.

    Args:
        overrides: The arguments of the command line, each by itself.
        config_dir: A folder with files of one's own, or several, like `--config-dir`.
        env: What makes the environment, in place of `env.id`: a function, which gets `env.kwargs`, a class,
            or an environment that `gymnasium.make` returned. Without another choice, `env=gym` holds.

    Raises:
        ConfigError: An override or a file is wrong; the message is that of the command line.
    """
    for override in overrides:
        if not isinstance(override, str):
            usual = "make_config('env=pendulum', 'seed=1')"
            raise ConfigError(f"{override!r}: must be texts as on the command line, as in {usual}")
    chosen = [*search_path(config_dir), *overrides]
    if env is None:
        return typed_config(composed(*chosen))
    from mbpo_cli.envs.functions import registered  # slow to import

    if not any(override.startswith("env=") for override in overrides):
        chosen.insert(0, "env=gym")
    with registered(env) as env_id:
        rules.forget()
        config = typed_config(composed(f"env.id='{env_id}'", *chosen))
    if config.env.id != env_id:
        raise ConfigError(f"env.id={config.env.id}: leave it out, as env=... makes the environment")
    return config


def search_path(folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the override that lets Hydra find files in some folders, if there are any."""
    paths: list[Any] = list(folders) if isinstance(folders, list | tuple) else [folders]
    for path in paths:
        if not isinstance(path, str | os.PathLike) or not Path(path).is_dir():
            raise ConfigError(f"config_dir={path}: no such directory")
    places = [quoted(f"file://{os.path.abspath(path)}") for path in paths]
    return [f"hydra.searchpath=[{','.join(places)}]"] if places else []
