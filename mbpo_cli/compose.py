"""From overrides to the typed configuration, by way of Hydra and the files in conf/.

Torch is imported only where types are needed, so that help and tab completion are quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from mbpo_cli.config import Config

CONFIG_MODULE = "mbpo_cli.conf"
CONFIG_NAME = "train"
HYDRA_VERSION_BASE = "1.3"
NOT_OF_A_RUN = ("hydra", "resume", "trust")


def typed_config(cfg: DictConfig) -> Config:
    """Convert what Hydra composed to the typed configuration.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or range.
    """
    from mbpo_cli.config import typed

    values: Any = OmegaConf.to_container(cfg, resolve=False)
    for key in NOT_OF_A_RUN:
        values.pop(key, None)
    values = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    return typed(values)


def composed(*overrides: str) -> DictConfig:
    """Compose the configuration that the command line would, with Hydra's own part."""
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base=HYDRA_VERSION_BASE):
        return compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def make_config(*overrides: str) -> Config:
    """Compose the configuration that the command line would, and convert it."""
    return typed_config(composed(*overrides))
