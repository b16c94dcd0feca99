"""The command `mbpo-train`: composes and checks a configuration, and trains with it.

Torch is imported only when a run starts, so that help and tab completion are fast. Knows no algorithm.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import hydra_plugins.mbpo
import mbpo_cli
from mbpo_cli.commands.arguments import hint_for_flag
from mbpo_cli.config import loader
from mbpo_cli.config.compose import (
    CONFIG_MODULE,
    CONFIG_NAME,
    HYDRA_VERSION_BASE,
    composed,
    parsed,
    search_path,
)
from mbpo_cli.config.values import quoted, typed_config
from mbpo_cli.failures import Busy, ConfigError, Interrupted, RunFailed, StorageFailed, one_line, place_of
from mbpo_cli.sweeps.jobs import name_of

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config

log = logging.getLogger(__name__)

# Cached, so that a job has the name of its sweep. Workers of joblib import this module.
OmegaConf.register_new_resolver(
    "sweep_name",
    lambda overrides: name_of(cast("list[str]", OmegaConf.to_container(overrides, resolve=False))),
    replace=True,
    use_cache=True,
)
OmegaConf.register_new_resolver("file_name", lambda name: name_of([str(name)]), replace=True)
# A value as the command line takes it.
OmegaConf.register_new_resolver(
    "shown",
    lambda value: (
        yaml.safe_dump(
            OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, default_flow_style=True
        )
        .removesuffix("...\n")
        .strip()
    ),
    replace=True,
)


def main() -> None:
    """Run `mbpo-train`; a wrong configuration ends with one line and exit code 2."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises its errors instead of printing many lines
    loader.install()
    hydra_plugins.mbpo.register()
    try:
        flags = checked_flags(sys.argv[1:])
        if flags.schema:
            return _print_schema(flags.config_dir)
        sys.argv[1:] = with_directory(sys.argv[1:])
        _shown(flags) if flags.shows else train_job()
    except KeyboardInterrupt as error:
        print("mbpo-train: interrupted", file=sys.stderr)
        gc.freeze()  # or Python would take a second to look through torch's compiler before it ends
        raise SystemExit(error.exit_code if isinstance(error, Interrupted) else 130) from None
    except (
        ConfigError,
        HydraException,
        OmegaConfBaseException,
        UnicodeError,
        RunFailed,
        OSError,
        Rejected,
    ) as error:
        cause = error.args[0] if isinstance(error, Rejected) else error
        if wants_traceback:
            raise cause from cause.__cause__
        if not isinstance(cause, RunFailed) or isinstance(cause, Busy):  # others are in the log
            print(f"mbpo-train: error: {_in_one_line(cause)}", file=sys.stderr)
        usual = StorageFailed.exit_code if isinstance(cause, OSError) else ConfigError.exit_code
        raise SystemExit(getattr(cause, "exit_code", usual)) from None


def _print_schema(config_dir: str | None) -> None:
    from mbpo_cli.config.schema import schema_text

    try:
        print(schema_text(config_dir))
    except Exception as error:  # a file of the user may hold anything
        raise ConfigError(f"--schema --config-dir {config_dir}: {error}") from error


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, ConfigError | Busy | OSError):
        return one_line(error)
    from mbpo_cli.config.explain import explain

    return explain(error, sys.argv[1:], lambda overrides: composed(*overrides), lambda group: [])


def checked_flags(arguments: Sequence[str]) -> Namespace:
    """Return Hydra's flags, with `schema` and with `shows` = True if nothing is to be run.

    Raises:
        ConfigError: A flag is unknown, has a wrong value, or contradicts others.
    """

    def fail(message: str) -> NoReturn:
        hint = hint_for_flag(message, arguments, parser._option_string_actions)
        raise ConfigError(f"{message.removeprefix('argument ')}; {hint}")

    parser = get_args_parser()
    setattr(parser, "error", fail)  # noqa: B010 - a method, for type checkers
    parser.add_argument("--schema", action="store_true")
    version: Any = parser._option_string_actions["--version"]
    version.version = f"mbpo-train {mbpo_cli.__version__}"
    flags = parser.parse_args(list(arguments))
    names = ("help", "hydra_help", "cfg", "info", "shell_completion", "run", "multirun")
    chosen = [f"--{name.replace('_', '-')}" for name in names if getattr(flags, name)]
    flags.shows = any(getattr(flags, name) for name in names[:5])
    folders = [word for word in arguments if word.split("=")[0] in ("--config-dir", "-cd")]
    for is_wrong, message in (
        (len(chosen) > 1, f"{' '.join(chosen)}: choose one of them"),
        (flags.resolve and not (flags.cfg or flags.help), "--resolve: only with --cfg or --help"),
        (flags.package and not flags.cfg, f"--package {flags.package}: only with --cfg"),
        (flags.experimental_rerun, "--experimental-rerun: give the same command again, or resume=DIRECTORY"),
        (
            len(folders) > 1,
            f"--config-dir {flags.config_dir}: give one; more with hydra.searchpath=[file://...]",
        ),
        (flags.multirun and "hydra.mode=RUN" in arguments, "hydra.mode=RUN: contradicts --multirun"),
    ):
        if is_wrong:
            raise ConfigError(message)
    return flags


def _shown(flags: Namespace) -> None:
    """Let Hydra print what flags ask for; all errors are those of the command line."""
    errors, explained = io.StringIO(), io.StringIO()
    is_for_a_person = flags.cfg == "job" and sys.stdout.isatty()
    try:
        with redirect_stderr(errors), redirect_stdout(explained if is_for_a_person else sys.stdout):
            train_job()
    except (ConfigError, HydraException):
        if not any(word.startswith("query=") for word in sys.argv):  # a key was pressed to complete a word
            raise
    except (AttributeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{' '.join(sys.argv[1:])}: {error}") from error
    except SystemExit as error:
        if error.code:
            raise ConfigError(errors.getvalue()) from error
    if is_for_a_person:
        print(_with_comments(explained.getvalue(), flags), end="")
    print(errors.getvalue(), end="", file=sys.stderr)
    if flags.cfg == "job" and flags.config_name is flags.config_path is None:
        sys.stdout.flush()
        typed_config(composed(*search_path(flags.config_dir or ()), *flags.overrides))


def _with_comments(text: str, flags: Namespace) -> str:
    from mbpo_cli.config.comments import commented, schema_for

    package = "" if flags.package in (None, "_global_") else flags.package
    is_colored = not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")
    schema, width = schema_for(text, flags.config_dir), shutil.get_terminal_size().columns
    return commented(text, schema, package, width, is_colored)


@hydra.main(version_base=HYDRA_VERSION_BASE, config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME)
def train_job(cfg: DictConfig) -> float:
    """Train one run in Hydra's output directory and return its score, which sweepers use."""
    from mbpo_cli.run import run

    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    if in_sweep and cfg.resume is not None:
        raise ConfigError(f"resume={cfg.resume}: continues a single run; leave out --multirun")
    # Before a single run, CheckBeforeRun has checked the components.
    path = Path(hydra_config.runtime.output_dir)
    overrides = hydra_config.overrides.task
    try:
        config = checked_config(cfg, overrides, path) if in_sweep else config_of(cfg, overrides)
    except ConfigError as error:  # for the log of a job in a sweep
        log.error("%s", error)
        raise
    try:
        return run(config, path, in_sweep, cfg.trust)
    except (ConfigError, RunFailed, OSError) as error:
        if in_sweep:
            raise
        raise Rejected(error) from error  # of which Hydra does not print its own line


def with_directory(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which a run to resume writes where it wrote before."""
    values = dict(item.split("=", 1) for item in arguments if "=" in item and not item.startswith("-"))
    if "resume" not in values:
        return list(arguments)
    path = quoted(values["resume"].strip("'\""))
    # Hydra reads names such as agent=sac,td3 only in quotes.
    complete = [f"resume={path}" if item.startswith("resume=") else item for item in arguments]
    # After the last override: Hydra takes no override that follows a flag, unless others do, too.
    place = max(index + 1 for index, item in enumerate(complete) if item.split("=")[0] in values)
    return [*complete[:place], f"hydra.run.dir={path}", *complete[place:]]


def config_of(cfg: DictConfig, overrides: Sequence[str]) -> Config:
    """Return the typed configuration, which is the stored one with overrides if a run is resumed."""
    if cfg.resume is None:
        return typed_config(cfg)
    from mbpo_cli.config.stored import resumed_config

    changes = parsed(overrides)
    if any(key == "logger" for key, _ in changes):  # which replaces the group as a whole
        changes = [(key, value) for key, value in changes if key.partition(".")[0] != "logger"]
        changes.append(("logger", OmegaConf.to_container(cfg.logger)))
    return resumed_config(Path(cfg.resume), changes, cfg.trust)


def checked_config(cfg: DictConfig, overrides: Sequence[str], path: Path) -> Config:
    """Return the typed configuration after a check that its components can be built."""
    from mbpo_cli.commands.check import check
    from mbpo_cli.storage.records import CONFIG

    try:
        config = config_of(cfg, overrides)
        check(config, is_new=not (path / CONFIG).exists(), trust=cfg.trust)
    except (ConfigError, OmegaConfBaseException):
        raise
    except Exception as error:  # an environment or a user's module may raise anything
        kind = type(error).__name__
        raise ConfigError(f"{kind} while the components were checked: {error}{place_of(error)}") from error
    return config


class CheckBeforeRun(Callback):
    """Checks the configuration of a single run before Hydra makes its directory, and that of a sweep."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raise `Rejected` if the configuration is wrong, or the directory cannot be used."""
        from mbpo_cli.storage.directory import check_usable

        HydraConfig.instance().set_config(config)  # for references such as ${hydra:runtime.cwd}
        with rejecting():
            check_single(config)
            path = directory_of(config, "run")
            if Path(name := str(config.hydra.job.name)).name != name:  # of the log
                raise ConfigError(f"hydra.job.name={name}: must be the name of a file")
            checked = checked_config(config, config.hydra.overrides.task, path)
            try:
                check_usable(path, asdict(checked))
            except OSError as error:
                raise ConfigError(f"hydra.run.dir={path}: {error.strerror or error}") from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raise `Rejected` if an option has no meaning in a sweep; resolve its directory for all jobs."""
        with open_dict(config):
            config.hydra.job.num = 0
        HydraConfig.instance().set_config(config)
        with rejecting():
            if config.resume is not None:
                raise ConfigError(f"resume={config.resume}: continues a single run; leave out --multirun")
            for item in overrides_of(config):
                if item.startswith("hydra.run."):
                    raise ConfigError(f"{item}: is for a single run; a sweep has hydra.sweep.dir and subdir")
            directory_of(config, "sweep")
        with suppress(OmegaConfBaseException):  # which only its jobs can resolve
            str(config.hydra.sweep.subdir)


OF_A_SWEEP = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweep")
PLUGINS = {"hydra/launcher": "processes", "hydra/sweeper": "grid"}


@contextmanager
def rejecting() -> Iterator[None]:
    """Let errors pass Hydra, which only warns of ordinary exceptions in callbacks."""
    try:
        yield
    except Exception as reason:
        raise Rejected(reason) from reason


def overrides_of(config: DictConfig) -> list[str]:
    """Return the overrides of Hydra's own options as given, but without `+` and `~`."""
    given: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
    return [item.lstrip("+~") for item in given["hydra"]]


def check_single(config: DictConfig) -> None:
    """Raise `ConfigError` if a single run was given what only a sweep uses, unless it was asked for."""
    if "hydra.mode=RUN" in sys.argv:
        return
    choices = config.hydra.runtime.choices
    given = [item for item in overrides_of(config) if item.startswith(OF_A_SWEEP)]
    given += [f"{group}={choices[group]}" for group, usual in PLUGINS.items() if choices[group] != usual]
    if not given and (params := config.hydra.sweeper.get("params")):
        given = [f"hydra.sweeper.params={params}"]
    if given:
        raise ConfigError(f"{given[0]}: is used by sweeps only; add -m, or hydra.mode=RUN to run without it")


def directory_of(config: DictConfig, kind: str) -> Path:
    """Return the directory of a `run` or a `sweep`; raise `ConfigError` if none is named."""
    key = f"hydra.{kind}.dir"
    text: Any = OmegaConf.to_container(config.hydra[kind], resolve=False)
    try:
        path = str(config.hydra[kind].dir)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{key}={text['dir']}: {error}") from error
    if not path.strip() or not path.isprintable():
        raise ConfigError(f"{key}={path}: must be the name of a directory")
    return Path(path)


class Rejected(SystemExit):
    """Carries an error as its argument past Hydra, which only warns of ordinary exceptions in callbacks."""
