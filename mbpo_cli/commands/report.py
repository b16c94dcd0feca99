"""The command `mbpo-report`: find runs, group and judge them, and write table, pictures and page.

What takes long to import is imported only when there are runs to report on. Knows the order of work, and
none of the work.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.report import reference
from mbpo_cli.report.groups import Group, grouped
from mbpo_cli.report.runs import find, read

if TYPE_CHECKING:
    from mbpo_cli.report.page import Section


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-report`: what cannot be right ends with one line and exit code 2, and writes nothing."""
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
    """Report on the runs in some directories.

    Args:
        roots: The directories.
        output: Where to write; it is made if need be.
        published: A CSV file of curves to draw beneath ours.
        threshold: The return to reach, on all environments.

    Raises:
        ConfigError: One of the arguments is wrong; nothing was written.
        OSError: The output cannot be written.
    """
    paths = find(roots)
    curves = reference.read(published) if published else {}
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is not a directory, so nothing can be written there")
    groups = grouped(run for run in map(read, paths) if run is not None)
    if not groups:
        raise ConfigError(f"{', '.join(map(str, roots))}: no run there can be read")

    from mbpo_cli.report import page, plots, table, verdict

    style = plots.styles(sorted({group.variant for group in groups}))
    by_env: defaultdict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_env[group.env].append(group)
    sections = [_section(env, mine, style, curves, threshold) for env, mine in by_env.items()]
    html = page.render(sections, verdict.compare_over_environments(groups), roots, output)
    rows = [row for section in sections for row in section.rows]

    output.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for section in sections:
        name = re.sub(r"[^\w.-]+", "_", section.env).strip(".") or "env"
        while name in names:
            name += "_"
        names.add(name)
        (output / f"{name}.png").write_bytes(section.png)
    (output / "report.csv").write_text(table.as_csv(rows), encoding="utf-8")
    (output / "index.html").write_text(html, encoding="utf-8", errors="replace")

    print(table.as_text(rows), end="\n\n")
    for section in sections:
        print(f"{section.env}: {section.verdict.headline}. {section.verdict.sentence}")
        for note in (*section.verdict.notes, *section.notes):
            print(f"  {note}")
    print(f"\n{output / 'index.html'}")


def _section(
    env: str,
    groups: Sequence[Group],
    style: Mapping[str, tuple[str, str]],
    published: Mapping[str, reference.Reference],
    chosen: float | None,
) -> Section:
    """Work out all that there is to say on one environment."""
    from mbpo_cli.report import page, plots, statistics, table, verdict

    finals = {g: statistics.interquartile_mean(g.scores).value if g.scores else -float("inf") for g in groups}
    groups = sorted(groups, key=lambda group: -finals[group])
    curves = [statistics.mean_curve([run.returns for run in group.runs]) for group in groups]
    threshold = table.threshold_of(groups, curves, chosen)
    known = reference.matching(published, [env, *(group.config.get("env.id", "") for group in groups)])
    rows = [table.row(group, threshold) for group in groups]
    pairs = [verdict.compare(a, b) for a, b in combinations([g for g in groups if g.scores], 2)]
    notes = []
    if threshold:
        notes.append(f"Threshold: {table.numbers(threshold.value)[0]} ({threshold.source}).")
    there = known.before(max(row["steps_max"] or 0 for row in rows)) if known else None
    if known and there:
        at, mean, std = there
        value = " ± ".join(table.numbers(mean, std))
        notes.append(f"Reference at {at:,.0f} steps: {value} ({known.num_seeds} seeds, standard deviation).")
    elif published and not known:
        notes.append("The reference has no curve of this environment.")
    return page.Section(
        env=env,
        groups=groups,
        rows=rows,
        comparisons=pairs,
        verdict=verdict.verdict(env, groups, rows, pairs),
        png=plots.picture(env, groups, curves, style, threshold, known),
        notes=notes,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mbpo-report",
        description="Compare runs, finished or not: table, learning curves, CSV file, and a page of it all.",
    )
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="run directories, or what holds them"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="DIR", help="where to write (report)"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="CSV",
        help=f"published curves to draw beneath ours; columns {','.join(reference.COLUMNS)}",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="NUMBER",
        help="the return to reach (Gymnasium's, where it has one)",
    )
    return parser


if __name__ == "__main__":
    main()
