"""Tables of the measured pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table in Markdown from the cells of each row by heading; a missing cell is empty."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    table = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)
