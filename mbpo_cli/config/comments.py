"""A printed configuration for a person at a terminal: colored, with the meaning and range of each option.

Reads meanings from the JSON schema, as their declarations import torch. The result is the same YAML but for
comments and colors.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import yaml

from mbpo_cli.config.compose import config_folder
from mbpo_cli.options import Meaning

KEY, COMMENT, END = "\x1b[36m", "\x1b[2m", "\x1b[0m"
MIN_COMMENT = 30  # columns
WORDS = {"string": "text", "boolean": "true or false", "object": "a mapping", "null": "null"}

Schema = Mapping[str, Any]


def schema_for(text: str, config_dir: str | None) -> Schema:
    """Return the schema that explains a printed configuration, which may name components of the user."""
    shipped = (config_folder() / "schema.json").read_text(encoding="utf-8")
    if config_dir is not None and any(name not in shipped for name in re.findall(r"_target_: (\S+)", text)):
        with suppress(Exception):  # of the user's code; the configuration itself has no comments then
            from mbpo_cli.config.schema import schema_text  # slow to import

            shipped = schema_text(config_dir)
    schema: Schema = json.loads(shipped)
    return schema


def commented(text: str, schema: Schema, package: str, width: int, is_colored: bool) -> str:
    """Return the YAML text of a configuration, or of a package of it, with comments.

    `width` is that of the terminal, in columns.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:  # a single value of a package is printed as it is
        return text
    definitions, group = schema["definitions"], schema
    for name in filter(None, package.split(".")):
        group = _fields(group, definitions, None).get(name, {})
    keys: dict[int, yaml.Node] = {}
    comments: dict[int, str] = {}
    for key, at, comment in _explained(root, group, definitions):
        keys[key.start_mark.line] = key
        comments[at] = comment
    column = width * 2 // 5
    lines: list[str] = []
    for number, line in enumerate(text.splitlines()):
        before = line
        if is_colored and number in keys:
            start, end = keys[number].start_mark.column, keys[number].end_mark.column
            before = f"{line[:start]}{KEY}{line[start:end]}{END}{line[end:]}"
        parts = textwrap.wrap(comments.get(number, ""), max(width - column - 2, MIN_COMMENT))
        notes = [f"{COMMENT}# {part}{END}" if is_colored else f"# {part}" for part in parts]
        if notes and len(line) + 2 <= column:
            before += " " * (column - len(line)) + notes.pop(0)
        lines += [before, *(" " * column + note for note in notes)]
    return "\n".join(lines) + "\n"


def _explained(node: Any, group: Schema, definitions: Schema) -> Iterator[tuple[yaml.Node, int, str]]:
    """Yield each key in a mapping, the line to comment on, and the comment, which may be empty."""
    if not isinstance(node, yaml.MappingNode):
        return
    targets = [value.value for key, value in node.value if key.value == "_target_"]
    fields = _fields(group, definitions, targets[0] if targets else None)
    for key, value in node.value:
        field = _followed(fields.get(key.value, {}), definitions)
        line, comment = key.start_mark.line, _comment(field)
        if isinstance(value, yaml.ScalarNode):
            line = value.end_mark.line
            if value.style in ("|", ">"):  # where a comment would be a part of the text
                comment = ""
        yield key, line, comment
        yield from _explained(value, field, definitions)


def _followed(part: Schema, definitions: Schema) -> Schema:
    reference = str(part.get("$ref", ""))
    return definitions[reference.removeprefix("#/definitions/")] if reference else part


def _fields(group: Schema, definitions: Schema, target: str | None) -> Schema:
    """Return the schemas of the options in a group: of the component with this `_target_`, or of all."""
    group = _followed(group, definitions)
    fields: dict[str, Any] = {}
    for each in group.get("anyOf", [group]):
        found = each.get("properties", {})
        known = found.get("_target_", {}).get("const")
        if target is None or known in (None, target):
            fields |= found
        if known is not None and known == target:
            fields["_target_"] = {"description": each["description"]}
    return fields


def _comment(field: Schema) -> str:
    """Return what is to be said of an option or group, or an empty string."""
    values = [_words(value) for value in field.get("anyOf", []) if not {"$ref", "properties"} & value.keys()]
    # Otherwise the value itself shows what it may be.
    is_told = any(value not in WORDS.values() for value in values)
    meaning = re.sub(r" \(MATLAB: [^)]*\)$", "", field.get("description", ""))
    return "; ".join(filter(None, [meaning, " or ".join(values) if is_told else ""]))


def _words(value: Schema) -> str:
    """Describe the values that one type of the schema allows."""
    if "enum" in value:
        return " or ".join(map(str, value["enum"]))
    kind = value["type"]
    if kind == "array":
        return f"a list [each {' or '.join(map(_words, value['items']['anyOf']))}]"
    if kind in ("integer", "number"):
        get, noun = value.get, "a whole number" if kind == "integer" else "a number"
        bounds = Meaning("", get("minimum"), get("maximum"), get("exclusiveMinimum"))
        return f"{noun} {bounds.range}".rstrip()
    return WORDS[kind]
