"""From the errors of Hydra and OmegaConf to one line that names key, value and what would be right."""

from __future__ import annotations

import difflib
import re
import sys
from importlib.resources import files
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mbpo_cli.config.compose import CONFIG_MODULE, composed, typed_config
from mbpo_cli.failures import Busy, ConfigError, one_line


def explain(error: BaseException) -> str:
    """Say in one line what is wrong with the command line."""
    if isinstance(error, ConfigError | Busy):
        return one_line(error)
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1])
    if match := re.search(r"Could not find '([^']+)'", text):
        return _unknown_choice(match[1], text)
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values for one run; add -m for one job each, or write a list as [a,b]"
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{getattr(error, 'full_key', '')}: refers to '{match[1]}', which is not there"
    override = getattr(error, "override", None)
    reason = one_line(text.partition("\nSee http")[0])
    return f"{override}: {reason}" if override else reason


def _unknown_key(key: str) -> str:
    value = next((a.partition("=")[2] for a in sys.argv[1:] if a.lstrip("+~").startswith(f"{key}=")), None)
    shown = key if value is None else f"{key}={value}"
    from mbpo_cli.config.typed import suggest

    groups = [argument for argument in sys.argv[1:] if _is_group(argument)]
    try:
        cfg = composed(*groups)
        config = typed_config(cfg)
    except (ConfigError, HydraException, OmegaConfBaseException):  # env=gym, without the id, for one
        cfg = composed()
        config = typed_config(cfg)
    choices = cfg.hydra.runtime.choices
    if value is not None:
        near = difflib.get_close_matches(key, [name for name in choices if name], n=1, cutoff=0.75)
        if near and "." not in key:
            return f"{shown}: no such option or group; did you mean {near[0]}={value}?"
    meant = suggest(key, config)
    hint = f"did you mean {meant}?" if meant else "mbpo-train --cfg job lists all options"
    return f"{shown}: no such option; {hint}"


def _is_group(argument: str) -> bool:
    key = argument.partition("=")[0]
    is_option = "." in key or key in ("seed", "device", "threads", "compile", "precision", "resume", "trust")
    return "=" in argument and not argument.startswith("-") and not is_option


def _nested(group: str) -> list[str]:
    """Return the choices of a group that lie in folders, which mark themselves as whole configurations."""
    folder = Path(str(files(CONFIG_MODULE))) / group
    paths = [path for path in sorted(folder.glob("*/*.yaml")) if "@package _global_" in path.read_text()]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in paths]


def _unknown_choice(path: str, text: str) -> str:
    typed = [argument.partition("=") for argument in sys.argv[1:]]
    given = next(((key, value) for key, _, value in typed if f"{key}/{value}" == path), None)
    group, choice = given or (path.rpartition("/")[0], path.rpartition("/")[2])
    available = [*re.findall(r"^\t(\w+)$", text, flags=re.MULTILINE), *_nested(group)]
    within = [name for name in available if name in choice.lower()]
    near = within or difflib.get_close_matches(choice, available, n=1)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={choice}: no such choice; {hint}available: {', '.join(available)}"
