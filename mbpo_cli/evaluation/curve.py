"""The learning curve of a run as a picture.

Knows logged returns and how to draw them; does not know what logs them. The report draws with it, too, so it
imports no torch, and matplotlib, which takes half a second to import, only when there is something to draw.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mbpo_cli.storage.records import EVALUATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEVIATION, EPISODE = "eval/return_std", "train/episode_return"
TAGS = (EVALUATION, DEVIATION, EPISODE)
MAX_NUMBER = 1e30  # what is larger cannot be drawn

Curve = Mapping[int, float]
"""Values by environment step."""


def picture(curves: Mapping[str, Curve], title: str) -> bytes:
    """Return a PNG of the logged values of `TAGS`."""
    from matplotlib.figure import Figure

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in names
        figure = Figure(figsize=(8, 4.2))
        # The layout is fixed, as automatic layout takes twice as long.
        axes = figure.subplots(gridspec_kw={"left": 0.11, "right": 0.98, "top": 0.92, "bottom": 0.13})
        draw(axes, curves)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", parse_math=False)
        contents = io.BytesIO()
        figure.savefig(contents, format="png", dpi=100)
    return contents.getvalue()


def draw(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Draw evaluations, with the standard deviation over their episodes, and the episodes of the training."""
    episodes, returns = drawable(curves[EPISODE]), drawable(curves[EVALUATION])
    if episodes:
        x, y = list(episodes), list(episodes.values())
        axes.plot(x, y, ".", color="tab:gray", alpha=0.5, markersize=4, label="training episodes")
    if returns:
        x, y = list(returns), list(returns.values())
        deviations = drawable(curves[DEVIATION])
        low, high = ([returns[at] + sign * deviations.get(at, 0.0) for at in x] for sign in (-1, 1))
        axes.fill_between(x, low, high, color="tab:blue", alpha=0.2, linewidth=0)
        best = max(returns, key=lambda step: returns[step])
        label = f"evaluations ± std: last {y[-1]:,.4g}, best {returns[best]:,.4g} at step {best:,}"
        axes.plot(x, y, "o-", color="tab:blue", markersize=3, label=label)
    axes.set(xlabel="real environment steps", ylabel="return")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,g}")
    if episodes or returns:
        axes.legend(loc="lower right", fontsize=8, framealpha=0.8, edgecolor="none")


def drawable(curve: Curve) -> dict[int, float]:
    """Return the values that are finite and not too large to be drawn."""
    return {
        step: value for step, value in curve.items() if 0 <= step <= MAX_NUMBER and abs(value) <= MAX_NUMBER
    }
