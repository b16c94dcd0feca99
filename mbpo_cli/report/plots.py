"""One picture per environment: learning curves, and next to them the scores with their intervals.

Knows groups and how to draw; does not know files or pages.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from mbpo_cli.evaluation import curve
from mbpo_cli.report.groups import Group
from mbpo_cli.report.reference import Reference
from mbpo_cli.report.statistics import Curve, interquartile_mean
from mbpo_cli.report.table import Threshold, interval, numbers
from mbpo_cli.storage.records import EVALUATION

# Okabe and Ito's colors, which color-blind people can tell apart; a second round is dashed, with squares.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#5B5B00")
LINES = ("-", "--", ":", "-.")
GRAY = "#777777"
OPEN_LOOP = {f"diagnose/open_loop_error_{count}": f"after {count} steps" for count in (5, 10, 20)}
RETURN, BIAS = "diagnose/discounted_return", "diagnose/q_bias"

Style = tuple[str, str]


def styles(variants: Sequence[str]) -> dict[str, Style]:
    """Return a color and a line style for each agent, the same on all environments."""
    return dict(zip(variants, cycle((color, line) for line in LINES for color in COLORS)))


def picture(
    groups: Sequence[Group],
    curves: Sequence[Curve],
    style: Mapping[str, Style],
    threshold: Threshold | None,
    reference: Reference | None,
) -> bytes:
    """Return a PNG of the groups on an environment, best first."""
    with _style():
        figure = Figure(figsize=(10.5, max(3.9, 0.62 * len(groups) + 1)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2.1, 1))
        if reference is not None:
            _draw_reference(left, reference, max((c.steps[-1] for c in curves if len(c.steps)), default=0.0))
        for group, curve in zip(groups, curves, strict=True):
            _draw_curve(left, group, curve, style[group.variant])
        _draw_threshold(left, threshold)
        left.set(xlabel="real environment steps", ylabel="evaluation return")
        left.set_title(groups[0].env, loc="left", fontweight="bold")
        left.xaxis.set_major_formatter("{x:,.0f}")
        left.yaxis.set_major_formatter("{x:,g}")
        if left.get_legend_handles_labels()[0]:
            left.legend(framealpha=0.8, edgecolor="none", fontsize=8.5 if len(groups) < 6 else 7)
        _draw_finals(right, groups, style)
        return _png(figure)


def picture_of_one(
    found: Mapping[str, Mapping[int, float]],
    seconds: Mapping[str, float],
    threshold: Threshold | None,
    reference: Reference | None,
) -> bytes:
    """Return a PNG of a single run: its learning curve, and below it its model, critics and time.

    `found` has its logged values by tag, and `seconds` its time by phase.
    """
    panels = [
        ("error of the model", OPEN_LOOP),
        ("critics", {RETURN: "discounted return", BIAS: "Q-value minus it"}),
    ]
    panels = [(title, tags) for title, tags in panels if any(found[tag] for tag in tags)]
    with _style():
        figure = Figure(figsize=(10.5, 6.2), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=(1.4, 1))
        axes = figure.add_subplot(grid[0])
        if reference is not None:
            _draw_reference(axes, reference, max(found[EVALUATION], default=0))
        curve.draw(axes, found)
        _draw_threshold(axes, threshold)
        places = grid[1].subgridspec(1, len(panels) + 1)
        for place, (title, tags) in enumerate(panels):
            axes = figure.add_subplot(places[place])
            for (tag, name), color in zip(tags.items(), COLORS, strict=False):
                axes.plot(
                    list(found[tag]), list(found[tag].values()), "o-", color=color, markersize=2, label=name
                )
            axes.set_title(title, loc="left", fontsize=9.5)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.locator_params(axis="x", nbins=4)
            axes.legend(fontsize=8, framealpha=0.8, edgecolor="none")
            if tags is OPEN_LOOP:
                axes.axhline(1, color=GRAY, linestyle=":", linewidth=1)
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
        axes = figure.add_subplot(places[-1])
        axes.barh(list(seconds), list(seconds.values()), color=COLORS[0])
        axes.invert_yaxis()
        axes.set_title("time by phase, in seconds", loc="left", fontsize=9.5)
        return _png(figure)


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rc("font", size=9.5)
        matplotlib.rc("axes.spines", top=False, right=False)
        # Names are not formulas, and can have letters that the font lacks.
        matplotlib.rc("text", parse_math=False)
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def _png(figure: Figure) -> bytes:
    contents = io.BytesIO()
    figure.savefig(contents, format="png", dpi=130)
    return contents.getvalue()


def _draw_threshold(axes: Axes, threshold: Threshold | None) -> None:
    if threshold is not None:
        axes.axhline(threshold.value, color=GRAY, linestyle=":", linewidth=1, zorder=0)
        text = f"threshold {numbers(threshold.value)[0]}"
        across = axes.get_yaxis_transform()
        axes.text(0.004, threshold.value, text, transform=across, color=GRAY, fontsize=8, va="bottom")


def _draw_reference(axes: Axes, reference: Reference, last_step: float) -> None:
    """Draw a published curve, a little further than ours."""
    shown = np.array(reference.steps) <= max(1.15 * last_step, reference.steps[0])
    at, mean, std = (np.array(v)[shown] for v in (reference.steps, reference.mean, reference.std))
    axes.fill_between(at, mean - std, mean + std, color=GRAY, alpha=0.2, linewidth=0, zorder=0)
    label = f"reference, {reference.num_seeds} seeds, ± std"
    axes.plot(at, mean, color=GRAY, linewidth=1.8, label=label, zorder=1)


def _draw_curve(axes: Axes, group: Group, curve: Curve, style: Style) -> None:
    """Draw the mean over seeds with its interval, and each seed as a thin line."""
    color, line = style
    for run in group.runs:
        axes.plot(list(run.returns), list(run.returns.values()), line, color=color, alpha=0.35, linewidth=0.7)
    if len(curve.steps):
        axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
        mark = "o" if len(curve.steps) == 1 else ""
        label = textwrap.shorten(group.label, 60)
        axes.plot(curve.steps, curve.mean, line, color=color, linewidth=2.2, marker=mark, label=label)


def _draw_finals(axes: Axes, groups: Sequence[Group], style: Mapping[str, Style]) -> None:
    """Draw the scores of each group as dots, and its interquartile mean with the interval."""
    above = axes.get_yaxis_transform() + ScaledTranslation(0, 0.1, axes.figure.dpi_scale_trans)
    for place, group in enumerate(groups):
        color, line = style[group.variant]
        label = textwrap.shorten(group.label, 44)
        if group.scores:
            iqm = interquartile_mean(group.scores)
            dots = [place + 0.13] * len(group.scores)
            axes.plot(group.scores, dots, "o", color=color, alpha=0.3, markersize=4)
            if iqm.low is not None and iqm.high is not None:
                axes.plot([iqm.low, iqm.high], [place, place], color=color, linewidth=5, alpha=0.6)
            axes.plot(iqm.value, place, "D" if line == "-" else "s", color=color, markersize=8)
            label += f":  {interval(iqm)}"
        axes.text(
            0.01, place, label, transform=above, color=color, fontweight="bold", fontsize=9, va="bottom"
        )
    axes.set(ylim=(len(groups) - 0.5, -0.8), yticks=[], xlabel="each dot is a seed; right is better")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.locator_params(axis="x", nbins=5)
    axes.set_title("score: IQM [95 % interval]", loc="left", fontsize=9.5)
