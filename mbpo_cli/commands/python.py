"""`train` for scripts and notebooks: the checks, the errors and the lines of progress of `mbpo-train`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from mbpo_cli.commands.check import check
from mbpo_cli.config.typed import Config
from mbpo_cli.envs.functions import EnvSource, registered
from mbpo_cli.evaluation.callbacks import Callback
from mbpo_cli.failures import ConfigError
from mbpo_cli.run import run
from mbpo_cli.storage.directory import check_same
from mbpo_cli.storage.records import CONFIG


def train(
    config: Config,
    path: str | os.PathLike[str],
    in_sweep: bool = False,
    trust: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    env: EnvSource | None = None,
) -> float:
    """Train in the run directory `path`, and return the score: the mean return of the last evaluations.

    If the directory holds a run with the same configuration, the run resumes from its last checkpoint, with
    the same results as if it had never stopped. Progress is printed unless logging is set up, or
    `logging.getLogger("mbpo_cli")` has a level.

    Args:
        config: What `make_config` returns.
        path: The run directory.
        in_sweep: True if other jobs run, too.
        trust: Packages that runs to begin with (options `from_run`) may import.
        callbacks: They look at the run while it trains, and may end it.
        env: What makes the environment, as given to `make_config`. It is not stored: a run that is resumed
            needs it again.

    Raises:
        ConfigError: The configuration is wrong, or the directory holds a run with another one; nothing was
            written.
        RunFailed: Any other failure; it has been logged.
        Interrupted: The run stopped on request; checkpoint, summary and policy are written.
        KeyboardInterrupt: Ctrl-C was pressed twice; the last checkpoint remains.
    """
    if not isinstance(config, Config):
        kind = type(config).__name__
        raise ConfigError(f"config: must be what make_config('env=pendulum', 'seed=1') returns, not a {kind}")
    path = Path(path)
    with registered(env) as env_id:
        if env_id not in (None, config.env.id):
            raise ConfigError(
                f"env: makes {env_id}, but config is for {config.env.id}; give make_config the same function"
            )
        check_same(path, asdict(config), "path")
        check(config, is_new=not (path / CONFIG).exists(), trust=trust)
        with _printed_log():
            return run(config, path, in_sweep, trust, callbacks)


@contextmanager
def _printed_log() -> Iterator[None]:
    """Print what this package logs, unless the caller has decided what happens to it."""
    root, package = logging.getLogger(), logging.getLogger("mbpo_cli")
    if root.handlers or package.handlers or package.level:
        yield
        return
    handler = logging.StreamHandler(sys.stdout)
    root.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        package.setLevel(logging.NOTSET)
