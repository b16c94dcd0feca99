"""Registers with Hydra who decides on the jobs of a sweep, and who runs them."""

from __future__ import annotations

from importlib.resources import files

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf


def register() -> None:
    """Make known the plugins, as Hydra finds none of an editable installation, and the presets."""
    from hydra_plugins.mbpo.clusters import RayLauncher, SlurmLauncher
    from hydra_plugins.mbpo.jobs import parallel_jobs
    from hydra_plugins.mbpo.launchers import ProcessLauncher
    from hydra_plugins.mbpo.sweepers import GridSweeper, SearchSweeper

    for plugin in (ProcessLauncher, RayLauncher, SlurmLauncher, GridSweeper, SearchSweeper):
        Plugins.instance().register(plugin)
    # In the place of these launchers' own defaults: YAML in conf/ would be checked against those, and Hydra
    # warns of that.
    for preset in sorted((files(__package__) / "presets").iterdir(), key=str):
        node = OmegaConf.create(preset.read_text())
        ConfigStore.instance().store(
            group="hydra/launcher", name=preset.name.removesuffix(".yaml"), node=node
        )
    # There is one store; Hydra copies it for each group that its help lists, which took half of the time.
    setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010 - unknown to type checkers
    OmegaConf.register_new_resolver("parallel_jobs", parallel_jobs, replace=True)
