"""Write the tables of MATLAB's options into docs/matlab.md, from MATLAB's names in the declarations.

python -m scripts.matlab_table
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from mbpo_cli.config.compose import make_config
from mbpo_cli.config.matlab import OBJECTS, REMARKS, MatlabObject
from mbpo_cli.config.typed import options_in
from scripts.option_table import COMMON, shown, with_part

PAGE = Path(__file__).parents[1] / "docs" / "matlab.md"
BEGIN, END = "<!-- matlab: begin -->", "<!-- matlab: end -->"


config_with = functools.cache(make_config)


def keys_of(entry: MatlabObject) -> dict[str, dict[str, Any]]:
    """Return the keys here, with their defaults, of each option of an object of MATLAB."""
    keys: dict[str, dict[str, Any]] = {name: {} for name in entry.options}
    for key, _, meaning, value in options_in(config_with(*COMMON, *entry.choices), groups=True):
        for name in meaning.matlab:
            if name in keys and entry.has(key):
                keys[name][key] = value
    return keys


def remark_of(title: str, name: str) -> str:
    """Return what is said of an option of an object of MATLAB."""
    return REMARKS.get(f"{title}.{name}", REMARKS.get(name, ""))


def table() -> str:
    """Return a section with a table for each object of MATLAB."""
    return "\n\n".join("\n".join(_section(title, entry)) for title, entry in OBJECTS.items())


def _section(title: str, entry: MatlabObject) -> Iterator[str]:
    places = ", ".join(f"`{place}`" for place in entry.places)
    choices = ", ".join(f"`{choice}`" for choice in entry.choices)
    yield f"### {title}\n"
    yield f"Here: {places}{f', with {choices}' if choices else ''}.\n"
    yield "| MATLAB | default there | here | default here | remark |"
    yield "|---|---|---|---|---|"
    for name, keys in keys_of(entry).items():
        # The same option of several groups stands in the table once.
        ends = {key: key.removeprefix(_place(entry, key)) for key in keys}
        repeated = {end for end in ends.values() if list(ends.values()).count(end) > 1}
        here = dict.fromkeys(f"`*{end}`" if end in repeated else f"`{key}`" for key, end in ends.items())
        defaults = dict.fromkeys(shown(value) for value in keys.values() if not is_dataclass(value))
        cells = (name, entry.options[name], ", ".join(here), ", ".join(defaults), remark_of(title, name))
        yield f"| {' | '.join(cells)} |"


def _place(entry: MatlabObject, key: str) -> str:
    """Return the group of the object in which an option lies."""
    return next(place for place in entry.places if f"{key}.".startswith(f"{place}."))


def with_table(text: str) -> str:
    """Return the page's text with fresh tables."""
    return with_part(text, BEGIN, table(), END)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
