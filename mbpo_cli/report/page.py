"""Write the page: a single HTML file with everything in it, for screen and paper.

Knows how to lay out what it is given; does not know how any of it was computed.
"""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import jinja2

from mbpo_cli.failures import one_line
from mbpo_cli.report import table
from mbpo_cli.report.runs import Run
from mbpo_cli.report.sections import Section
from mbpo_cli.report.verdict import Comparison


def render(
    sections: Sequence[Section], over_all: Sequence[Comparison], roots: Sequence[Path], output: Path
) -> str:
    """Return the page; its links to logs hold as long as the runs and the page stay where they are.

    The page will be in the directory `output`. The directories `roots` were searched for runs.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(
        base64=lambda contents: base64.b64encode(contents).decode(),
        name=lambda run: one_line(run.path.name),
        number=lambda value: table.numbers(value)[0],
        **{function.__name__: function for function in (table.steps, table.duration, table.percent)},
    )
    members = [(group, run) for section in sections for group in section.groups for run in group.runs]

    def link(run: Run, name: str) -> str | None:
        path = run.path / name
        if not path.exists():
            return None
        return quote(os.fsencode(os.path.relpath(path.resolve(), output.resolve())))

    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.render(
        sections=sections,
        over_all=over_all,
        num_texts=table.NUM_TEXTS,
        rows=[table.cells(row) for section in sections for row in section.rows],
        comparisons=[pair.cells() for pair in (*over_all, *(p for s in sections for p in s.comparisons))],
        members=members,
        failed=[(group, run) for group, run in members if run.status == "failed"],
        commands=[shlex.join(["tensorboard", "--logdir", str(root.resolve())]) for root in roots],
        link=link,
    )
