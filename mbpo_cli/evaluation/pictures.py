"""Plots of diagnostics, as PNG.

Knows findings and matplotlib; does not know runs, files or TensorBoard.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mbpo_cli.evaluation.diagnostics import INTERVALS, Findings, OneStep, OpenLoop
from mbpo_cli.types import Transitions

NUM_FANS = 3
MAX_SCATTERS, SCATTERS_PER_ROW, MAX_DOTS = 12, 4, 2_000
REAL, MODEL, IDEAL = "black", "tab:blue", "tab:gray"


def of_model(found: Findings) -> bytes | None:
    """Plot the quality of the model; None if there is no fitted one.

    Top: some real trajectories, with each elite's predictions from their starts under the real actions.
    Bottom: the growth of the error, the calibration of a Gaussian model, the error of each element, and the
    distributions of real and generated observations.
    """
    if found.one_step is None or found.obs_generated is None:
        return None
    figure = Figure(figsize=(13, 6.5))
    # The layout is fixed, as automatic layout takes twice as long.
    num_elements = min(3, found.obs_real.shape[1])
    sides = {"left": 0.05, "right": 0.985, "wspace": 0.25}
    upper, lower = ({**sides, "top": top, "bottom": top - 0.37} for top in (0.95, 0.45))
    fans = figure.subplots(1, num_elements, squeeze=False, gridspec_kw=upper)[0]
    for element, axes in enumerate(fans):
        if found.open_loop is None:
            axes.text(0.5, 0.5, "the episodes are too short", ha="center", color=IDEAL)
        else:
            _fan(axes, found.open_loop, element)
        axes.set(title=f"observation element {element}", xlabel="steps ahead")
    panels = figure.subplots(1, 4, gridspec_kw=lower)
    _errors(panels, found.one_step, found.open_loop)
    real, generated = found.obs_real[:, 0].cpu().numpy(), found.obs_generated[:, 0].cpu().numpy()
    bins = np.histogram_bin_edges(np.concatenate((real, generated)), 40).tolist()
    panels[3].hist(real, bins, density=True, color=REAL, histtype="step", label="real")
    panels[3].hist(generated, bins, density=True, color=MODEL, alpha=0.5, label="generated")
    panels[3].set(title="distribution of element 0", yticks=[])
    panels[3].legend(loc="upper right", frameon=False, fontsize=8)
    for axes in (*fans, panels[1]):
        axes.locator_params(axis="y", nbins=4)  # text takes the most time
    return _png(figure, (*fans, *panels))


def of_predictions(rows: Transitions, one_step: OneStep, open_loop: OpenLoop | None) -> bytes:
    """Plot predicted against real changes of each element, and an overview of the errors.

    `one_step` holds a prediction of each row; `open_loop` is None if the episodes are too short.
    """
    num_elements = min(MAX_SCATTERS, rows.obs.shape[1])
    num_rows = 1 + math.ceil(num_elements / SCATTERS_PER_ROW)
    figure = Figure(figsize=(13, 3.4 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, SCATTERS_PER_ROW, squeeze=False)
    shown = torch.linspace(0, len(rows) - 1, min(MAX_DOTS, len(rows))).long()
    true = (rows.next_obs - rows.obs)[shown].cpu().numpy()
    predicted = (one_step.mean_EBO - rows.obs).mean(0)[shown].cpu().numpy()
    for element, axes in enumerate(grid[1:].flat):
        if element >= num_elements:
            axes.set_axis_off()
            continue
        low, high = float(true[:, element].min()), float(true[:, element].max())
        margin = 0.1 * (high - low or 1.0)
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color=IDEAL, linestyle=":")
        seen = predicted[:, element].clip(*limits)
        axes.plot(true[:, element], seen, ".", color=MODEL, alpha=0.3, markersize=3)
        axes.set(title=f"change of element {element}", xlabel="real", ylabel="predicted")
        axes.set(xlim=limits, ylim=limits)
    _errors(grid[0], one_step, open_loop)
    obs, error = rows.obs[shown].cpu().numpy(), one_step.error_B[shown].cpu().numpy()
    order = error.argsort()  # the largest errors are plotted last, on top
    across, up = obs[order, 0], obs[order, min(1, obs.shape[1] - 1)]
    dots = grid[0, 3].scatter(across, up, c=np.log10(error[order].clip(1e-6)), s=6, cmap="viridis")
    grid[0, 3].set(title="error by observation", xlabel="element 0", ylabel="element 1")
    figure.colorbar(dots, ax=grid[0, 3], label="log10(error)")
    return _png(figure, grid.flat)


def _errors(panels: NDArray[Any], one_step: OneStep, open_loop: OpenLoop | None) -> None:
    """Plot growth, calibration and error by element into the first three panels."""
    growth, calibration, elements = panels[:3]
    if open_loop is not None:
        steps = np.arange(1, open_loop.error_EK.shape[1] + 1)
        growth.plot(steps, open_loop.error_EK.T.cpu().numpy(), color=MODEL, linewidth=1)
        growth.axhline(1, color=IDEAL, linestyle=":")
        what = "standard deviation of the observations"
        growth.annotate(what, (steps[0], 1), color=IDEAL, fontsize=8, va="bottom")
        growth.set(title="error of each elite", xlabel="steps ahead")
        _logarithmic(growth)

    calibration.set(title="calibration", xlabel="interval", ylabel="share of real values")
    calibration.set(xlim=(0, 1), ylim=(0, 1))
    calibration.plot([0, 1], [0, 1], color=IDEAL, linestyle=":")
    if one_step.score_EBO is None:
        calibration.text(0.5, 0.5, "deterministic", ha="center", color=IDEAL)
    else:
        levels = np.sort([*np.linspace(0.05, 0.95, 19), *INTERVALS])
        calibration.plot(levels, [one_step.coverage(float(level)) for level in levels], color=MODEL)
        calibration.plot(INTERVALS, [one_step.coverage(level) for level in INTERVALS], "o", color=MODEL)

    error_O = one_step.error_MO.square().mean(0).sqrt().cpu().numpy()
    elements.bar(np.arange(len(error_O)), error_O, color=MODEL)
    elements.axhline(1, color=IDEAL, linestyle=":")
    elements.annotate("mean change", (-0.4, 1), color=IDEAL, fontsize=8, va="bottom")
    elements.set(title="one-step error", xlabel="observation element")
    _logarithmic(elements)


def _png(figure: Figure, panels: Iterable[Axes]) -> bytes:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=70)
    return file.getvalue()


def _fan(axes: Axes, found: OpenLoop, element: int) -> None:
    # From the trajectory with the most movement to one with little.
    movement_S = found.real_SKO.std(1).sum(1)
    chosen = movement_S.argsort(descending=True)[:: max(len(movement_S) // NUM_FANS, 1)][:NUM_FANS]
    steps = np.arange(found.real_SKO.shape[1])
    for number, start in enumerate(chosen):
        offset = number * (len(steps) + 3)
        predicted_EK = found.predicted_ESKO[:, start, :, element].cpu().numpy()
        axes.plot(offset + steps, predicted_EK.T, color=MODEL, alpha=0.6, linewidth=1)
        axes.plot(offset + steps, found.real_SKO[start, :, element].cpu().numpy(), color=REAL, linewidth=1.8)
    real = found.real_SKO[chosen, :, element]
    low, high = float(real.min()), float(real.max())
    margin = max(high - low, 1e-3)
    axes.set_ylim(low - margin, high + margin)  # predictions that diverge are cut off
    axes.set_xticks([number * (len(steps) + 3) for number in range(len(chosen))], ["start"] * len(chosen))
    axes.plot([], [], color=REAL, label="real")
    axes.plot([], [], color=MODEL, label="each elite")
    axes.legend(loc="upper right", frameon=False, fontsize=8)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")  # rendering powers of ten as formulas is slow
    axes.yaxis.set_minor_formatter("")
