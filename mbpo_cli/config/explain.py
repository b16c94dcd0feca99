"""One line for an error of Hydra or OmegaConf: the key, the value, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from omegaconf import DictConfig, OmegaConf

from mbpo_cli.config.values import LISTS, typed_config
from mbpo_cli.failures import ConfigError, one_line

MAX_LENGTH = 600
# What Hydra cannot find in a configuration.
UNKNOWN = re.compile(r"Could not override '([^']+)'")

Compose = Callable[[list[str]], DictConfig]
"""Composes a configuration from overrides."""
# Overrides that Hydra adds.
MODES = ("hydra.mode=RUN", "hydra.mode=MULTIRUN")

Choices = Callable[[str], list[str]]
"""From a group to its choices."""


def explain(error: BaseException, overrides: Sequence[str], compose: Compose, choices: Choices) -> str:
    """Describe an error of a configuration with these overrides in one line."""
    try:
        text = _described(error, overrides, compose, choices)
    except Exception:  # the other overrides are wrong, too
        text = str(error) or type(error).__name__
    text = one_line(text)
    half = MAX_LENGTH // 2
    return text if len(text) <= MAX_LENGTH else f"{text[:half]} ... {text[-half:]}"


def _described(error: BaseException, overrides: Sequence[str], compose: Compose, choices: Choices) -> str:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in chain:
        if isinstance(link, ConfigError):
            return str(link)
    text = ": ".join(filter(None, map(str, chain))) or type(error).__name__
    given = _given(overrides)
    if match := UNKNOWN.search(text):
        full = str(getattr(chain[-1], "full_key", ""))
        key = full if full.startswith(match[1]) else match[1]  # a key within a mapping that was given
        return _in_file(text) + _unknown_key(key, given, compose)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _in_file(text) + _unknown_choice(match[1], given, choices)
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", text):
        return f"{match[1]}: several values for one run; add -m for one job each, or write a list as [a,b]"
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{getattr(chain[-1], 'full_key', '')}: refers to '{match[1]}', which does not exist"
    if isinstance(chain[-1], RecursionError):
        text = "is nested too deeply, or contains itself"
    reason = re.split(r"\nSee http|\n(?:Config s|S)earch path:", text)[0]
    reason = re.sub(r"^Lexer\w+: .*", "cannot be read", reason, flags=re.DOTALL)
    override = getattr(error, "override", None)
    if override is None and not any(item.partition("=")[0] in reason for item in overrides):
        override = " ".join(item for item in overrides if item not in MODES)  # one of them
    return f"{override}: {reason}" if override else reason


def _in_file(text: str) -> str:
    """Return the file that Hydra names at the beginning of a message, unless it is the primary one."""
    match = re.match(r"In '([^']+/[^']+)': ", text)
    return f"{match[1]}.yaml: " if match and match[1] != "hydra/config" else ""


def _given(overrides: Sequence[str]) -> dict[str, str]:
    return {name.lstrip("+~"): value for name, _, value in (word.partition("=") for word in overrides)}


def _unknown_key(key: str, given: Mapping[str, str], compose: Compose) -> str:
    shown = f"{key}={given[key]}" if key in given else key
    config = compose([])
    groups = [*filter(None, config.hydra.runtime.choices), *LISTS]
    with suppress(Exception):  # one of these is wrong, too
        config = compose([f"{name}={value}" for name, value in given.items() if name in groups])
    if key.startswith("hydra."):
        *place, name = key.split(".")
        while not OmegaConf.is_dict(node := OmegaConf.select(config, ".".join(place))):
            name = place.pop()
        known = [str(name) for name in node]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {'.'.join([*place, *near])}?" if near else f"known are {', '.join(known)}"
        return f"{shown}: no such option; {hint}"
    near = difflib.get_close_matches(key, groups, n=1, cutoff=0.75)
    within = [group for group in groups if group.startswith(f"{key}/")]
    if within or "/" in key:
        return f"{shown}: no such group; known are {', '.join(within or groups)}"
    if near and "." not in key and key in given:
        return f"{shown}: no such option or group; did you mean {near[0]}={given[key]}?"
    group, _, rest = key.partition(".")
    if group in LISTS and rest and (name := rest.partition(".")[0]) not in config[group]:
        return f"{shown}: {name} is not chosen; {group}=[{','.join([*config[group], name])}] adds it"
    from mbpo_cli.config.suggest import suggest  # slow to import

    try:
        typed = typed_config(config)
    except ConfigError:  # such as env=gym without env.id
        typed = typed_config(compose([]))
    answer = suggest(key, typed, lambda choices: typed_config(compose(list(choices))))
    return f"{shown}: no such option; {answer or 'mbpo-train --cfg job lists all options'}"


def _unknown_choice(path: str, given: Mapping[str, str], choices: Choices) -> str:
    split = path.rpartition("/")[::2]
    group, choice = next((word for word in given.items() if "/".join(word) == path), split)
    available = choices(group)
    within = [name for name in available if name in choice.lower()]
    near = within or difflib.get_close_matches(choice, available, n=1)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={choice}: no such choice; {hint}available: {', '.join(available)}"
