"""Hydra's loader of configurations, with errors of one line, and what this program does differently.

- The user's files win over the values that this program's environments bring along.
- Keys within an option whose value is a mapping can be added: `env.kwargs.g=9.81`.
- Options that only some jobs of a sweep have are left to these jobs.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override, OverrideType
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbpo_cli.config import rules
from mbpo_cli.config.explain import UNKNOWN, choice_hint, explain
from mbpo_cli.config.values import LISTS
from mbpo_cli.failures import ConfigError

# Where the files of this program and of Hydra come from; all others are the user's.
SHIPPED = ("pkg://mbpo_cli.conf", "pkg://hydra", "structured:")
# Groups of complete sets of values, which win over all other files.
WHOLE = ("experiment/", "hparams_search/")


class Repository(ConfigRepository):
    """The files of a configuration; errors name the file."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Read a file; raise `ConfigError` if it cannot be read."""
        try:
            return super().load_config(config_path)
        except Exception as error:  # of YAML, OmegaConf, Hydra, the file system or the encoding
            # YAML reads on and off as truth values.
            hint = "; write on and off in quotes" if "defaults : bool" in str(error) else ""
            raise ConfigError(f"{config_path.removesuffix('.yaml')}.yaml: {error}{hint}") from error


class Loader(ConfigLoaderImpl):
    """Composes configurations; whatever is wrong with them is a `ConfigError`."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = Repository(config_search_path)
        self._nested: dict[str, list[str]] = {}

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a configuration; a sweep's own has only those options of the jobs that fit all."""

        def load(items: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
            with warnings.catch_warnings():
                # A folder that does not exist.
                warnings.filterwarnings("error", "provider=.* is not available", UserWarning)
                config = super(Loader, self).load_configuration(
                    config_name, items, mode, from_shell, validate_sweep_overrides
                )
            rules.apply(config)
            return config

        fitting = overrides
        while True:
            try:
                config = load(fitting, run_mode)
            except Exception as error:
                unknown = UNKNOWN.search(str(error))
                key = unknown[1] if unknown and run_mode is RunMode.MULTIRUN else "hydra"
                rest = [item for item in fitting if item.partition("=")[0] != key]
                if not key.startswith("hydra") and len(rest) < len(fitting):
                    fitting = rest
                    continue
                if isinstance(error, ConfigError):
                    raise
                raise ConfigError(explain(error, overrides, load, self.get_group_options)) from error
            verbose = config.hydra.verbose
            if not (isinstance(verbose, bool | str) or OmegaConf.is_list(verbose)):
                raise ConfigError(f"hydra.verbose={verbose}: must be true, false or a list of loggers")
            if fitting is not overrides:
                config.hydra.overrides.task = [item for item in overrides if not item.startswith("hydra")]
            return config

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Return the choices of a group, with those in subfolders that are no groups of their own."""
        options: list[str] = super().get_group_options(group_name, results_filter, config_name, overrides)
        if results_filter is ObjectType.CONFIG and options and not group_name.startswith("hydra"):
            if group_name not in self._nested:  # the help asks twice
                self._nested[group_name] = nested_choices(self.repository, group_name)
            options += self._nested[group_name]
        return options

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], Any]:
        self._parsed, repository = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        for item in self._parsed:
            if not item.key_or_group:
                raise ConfigError(f"{item.input_line}: needs a key, as in seed=1")
            group = item.key_or_group.replace(".", "/")
            if group != item.key_or_group and repository.group_exists(group) and not sets_values(item):
                choice = item.get_value_string().strip("'\"")
                hint = choice_hint(group, choice, self.get_group_options(group))
                raise ConfigError(f"{item.input_line}: a group is chosen with a slash, {group}=...; {hint}")
            is_choice = repository.group_exists(item.key_or_group) and not item.is_sweep_override()
            given = item.value() if item.key_or_group in LISTS else [item.value()]
            chosen = given if isinstance(given, list) else [given]
            if is_choice and not item.is_delete() and not all(isinstance(c, str | dict) for c in chosen):
                choices = self.get_group_options(item.key_or_group)
                raise ConfigError(not_a_choice(item, choices))
        return self._parsed, repository

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        config = super()._compose_config_from_defaults_list(own_files_last(defaults, repo), repo)
        for item in self._parsed:
            if item.type is OverrideType.CHANGE and is_in_mapping(item, config):
                item.type = OverrideType.FORCE_ADD  # in a mapping, any key is allowed
        return config


def sets_values(override: Override) -> bool:
    """Return True if an override replaces the values of a group, or removes the group."""
    return override.is_delete() or isinstance(override.value(), dict)


def own_files_last(defaults: Iterable[ResultDefault], repo: IConfigRepository) -> list[ResultDefault]:
    """Let the user's files win over this program's, except for experiments and search spaces, which win.

    Raises:
        ConfigError: A file of the user has the name of a file of this program, which Hydra prefers.
    """
    folders = [source for source in repo.get_sources() if source.scheme() == "file"]

    def is_own(default: ResultDefault) -> bool:
        path = str(default.config_path)
        found = repo.load_config(path)
        is_shipped = found is not None and found.path.startswith(SHIPPED)
        for folder in folders if is_shipped else ():
            if folder.is_config(path):
                raise ConfigError(
                    f"{folder.path}/{path}.yaml: is not used, as this program has such a file; rename it"
                )
        return not is_shipped

    def is_fixed(default: ResultDefault) -> bool:
        paths = (default.config_path or "", default.parent or "")
        return bool(default.primary) or any(path.startswith(WHOLE) for path in paths)

    ordered: list[ResultDefault] = []
    own = {id(default): is_own(default) for default in defaults}
    for is_kept, group in itertools.groupby(defaults, is_fixed):
        ordered += group if is_kept else sorted(group, key=lambda default: own[id(default)])  # noqa: B031
    return ordered


def is_in_mapping(override: Override, config: DictConfig) -> bool:
    """Return True if an override sets a mapping, or a key within one, whose keys are not declared."""
    key = override.key_or_group
    sets_mapping = isinstance(override.value(), dict)
    try:
        if not sets_mapping and OmegaConf.select(config, key) is not None:
            return False
    except OmegaConfBaseException:  # a reference that cannot be resolved yet
        return False
    if key.startswith("hydra."):
        # Options of plugins are declared by name, as in hydra.launcher.name; what lies deeper is free.
        place = key if sets_mapping else key.rpartition(".")[0]
        node = OmegaConf.select(config, place)
        return place.count(".") >= 2 and OmegaConf.is_dict(node) and OmegaConf.get_type(node) is dict
    if "." not in key:
        return False
    from mbpo_cli.config.typed import is_mapping  # slow to import

    values: Any = OmegaConf.to_container(config, resolve=False)
    return is_mapping(key, values)


def nested_choices(repo: IConfigRepository, group: str) -> list[str]:
    """Return the choices of a group that lie in subfolders, such as `paper/hopper` of `experiment`.

    The package that the first file of a subfolder names tells whether it is a group of its own.
    """
    packages = ("_global_", group.replace("/", "."))
    choices = []
    for folder in repo.get_group_options(group, ObjectType.GROUP):
        names = repo.get_group_options(f"{group}/{folder}", ObjectType.CONFIG)
        first = repo.load_config(f"{group}/{folder}/{names[0]}") if names else None
        if first is not None and first.header["package"] in packages:
            choices += [f"{folder}/{name}" for name in names]
    return choices


def not_a_choice(override: Override, choices: list[str]) -> str:
    """Describe what is wrong with a group that is chosen by a number, by null or by a list."""
    value = override.value()
    # YAML and Hydra read these words as truth values.
    meant = {"True": "on", "False": "off"}.get(str(value))
    hint = f"did you mean {override.key_or_group}={meant}? " if meant in choices else ""
    if value is None:
        none = f"write {override.key_or_group}=[]" if override.key_or_group in LISTS else "leave it out"
        hint = f"{none} to choose nothing; "
    if isinstance(value, list) and override.key_or_group not in LISTS:
        hint = "choose one, or several with -m and without brackets; "
    return f"{override.input_line}: no such choice; {hint}available: {', '.join(choices)}"


def install() -> None:
    """Let Hydra use this loader, for which it has no other place."""
    hydra._internal.hydra.ConfigLoaderImpl = Loader  # type: ignore[attr-defined]
