"""The command `mbpo-train`: compose, check, build, train, and return the score.

Torch is imported only when a run starts, so that help and tab completion are quick. Knows no algorithm.
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

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config

log = logging.getLogger(__name__)


def main() -> None:
    """Run `mbpo-train`: a bad configuration ends with one line and exit code 2."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, instead of printing many lines.
    hydra_plugins.mbpo.register()
    sys.argv[1:] = with_directory(sys.argv[1:])
    try:
        train_job()
    except (ConfigError, HydraException, OmegaConfBaseException, YAMLError, UnicodeError, Rejected) as error:
        cause = error.reason if isinstance(error, Rejected) else error
        if wants_traceback:
            raise cause from None
        from mbpo_cli.commands.errors import explain

        print(f"mbpo-train: error: {explain(cause)}", file=sys.stderr)
        raise SystemExit(getattr(cause, "exit_code", ConfigError.exit_code)) from None
    except RunFailed as error:  # the log has told it
        if wants_traceback:
            raise
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # before there was a log to tell it
        if wants_traceback:
            raise
        print(f"mbpo-train: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(StorageFailed.exit_code) from None
    except KeyboardInterrupt as error:
        print("mbpo-train: interrupted", file=sys.stderr)
        raise SystemExit(error.exit_code if isinstance(error, Interrupted) else 130) from None


@hydra.main(version_base=HYDRA_VERSION_BASE, config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME)
def train_job(cfg: DictConfig) -> float:
    """Train one run in Hydra's output directory and return its last evaluation, for sweepers."""
    from mbpo_cli.run import run

    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep and cfg.resume is not None:
        raise ConfigError(f"resume={cfg.resume}: goes on with one run; leave out --multirun")
    # A single run was checked before it got its directory.
    overrides = HydraConfig.get().overrides.task
    try:
        config = checked_config(cfg, overrides) if in_sweep else config_of(cfg, overrides)
    except ConfigError as error:  # the sweep goes on, and its job's log tells why this one did not
        log.error("%s", error)
        raise
    return run(config, Path(HydraConfig.get().runtime.output_dir), in_sweep)


def with_directory(arguments: Sequence[str]) -> list[str]:
    """Return a command line that says where to write, if that follows from the rest of it.

    A run that goes on writes where it wrote before, and a sweep where the same command did.
    """
    values = dict(item.split("=", 1) for item in arguments if "=" in item and not item.startswith("-"))
    is_sweep = not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments)
    if "resume" in values:
        key, path = "hydra.run.dir", values["resume"].strip("'\"")
    elif (is_sweep or "hparams_search" in values) and "hydra.sweep.dir" not in values:
        from mbpo_cli.sweeps.jobs import name_of

        overrides = [f"{key}={value}" for key, value in values.items() if not key.startswith("hydra")]
        key, path = "hydra.sweep.dir", f"outputs/sweeps/{name_of(overrides)}"
    else:
        return list(arguments)
    quoted = path.replace("'", "\\'")
    # Directories of sweeps have names that Hydra reads only in quotes.
    told = [f"resume='{quoted}'" if item.startswith("resume=") else item for item in arguments]
    # Among the other overrides, as no others are taken after a flag.
    place = max((index + 1 for index, item in enumerate(told) if item.split("=")[0] in values), default=0)
    return [*told[:place], f"{key}='{quoted}'", *told[place:]]


def config_of(cfg: DictConfig, overrides: Sequence[str]) -> Config:
    """Return the typed configuration: what was composed, or that of a run to go on with.

    Raises:
        ConfigError: Something is wrong with it.
    """
    if cfg.resume is None:
        return typed_config(cfg)
    from mbpo_cli.config.stored import resumed_config

    return resumed_config(Path(cfg.resume), parsed(overrides), cfg.trust)


def checked_config(cfg: DictConfig, overrides: Sequence[str]) -> Config:
    """Return the typed configuration, after a trial of its parts.

    Raises:
        ConfigError: Something is wrong with it.
    """
    from mbpo_cli.commands.check import check

    try:
        config = config_of(cfg, overrides)
        check(config)
    except (ConfigError, OmegaConfBaseException):
        raise
    except Exception as error:  # whatever an environment or a user's module may raise
        raise ConfigError(f"{type(error).__name__} while the parts were checked: {error}") from error
    return config


class CheckBeforeRun(Callback):
    """Checks a run's configuration before Hydra makes its directory."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration; Hydra turns exceptions here into warnings, but not an exit."""
        from mbpo_cli.storage import directory as run_directory

        try:
            checked = checked_config(config, config.hydra.overrides.task)
            run_directory.check_usable(Path(config.hydra.run.dir), asdict(checked))
        except (ConfigError, OmegaConfBaseException, Busy) as reason:
            raise Rejected(reason) from reason
        except OSError as error:
            text = f"hydra.run.dir={config.hydra.run.dir}: {error.strerror or error}"
            raise Rejected(ConfigError(text)) from error


class Rejected(SystemExit):
    """What forbids a run, on its way past Hydra, which swallows ordinary exceptions in callbacks."""

    def __init__(self, reason: Exception) -> None:
        """Carry the reason."""
        super().__init__()
        self.reason = reason
