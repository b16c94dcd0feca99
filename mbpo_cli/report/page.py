"""Write the page: a single HTML file with everything in it, for screen and paper.

Knows how to lay out what it is given; does not know how any of it was computed.
"""

from __future__ import annotations

import base64
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from mbpo_cli.failures import one_line
from mbpo_cli.report import table
from mbpo_cli.report.runs import Run
from mbpo_cli.report.sections import Section
from mbpo_cli.report.single import Account
from mbpo_cli.report.verdict import Comparison


def render(
    sections: Sequence[Section],
    over_all: Sequence[Comparison],
    roots: Sequence[Path],
    output: Path,
    every: int | None = None,
) -> str:
    """Return the page that compares runs; its links hold as long as runs and page stay where they are.

    The page will be in the directory `output`. The directories `roots` were searched for runs. `every` is the
    number of seconds after which the page is loaded again; None if it will not change.
    """
    members = [(group, run) for section in sections for group in section.groups for run in group.runs]
    return _rendered(
        "page.html",
        output,
        every,
        sections=sections,
        over_all=over_all,
        num_texts=table.NUM_TEXTS,
        rows=[table.cells(row) for section in sections for row in section.rows],
        comparisons=[pair.cells() for pair in (*over_all, *(p for s in sections for p in s.comparisons))],
        members=members,
        failed=[(group, run) for group, run in members if run.status == "failed"],
        commands=[shlex.join(["tensorboard", "--logdir", str(root.resolve())]) for root in roots],
    )


def render_one(account: Account, output: Path, every: int | None = None) -> str:
    """Return the page of a single run; the other arguments are those of `render`."""
    return _rendered("run.html", output, every, account=account)


def _rendered(name: str, output: Path, every: int | None, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        base64=lambda contents: base64.b64encode(contents).decode(),
        name=lambda run: one_line(run.path.name),
        number=lambda value: table.numbers(value)[0],
        **{function.__name__: function for function in (table.steps, table.duration, table.percent)},
    )

    def link(run: Run, name: str) -> str | None:
        path = run.path / name
        if not path.exists():
            return None
        return quote(os.fsencode(os.path.relpath(path.resolve(), output.resolve())))

    now = time.strftime("%H:%M:%S")
    return environment.get_template(name).render(link=link, every=every, now=now, **values)
