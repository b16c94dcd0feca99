"""Write the table of all options into the README, from the fields' descriptions and the composed values.

python scripts/option_table.py
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from mbpo_cli.compose import make_config
from mbpo_cli.config import options_in

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"

# Every part that has options is chosen, and no environment tunes any.
CHOICES = [
    "env=gym",
    "env.id=any",
    "model/reward=deterministic",
    "mbpo/model_rollout_options/noise_options=gaussian",
]


def table() -> str:
    """Return all options as a Markdown table."""
    lines = ["| key | meaning | type, range | default | MATLAB |", "|---|---|---|---|---|"]
    for key, hint, meaning, value in options_in(make_config(*CHOICES)):
        if key.endswith("._target_") or key in ("env.id", "env.name"):
            continue
        kind = ", ".join(filter(None, (_kind(hint), meaning.range)))
        matlab = ", ".join(name for name in meaning.matlab if not name.startswith("rl"))
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        lines.append(f"| `{key}` | {meaning.text} | {kind} | {shown} | {matlab} |")
    return "\n".join(lines)


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " / ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " / ".join(_kind(choice) for choice in get_args(hint))
    if get_origin(hint) is list:
        return f"list of {_kind(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "mapping"
    return {int: "whole number", float: "number", bool: "true / false", str: "text", type(None): "null"}[hint]


def with_table(text: str) -> str:
    """Return the README's text with a fresh table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
