"""One line for an error of Hydra or OmegaConf: the key, the value, and what would be right."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
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

# Python's tuples are lists here.
BRACKETS = str.maketrans("()", "[]")

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
        return _in_file(text) + _unknown_key(key, given, compose, choices)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _in_file(text) + _unknown_choice(match[1], given, choices)
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", text):
        point = ", or decimals with a point" if re.search(r"=0,\d+$", match[1]) else ""
        point = ", or thousands without commas" if re.search(r"=[1-9]\d{0,2}(,\d{3})+$", match[1]) else point
        reason = "several values for one run; add -m for one job each, or write a list as [a,b]"
        return f"{match[1]}: {reason}{point}"
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{getattr(chain[-1], 'full_key', '')}: refers to '{match[1]}', which does not exist"
    if isinstance(chain[-1], RecursionError):
        text = "is nested too deeply, or contains itself"
    reason = re.split(r"\nSee http|\n(?:Config s|S)earch path:", text)[0]
    reason = re.sub(r"^Lexer\w+: .*", "cannot be read", reason, flags=re.DOTALL)
    override = getattr(error, "override", None)
    if override and (parts := re.fullmatch(r"([\w.]+)\(\d+\)([\w.]*)=(.*)", override)):  # MATLAB's index
        key = parts[1] + parts[2]
        answer = _unknown_key(key, {key: parts[3]}, compose, choices)
        return answer.replace(f"{key}={parts[3]}", override, 1) + " (one for all, without an index)"
    if hint := _readable(overrides, override):
        return hint
    if override is None and not any(item.partition("=")[0] in reason for item in overrides):
        override = " ".join(item for item in overrides if item not in MODES)  # one of them
    return f"{override}: {reason}" if override else reason


def _readable(words: Sequence[str], wrong: str | None) -> str | None:
    """Say what to write instead of a `wrong` word of the command line; None if that is unknown."""
    if wrong not in words:
        return None
    for parts, chunk in _joined(words):
        for text in _variants(chunk):
            if wrong in parts and "=" in text and [text] != parts and _is_override(text):
                return f"{' '.join(parts)}: cannot be read; write {shlex.quote(text)}"
    if wrong is not None and " " in wrong.strip():  # in quotes, or from Python
        chunks = [chunk for _, chunk in _joined(wrong.split())]
        if all("=" in chunk and _is_override(chunk) for chunk in chunks):
            return f"{wrong}: is not one option; write {shlex.join(chunks)}, each by itself"
    if wrong is not None and "=" not in wrong:
        return f"{wrong}: needs a key and a value, as in seed=1, and quotes if there are spaces: 'key=[1, 2]'"
    return None


def _variants(text: str) -> list[str]:
    """Return what somebody may have meant who writes lists and mappings as other languages do."""
    with_commas = re.sub(r"(?<=[\w.]) +(?=[\w.+-])", ",", text) if "[" in text and "," not in text else text
    with_plain_keys = re.sub(r"""(['"])(\w+)\1\s*:""", r"\2:", text)
    with_colons = re.sub(r"(?<=[{, ])(\w+)=", r"\1: ", text) if "{" in text else text
    with_equals = re.sub(r"^([\w./]+) ?(==|:=?) ?", r"\1=", text)
    return [with_commas, with_plain_keys, with_colons, text.translate(BRACKETS), with_equals]


def _joined(words: Sequence[str]) -> list[tuple[list[str], str]]:
    """Join what a shell has split at spaces: within brackets, at equals signs, and a key from its value."""
    chunks: list[tuple[list[str], str]] = []
    for word in words:
        parts, last = chunks[-1] if chunks else ([], "")
        is_open = any(last.count(left) > last.count(right) for left, right in ("[]", "{}", "()"))
        if is_open:
            joined = f"{last} {word}"
        elif last and (last.endswith("=") or word.startswith("=")):
            joined = last + word
        elif last and "=" not in last + word:
            joined = f"{last}={word}"
        else:
            chunks.append(([word], word))
            continue
        chunks[-1] = [*parts, word], joined
    return chunks


def _is_override(text: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(text).key_or_group)
    except HydraException:
        return False


def _in_file(text: str) -> str:
    """Return the file that Hydra names at the beginning of a message, unless it is the primary one."""
    match = re.match(r"In '([^']+/[^']+)': ", text)
    return f"{match[1]}.yaml: " if match and match[1] != "hydra/config" else ""


def _given(overrides: Sequence[str]) -> dict[str, str]:
    return {name.lstrip("+~"): value for name, _, value in (word.partition("=") for word in overrides)}


def _unknown_key(key: str, given: Mapping[str, str], compose: Compose, choices: Choices) -> str:
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
    if "/" in key and OmegaConf.select(config, dotted := key.replace("/", ".")) is not None:
        return f"{shown}: no such group; did you mean {dotted}?"
    chosen, parent = config.hydra.runtime.choices, key.rpartition("/")[0]
    if parent in chosen and choices(key):
        return f"{shown}: {parent}={chosen[parent]} has no such part"
    if "/" in key:
        own = [group for group in groups if not group.startswith("hydra/")]
        return f"{shown}: no such group; known are {', '.join(own)}"
    if within := [group for group in groups if group.startswith(f"{key}/")]:
        having = [f"{group}={given[key]}" for group in within if given.get(key) in choices(group)]
        hint = f"did you mean {' or '.join(having)}?" if having else f"known are {', '.join(within)}"
        return f"{shown}: no such group; {hint}"
    near = difflib.get_close_matches(key, groups, n=1, cutoff=0.75)
    if near and "." not in key and key in given:
        hint = choice_hint(near[0], given[key], choices(near[0]))
        nearest = "" if hint.startswith("did you mean") else f"the nearest group is {near[0]}, "
        return f"{shown}: no such option or group; {nearest}{hint}"
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
    own = f"your own: --config-dir FOLDER, for FOLDER/{group}/{choice}.yaml"
    return f"{group}={choice}: no such choice; {choice_hint(group, choice, choices(group))}; {own}"


def choice_hint(group: str, choice: str, available: Sequence[str]) -> str:
    """Say which choices a group has, and which of them was probably meant."""
    within = [name for name in available if name in choice.lower()]
    initials = [name for name in available if choice == "".join(word[:1] for word in name.split("_"))]
    near = within or initials or difflib.get_close_matches(choice, available, n=1)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    if group == "env" and re.search(r"-v\d+$|:", choice):
        hint += f"for any environment of Gymnasium: env=gym env.id={choice}; "
    return f"{hint}available: {', '.join(available)}"
