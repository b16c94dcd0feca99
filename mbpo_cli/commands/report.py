"""The command `mbpo-report`: compare runs, or look at one, and write a table, pictures and a page.

Slow imports wait until there are runs to report on.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mbpo_cli.commands.arguments import check_place, whole_number
from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.report import reference
from mbpo_cli.report.groups import grouped
from mbpo_cli.report.runs import Run, find, read
from mbpo_cli.report.watch import warning_once, watch
from mbpo_cli.storage.files import write_whole

EVERY_SECONDS = 15


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-report`; what is wrong with the paths or the options is one line, with exit code 2."""
    logging.basicConfig(format="mbpo-report: %(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    options = _parser().parse_args(arguments)
    try:
        if options.every is not None and not options.watch:
            raise ConfigError(f"--every {options.every}: only with --watch")
        every = (options.every or EVERY_SECONDS) if options.watch else None
        report(options.paths, options.output, options.reference, options.threshold, every)
    except (ConfigError, OSError) as error:
        print(f"mbpo-report: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(ConfigError.exit_code) from None
    except KeyboardInterrupt:
        print("mbpo-report: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def report(
    roots: Sequence[Path],
    output: Path,
    published: Path | None = None,
    threshold: float | None = None,
    every: int | None = None,
) -> None:
    """Write the report on the runs in some directories; the arguments are those of the command.

    With `every`, it is also written every so many seconds until no run is running, or Ctrl-C is pressed.
    """
    paths = find(roots)
    curves = reference.read(published) if published else {}
    check_place("--output", output)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: not a directory, so nothing can be written there")

    def read_all(paths: Sequence[Path]) -> list[Run]:
        return [run for run in map(read, paths) if run is not None]

    def write(runs: Sequence[Run], every: int | None) -> str:
        return written(runs, roots, output, curves, threshold, every)

    is_interrupted = False
    with warning_once():
        if every is not None:
            print(f"{output / 'index.html'}: written every {every} s while runs go on; Ctrl-C ends it")
            try:
                watch(lambda: read_all(find(roots)), partial(write, every=every), every)
            except KeyboardInterrupt:
                is_interrupted = True
            paths = find(roots)
        print(write(read_all(paths), None))
    if is_interrupted:
        raise KeyboardInterrupt


def written(
    runs: Sequence[Run],
    roots: Sequence[Path],
    output: Path,
    published: Mapping[str, reference.Reference],
    threshold: float | None,
    every: int | None,
) -> str:
    """Write the files of a report, and return what it says as text.

    Raises:
        ConfigError: There are no runs.
    """
    groups = grouped(runs)
    if not groups:
        raise ConfigError(f"{', '.join(map(str, roots))}: none of the runs can be read")

    from mbpo_cli.report import page, sections, single, table, verdict

    if len(runs) == 1:
        account = single.account_of(groups[0], published, threshold)
        rows, text = [account.row], single.as_text(account)
        pictures = {account.run.env: account.png} if account.png else {}
        html = page.render_one(account, output, every)
    else:
        parts = sections.sections(groups, published, threshold)
        rows, text = [row for part in parts for row in part.rows], sections.as_text(parts)
        pictures = {part.env: part.png for part in parts}
        html = page.render(parts, verdict.compare_over_environments(groups), roots, output, every)
    output.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for env, png in pictures.items():
        name = re.sub(r"[^\w.-]+", "_", env).strip(".")[:60] or "env"
        while name in names:
            name += "_"
        names.add(name)
        write_whole(output / f"{name}.png", png)
    write_whole(output / "report.csv", table.as_csv(rows).encode())
    write_whole(output / "index.html", html.encode(errors="replace"))
    return f"{text}\n\nwritten to {output / 'index.html'}"


def _parser() -> argparse.ArgumentParser:
    description = (
        "Compare runs, finished or not, or look at a single one: "
        "numbers, learning curves, a CSV file and an HTML page."
    )
    parser = argparse.ArgumentParser(prog="mbpo-report", description=description)
    add = parser.add_argument
    add("paths", type=Path, nargs="+", metavar="PATH", help="run directories, or directories of runs")
    add("--output", type=Path, default=Path("report"), metavar="DIR", help="directory to write to (report)")
    curves = f"published curves to draw beneath ours; columns {','.join(reference.COLUMNS)}"
    add("--reference", type=Path, metavar="CSV", help=curves)
    goal = "the return to reach (default: Gymnasium's, if the environment has one)"
    add("--threshold", type=float, metavar="NUMBER", help=goal)
    add("--watch", action="store_true", help="write the report again and again until no run is running")
    again = f"with --watch, seconds between two reports ({EVERY_SECONDS})"
    add("--every", type=whole_number(1, 86_400), metavar="SECONDS", help=again)
    return parser


if __name__ == "__main__":
    main()
