"""The command `mbpo-report`: compare runs, and write a table, pictures and a page.

Slow imports wait until there are runs to report on.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mbpo_cli.commands.arguments import check_place
from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.report import reference
from mbpo_cli.report.groups import grouped
from mbpo_cli.report.runs import find, read
from mbpo_cli.storage.files import write_whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-report`; an error is reported in one line, with exit code 2, and nothing is written."""
    logging.basicConfig(format="mbpo-report: %(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    options = _parser().parse_args(arguments)
    try:
        report(options.paths, options.output, options.reference, options.threshold)
    except (ConfigError, OSError) as error:
        print(f"mbpo-report: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(ConfigError.exit_code) from None


def report(
    roots: Sequence[Path], output: Path, published: Path | None = None, threshold: float | None = None
) -> None:
    """Write the report on the runs in some directories; the arguments are those of the command."""
    paths = find(roots)
    curves = reference.read(published) if published else {}
    check_place("--output", output)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: not a directory, so nothing can be written there")
    groups = grouped(run for run in map(read, paths) if run is not None)
    if not groups:
        raise ConfigError(f"{', '.join(map(str, roots))}: none of the runs can be read")

    from mbpo_cli.report import page, table, verdict
    from mbpo_cli.report.sections import sections

    parts = sections(groups, curves, threshold)
    rows = [row for part in parts for row in part.rows]
    html = page.render(parts, verdict.compare_over_environments(groups), roots, output)
    output.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for part in parts:
        name = re.sub(r"[^\w.-]+", "_", part.env).strip(".")[:60] or "env"
        while name in names:
            name += "_"
        names.add(name)
        write_whole(output / f"{name}.png", part.png)
    write_whole(output / "report.csv", table.as_csv(rows).encode())
    write_whole(output / "index.html", html.encode(errors="replace"))

    print(table.as_text(rows), end="\n\n")
    for part in parts:
        print(f"{part.env}: {part.verdict.headline}. {part.verdict.sentence}")
        for note in (*part.verdict.notes, *part.notes):
            print(f"  {note}")
    print(f"\n{output / 'index.html'}")


def _parser() -> argparse.ArgumentParser:
    description = "Compare runs, finished or not: a table, learning curves, a CSV file and an HTML page."
    parser = argparse.ArgumentParser(prog="mbpo-report", description=description)
    add = parser.add_argument
    add("paths", type=Path, nargs="+", metavar="PATH", help="run directories, or directories of runs")
    add("--output", type=Path, default=Path("report"), metavar="DIR", help="directory to write to (report)")
    curves = f"published curves to draw beneath ours; columns {','.join(reference.COLUMNS)}"
    add("--reference", type=Path, metavar="CSV", help=curves)
    goal = "the return to reach (default: Gymnasium's, if the environment has one)"
    add("--threshold", type=float, metavar="NUMBER", help=goal)
    return parser


if __name__ == "__main__":
    main()
