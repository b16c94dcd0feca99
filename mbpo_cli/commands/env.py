"""The command `mbpo-env`: look at an environment of one's own, and write a preset for it.

Slow imports follow the parsing of arguments. Only calls what does the work.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbpo_cli.commands.arguments import PlainParser, check_output, check_place, places, start, whole_number
from mbpo_cli.failures import ConfigError, RunFailed
from mbpo_cli.storage.files import write_whole

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config
    from mbpo_cli.envs.lint import Finding

# Of a first run; the preset says so, and the command line may say something else.
STEPS = "trainer.num_env_steps=10_000"
EVERY = "trainer.evaluate_every_steps=500"
TIMEOUT = 60.0  # seconds of a call, if the environment has no limit of its own


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-env`; exit code 1 if something prevents training, and 2 with one line for a mistake."""
    start(_parser(), examine, arguments)


def examine(options: argparse.Namespace) -> None:
    """Look at an environment, print what is found, and write what was asked for.

    Raises:
        ConfigError: The arguments are wrong; nothing has been written.
    """
    _check(options)
    from mbpo_cli.config.compose import make_config
    from mbpo_cli.config.preset import text_of
    from mbpo_cli.envs import lint

    given = {"reward": options.reward, "is_done": options.is_done}
    known = {part: function for part, function in given.items() if function is not None}
    chosen = ["env=gym", f"env.id={options.env}", *options.options]
    for part, function in known.items():
        chosen += [f"env.{part}_function={function}", f"model/{part}=known"]
    found = list(lint.unregistered(options.env))
    config = make_config(STEPS, EVERY, *chosen)
    kind, more, errors, picture = _looked_at(config, options.seconds, "is_done" in known)
    found = sorted(found + more, key=lambda finding: lint.LEVELS.index(finding.level))
    command = ["mbpo-train", *chosen, f"agent={kind}", STEPS]
    files = {}
    if options.picture is not None and picture is not None:
        files[options.picture] = picture
    if found[-1].level == "error":
        train = None
    elif options.write is None:
        train = shlex.join(command)
    else:
        folder, name = options.write.parents[1], options.write.stem
        train = shlex.join(["mbpo-train", "--config-dir", str(folder), f"env={name}", f"agent={kind}"])
        files[options.write] = text_of(config, name, list(known), train).encode()
        options.write.parent.mkdir(parents=True, exist_ok=True)
    said = places(files)
    for path, content in files.items():
        write_whole(path, content)
    if options.json:
        findings = [finding._asdict() for finding in found]
        print(json.dumps({"findings": findings, "model": errors, "train": train}, indent=2))
    else:
        print(*found, *filter(None, (said, train and f"train with: {train}")), sep="\n")
    if train is None:
        raise SystemExit(RunFailed.exit_code)


def _looked_at(
    config: Config, seconds: int, knows_end: bool
) -> tuple[str | None, list[Finding], dict[str, Any], bytes | None]:
    """Return an agent that suits, what is found, the errors of a first model, and their picture."""
    from mbpo_cli.commands.check import check_known_functions
    from mbpo_cli.envs import environment, lint
    from mbpo_cli.envs.spaces import UnsuitableSpace
    from mbpo_cli.envs.watchdog import watching
    from mbpo_cli.failures import one_line, place_of
    from mbpo_cli.trained import first_model
    from mbpo_cli.types import DiscreteActions

    timed = replace(config.env, step_timeout=config.env.step_timeout or TIMEOUT)
    found: list[Finding] = []
    try:
        with watching(timed.step_timeout, config.env.id, "making it, or Gymnasium's check of it"):
            with closing(environment.make_wrapped(timed)) as plain:
                found += lint.of_checker(plain)
            env = environment.make(timed)
    except UnsuitableSpace as error:
        return None, [*found, lint.Finding("error", "spaces", str(error))], {}, None
    except Exception as error:
        fault = one_line(environment.fault_of(error, config.env))
        if not place_of(error):  # an argument is wrong, not what a user wrote
            raise ConfigError(fault) from error
        return None, [*found, lint.Finding("error", "cannot be made", fault)], {}, None
    with closing(env):
        check_known_functions(config, env.spaces)
        _tell("playing random steps ...")
        hold_steps = config.agent.warm_start_hold_steps
        more, played = lint.lint(env, lambda: environment.make(timed), config.seed, hold_steps, knows_end)
    found += more
    kind = "dqn" if isinstance(env.spaces.actions, DiscreteActions) else "sac"
    if any(finding.about == "fails" for finding in found):
        return kind, found, {}, None
    found += first_model.of_known(config, env.spaces, played)
    if seconds == 0:
        return kind, found, {}, None
    _tell(f"fitting a first model, {seconds} s at most ...")
    finding, errors, picture = first_model.of_fit(config, env.spaces, played, seconds)
    return kind, [*found, finding], errors, picture


def _check(options: argparse.Namespace) -> None:
    """Check the arguments before anything slow is imported."""
    if "=" in options.env:
        raise ConfigError(f"{options.env}: must be an id, such as my_lab.tank:Tank-v0")
    if wrong := [word for word in options.options if not word.startswith("env.")]:
        raise ConfigError(f"{wrong[0]}: must be an option of the environment, as 'env.kwargs={{size: 3}}'")
    if options.picture is not None:
        if options.seconds == 0:
            raise ConfigError(f"--picture {options.picture}: shows a first model; --seconds must not be 0")
        check_output("--picture", options.picture, (".png",))
    path = options.write
    if path is None:
        return
    from mbpo_cli.config.compose import config_folder

    if path.suffix != ".yaml" or path.parent.name != "env" or not re.fullmatch(r"[A-Za-z][\w-]*", path.stem):
        raise ConfigError(f"--write {path}: must be as my_conf/env/NAME.yaml")
    if (config_folder() / "env" / path.name).exists():
        raise ConfigError(f"--write {path}: this program has env={path.stem}; choose another name")
    if os.path.lexists(path):
        raise ConfigError(f"--write {path}: exists; choose another name, or remove it")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--write {path}: {there} is not a writable directory")
    check_place("--write", path)


def _tell(what: str) -> None:
    """Say on a terminal what takes time."""
    if sys.stderr.isatty():
        print(what, file=sys.stderr)


def _parser() -> PlainParser:
    what = "Look at an environment: does it suit training, what should be mended, and how?"
    parser = PlainParser("mbpo-env", what)
    add = parser.add_argument
    add("env", metavar="ENV", help="Gymnasium's id, module:id, or module:Class")
    usual = "options of mbpo-train, as 'env.kwargs={size: 3}' or env.module=MODULE"
    add("options", nargs="*", metavar="env.KEY=VALUE", help=usual)
    add("--reward", metavar="package.fn", help="known reward function")
    add("--is-done", metavar="package.fn", help="known is-done function")
    limit = "time for the fit of a first model (30); 0 = none"
    add("--seconds", type=whole_number(0, 3_600), default=30, metavar="N", help=limit)
    add("--picture", type=Path, metavar="FILE.png", help="file for a picture of that model's errors")
    add("--write", type=Path, metavar="FILE.yaml", help="file for a preset, as my_conf/env/NAME.yaml")
    add("--json", action="store_true", help="print what is found as JSON")
    return parser


if __name__ == "__main__":
    main()
