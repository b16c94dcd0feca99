"""Registers the sweepers, launchers and launcher presets of this package with Hydra."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf


def register() -> None:
    """Register the plugins, which Hydra does not find in an editable installation, and the presets."""
    from hydra_plugins.mbpo.clusters import RayLauncher, SlurmLauncher
    from hydra_plugins.mbpo.jobs import parallel_jobs
    from hydra_plugins.mbpo.launchers import ProcessLauncher
    from hydra_plugins.mbpo.sweepers import GridSweeper, SearchSweeper

    for plugin in (ProcessLauncher, RayLauncher, SlurmLauncher, GridSweeper, SearchSweeper):
        Plugins.instance().register(plugin)
    # These presets replace defaults that the launchers' packages register. Hydra would check YAML in conf/
    # against those defaults, and warn.
    for preset in sorted(Path(__file__).with_name("presets").glob("*.yaml")):
        ConfigStore.instance().store(preset.stem, OmegaConf.load(preset), "hydra/launcher")
    # Hydra copies the only store for each group that its help lists, which took half of the time.
    setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010 - unknown to type checkers
    OmegaConf.register_new_resolver("parallel_jobs", parallel_jobs, replace=True)
