"""The command `mbpo-train`: composes and checks a configuration, and trains with it.

Torch is imported only when a run starts, so that help and tab completion are fast. Knows no algorithm.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import hydra_plugins.mbpo
from mbpo_cli.config.compose import CONFIG_MODULE, CONFIG_NAME, HYDRA_VERSION_BASE, parsed, typed_config
from mbpo_cli.failures import Busy, ConfigError, Interrupted, RunFailed, StorageFailed, one_line
from mbpo_cli.sweeps.jobs import name_of

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config

log = logging.getLogger(__name__)


def main() -> None:
    """Run `mbpo-train`; a wrong configuration ends with one line and exit code 2."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises its errors instead of printing many lines
    hydra_plugins.mbpo.register()
    if "--schema" in sys.argv[1:]:
        from mbpo_cli.config.schema import schema_text

        print(schema_text(sys.argv[1:]))
        return
    sys.argv[1:] = with_directory(sys.argv[1:])
    try:
        train_job()
    except KeyboardInterrupt as error:
        print("mbpo-train: interrupted", file=sys.stderr)
        raise SystemExit(error.exit_code if isinstance(error, Interrupted) else 130) from None
    except (ConfigError, HydraException, OmegaConfBaseException, YAMLError, UnicodeError, Rejected) as error:
        cause = error.args[0] if isinstance(error, Rejected) else error
        if wants_traceback:
            raise cause from None
        from mbpo_cli.commands.errors import explain

        print(f"mbpo-train: error: {explain(cause)}", file=sys.stderr)
        raise SystemExit(getattr(cause, "exit_code", ConfigError.exit_code)) from None
    except (RunFailed, OSError) as error:
        if wants_traceback:
            raise
        if isinstance(error, RunFailed):  # which is in the log
            raise SystemExit(error.exit_code) from None
        print(f"mbpo-train: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(StorageFailed.exit_code) from None


@hydra.main(version_base=HYDRA_VERSION_BASE, config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME)
def train_job(cfg: DictConfig) -> float:
    """Train one run in Hydra's output directory and return its score, which sweepers use."""
    from mbpo_cli.run import run

    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    if in_sweep and cfg.resume is not None:
        raise ConfigError(f"resume={cfg.resume}: continues a single run; leave out --multirun")
    # Before a single run, CheckBeforeRun has checked the components.
    make_config = checked_config if in_sweep else config_of
    try:
        config = make_config(cfg, hydra_config.overrides.task)
    except ConfigError as error:  # for the log of a job in a sweep
        log.error("%s", error)
        raise
    return run(config, Path(hydra_config.runtime.output_dir), in_sweep)


def with_directory(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the output directory, if the other arguments determine it.

    A resumed run writes where it wrote before; a sweep, into a directory named by its overrides.
    """
    values = dict(item.split("=", 1) for item in arguments if "=" in item and not item.startswith("-"))
    is_sweep = not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments)
    if "resume" in values:
        key, path = "hydra.run.dir", values["resume"].strip("'\"")
    elif (is_sweep or "hparams_search" in values) and "hydra.sweep.dir" not in values:
        overrides = [f"{key}={value}" for key, value in values.items() if not key.startswith("hydra")]
        key, path = "hydra.sweep.dir", f"outputs/sweeps/{name_of(overrides)}"
    else:
        return list(arguments)
    quoted = path.replace("'", "\\'")
    # Hydra reads names such as agent=sac,td3 only in quotes.
    complete = [f"resume='{quoted}'" if item.startswith("resume=") else item for item in arguments]
    # After the last override: Hydra takes no override that follows a flag, unless others do, too.
    place = max((index + 1 for index, item in enumerate(complete) if item.split("=")[0] in values), default=0)
    return [*complete[:place], f"{key}='{quoted}'", *complete[place:]]


def config_of(cfg: DictConfig, overrides: Sequence[str]) -> Config:
    """Return the typed configuration, which is the stored one with overrides if a run is resumed."""
    if cfg.resume is None:
        return typed_config(cfg)
    from mbpo_cli.config.stored import resumed_config

    return resumed_config(Path(cfg.resume), parsed(overrides), cfg.trust)


def checked_config(cfg: DictConfig, overrides: Sequence[str]) -> Config:
    """Return the typed configuration after a check that its components can be built."""
    from mbpo_cli.commands.check import check

    try:
        config = config_of(cfg, overrides)
        check(config)
    except (ConfigError, OmegaConfBaseException):
        raise
    except Exception as error:  # an environment or a user's module may raise anything
        raise ConfigError(f"{type(error).__name__} while the components were checked: {error}") from error
    return config


class CheckBeforeRun(Callback):
    """Checks the configuration of a single run before Hydra makes its directory."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raise `Rejected` if the configuration is wrong, or the directory cannot be used."""
        from mbpo_cli.storage.directory import check_usable

        try:
            checked = checked_config(config, config.hydra.overrides.task)
            check_usable(Path(config.hydra.run.dir), asdict(checked))
        except (ConfigError, OmegaConfBaseException, Busy) as reason:
            raise Rejected(reason) from reason
        except OSError as error:
            text = f"hydra.run.dir={config.hydra.run.dir}: {error.strerror or error}"
            raise Rejected(ConfigError(text)) from error


class Rejected(SystemExit):
    """Carries an error as its argument past Hydra, which only warns of ordinary exceptions in callbacks."""
