"""One line for an error of Hydra or OmegaConf: the key, the value, and what would be right."""

from __future__ import annotations

import difflib
import re
import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mbpo_cli.config.compose import composed, config_folder, make_config
from mbpo_cli.failures import Busy, ConfigError, one_line


def explain(error: BaseException) -> str:
    """Describe an error of the command line in one line."""
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
        return f"{getattr(error, 'full_key', '')}: refers to '{match[1]}', which does not exist"
    override = getattr(error, "override", None)
    reason = one_line(text.partition("\nSee http")[0])
    return f"{override}: {reason}" if override else reason


def _unknown_key(key: str) -> str:
    from mbpo_cli.config.typed import suggest  # slow to import

    given = {name.lstrip("+~"): value for name, _, value in (word.partition("=") for word in sys.argv[1:])}
    shown = f"{key}={given[key]}" if key in given else key
    groups = composed().hydra.runtime.choices
    near = difflib.get_close_matches(key, filter(None, groups), n=1, cutoff=0.75)
    if near and "." not in key and key in given:
        return f"{shown}: no such option or group; did you mean {near[0]}={given[key]}?"
    try:
        config = make_config(*(f"{name}={value}" for name, value in given.items() if name in groups))
    except (ConfigError, HydraException, OmegaConfBaseException):  # such as env=gym without env.id
        config = make_config()
    meant = suggest(key, config)
    hint = f"did you mean {meant}?" if meant else "mbpo-train --cfg job lists all options"
    return f"{shown}: no such option; {hint}"


def _unknown_choice(path: str, text: str) -> str:
    words = (word.partition("=")[::2] for word in sys.argv[1:])
    split = path.rpartition("/")[::2]
    group, choice = next((word for word in words if "/".join(word) == path), split)
    # Whole configurations may lie in subfolders, which Hydra does not list.
    folder = config_folder() / group
    nested = [file for file in sorted(folder.glob("*/*.yaml")) if "@package _global_" in file.read_text()]
    available = re.findall(r"^\t(\w+)$", text, flags=re.MULTILINE)
    available += [file.relative_to(folder).with_suffix("").as_posix() for file in nested]
    within = [name for name in available if name in choice.lower()]
    near = within or difflib.get_close_matches(choice, available, n=1)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={choice}: no such choice; {hint}available: {', '.join(available)}"
