"""The JSON schema of the configuration, with which editors complete and check YAML files.

It is derived from the declarations of the options and has no values. No option is required, because
the files of a configuration complete each other.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from mbpo_cli.config.compose import config_folder
from mbpo_cli.config.typed import Config, choices, component_in, options_of
from mbpo_cli.options import Component, Meaning, resolve

Schema = dict[str, Any]

TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", dict: "object", type(None): "null"}
# Any option may be a reference to another. Editors read YAML 1.2, in which 10_000 is text.
REFERENCE = {"type": "string", "pattern": r"^(\$\{(rule:)?[\w.]+\}|\d[\d_]*)$"}
NOT_OF_A_RUN = {
    "hydra": {"description": "Hydra's own options", "type": "object"},
    "resume": {"description": "directory of the run to resume", "type": ["string", "null"]},
    "trust": {
        "description": "packages whose code the configuration of that run may name",
        "type": "array",
        "items": {"type": "string"},
    },
}


def schema_text(config_dir: str | None = None) -> str:
    """Return the schema as text, with the components in a folder of the user."""
    folders = [config_folder(), *([Path(config_dir)] if config_dir else [])]
    groups: dict[str, Schema] = {"reference": REFERENCE}
    run = _Writer(folders, groups).group(Config, "")
    run["properties"] |= NOT_OF_A_RUN
    # Nothing else at the top: an editor adds it to every definition that a file names.
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$ref": "#/definitions/run",
        "definitions": {"run": run, **dict(sorted(groups.items()))},
    }
    return json.dumps(schema, indent=1)


@dataclass
class _Writer:
    """Writes the schemas of groups; those with a folder in `conf/` become definitions."""

    folders: Sequence[Path]
    definitions: dict[str, Schema]

    def group(self, cls: type[Any], prefix: str) -> Schema:
        """Return the schema of a group whose keys begin with `prefix`."""
        options = {
            name: self._option(hint, meaning, prefix + name)
            for name, (hint, meaning) in options_of(cls).items()
        }
        defaults = {"defaults": {"type": "array"}}  # Hydra's defaults list
        return {"type": "object", "properties": defaults | options, "additionalProperties": False}

    def _option(self, hint: Any, meaning: Meaning, path: str) -> Schema:
        matlab = f" (MATLAB: {', '.join(meaning.matlab)})" if meaning.matlab else ""
        description = {"description": meaning.text + matlab}
        if component_in(hint):
            return self._components(description, path)
        if not (isinstance(hint, type) and is_dataclass(hint)):
            return description | {"anyOf": [*_values(hint, meaning), {"$ref": "#/definitions/reference"}]}
        if not (self.folders[0] / path.replace(".", "/")).is_dir():
            return description | self.group(hint, f"{path}.")
        if issubclass(hint, Component):
            targets = sorted({target for _, target in self._targets(path)})
            group = {"anyOf": [self._component(target, path) for target in targets]}
        else:
            group = self.group(hint, f"{path}.")
        self.definitions[path] = description | group
        return {"$ref": f"#/definitions/{path}"}

    def _components(self, description: Schema, path: str) -> Schema:
        """Return the schema of a mapping of components by name; any of them may have another name."""
        targets = sorted(self._targets(path))
        self.definitions[path] = description | {
            "anyOf": [self._component(target, path) for _, target in targets]
        }
        reference = {"$ref": f"#/definitions/{path}"}
        return {
            **description,
            "type": "object",
            "properties": {name: reference for name, _ in targets},
            "additionalProperties": reference,
        }

    def _targets(self, path: str) -> Iterator[tuple[str, str]]:
        """Yield the name and the class of each component of a group."""
        for folder in self.folders:
            for file in (folder / path.replace(".", "/")).glob("*.yaml"):
                values = yaml.safe_load(file.read_text("utf-8")) or {}
                if "_target_" in values:
                    yield file.stem, values["_target_"]

    def _component(self, target: str, path: str) -> Schema:
        component = resolve(target)
        group = self.group(component.Options, f"{path}.")
        group["properties"]["_target_"] = {"const": target}
        return {"description": (inspect.getdoc(component) or "").partition("\n")[0]} | group


def _values(hint: Any, meaning: Meaning) -> list[Schema]:
    """Return a schema for each type that an option may have."""
    bounds = {"minimum": meaning.low, "maximum": meaning.high, "exclusiveMinimum": meaning.above}
    schemas: list[Schema] = []
    for choice in choices(hint):
        kind = get_origin(choice) or choice
        if kind is Literal:
            schemas.append({"enum": list(get_args(choice))})
        elif kind is list:
            items = {"anyOf": _values(get_args(choice)[0], meaning)}
            schemas.append({"type": "array", "items": items, "minItems": 1})
        elif kind in (int, float):
            given = {name: bound for name, bound in bounds.items() if bound is not None}
            schemas.append({"type": TYPES[kind], **given})
        else:
            schemas.append({"type": TYPES[kind]})
    return schemas
