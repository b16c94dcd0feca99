"""The page: everything in one HTML file that needs nothing else, for screen and paper.

Knows how to lay out what it is given; does not know how any of it was computed.
"""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import jinja2

from mbpo_cli.failures import one_line
from mbpo_cli.report.groups import ABSENT, Group, differing_keys
from mbpo_cli.report.runs import Run
from mbpo_cli.report.table import HEADINGS, NUM_TEXTS, Row, cells, duration, numbers, steps
from mbpo_cli.report.verdict import Comparison, Verdict, percent


@dataclass(frozen=True)
class Section:
    """One environment on the page.

    Attributes:
        env: Its name.
        groups: Its groups, best first.
        rows: The same in numbers.
        comparisons: All pairs of them.
        verdict: What comes of it.
        png: The picture.
        notes: What to say of threshold and reference.
    """

    env: str
    groups: Sequence[Group]
    rows: Sequence[Row]
    comparisons: Sequence[Comparison]
    verdict: Verdict
    png: bytes
    notes: Sequence[str]

    @property
    def image(self) -> str:
        """The picture as part of the page."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def differences(self) -> list[tuple[str, ...]]:
        """Each option that differs, with its value in each group."""
        configs = [group.config for group in self.groups]
        return [(key, *(config.get(key, ABSENT) for config in configs)) for key in differing_keys(configs)]


def render(
    sections: Sequence[Section], over_all: Sequence[Comparison], roots: Sequence[Path], output: Path
) -> str:
    """Return the page, whose links to logs hold as long as runs and page stay where they are.

    Args:
        sections: The environments.
        over_all: Comparisons over several environments.
        roots: The directories that were searched, for TensorBoard.
        output: Where the page will lie.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(
        name=lambda run: one_line(run.path.name),
        number=lambda value: numbers(value)[0],
        steps=steps,
        duration=duration,
        percent=percent,
    )
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    members = [(group, run) for section in sections for group in section.groups for run in group.runs]

    def link(run: Run, name: str) -> str | None:
        path = run.path / name
        if not path.exists():
            return None
        return quote(os.fsencode(os.path.relpath(path.resolve(), output.resolve())))

    return template.render(
        sections=sections,
        over_all=over_all,
        headings=HEADINGS,
        num_texts=NUM_TEXTS,
        rows=[cells(row) for section in sections for row in section.rows],
        comparisons=[pair.cells() for pair in (*over_all, *(p for s in sections for p in s.comparisons))],
        members=members,
        failed=[(group, run) for group, run in members if run.status == "failed"],
        commands=[shlex.join(["tensorboard", "--logdir", str(root.resolve())]) for root in roots],
        link=link,
    )
