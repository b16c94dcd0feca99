"""Draw the pictures of README and docs: learning curves with and without the model, and the modules.

    python -m scripts.pictures

Writes `docs/pictures/`, the curves from the runs in `docs/seeds/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from scripts.seeds import OWN, ROWS, stored
from scripts.seeds_page import Ended

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "pictures"
VARIANTS = {"on": ("with the model", "tab:blue"), "off": ("without", "tab:orange")}


def draw_curves(path: Path) -> None:
    """Draw mean and range over seeds of the evaluation return, with and without the model.

    Each environment has its id alone, so that no value was chosen for it.
    """
    rows = [row for row in ROWS if row.threshold is None]
    figure, panels = plt.subplots(2, len(rows) // 2, figsize=(11, 5), layout="constrained")
    for axes, row in zip(panels.flat, rows, strict=True):
        for variant, (label, color) in VARIANTS.items():
            runs = [run for run in stored(OWN.file(row)) if run.variant == variant]
            if runs:
                _draw(axes, runs, label, color)
        axes.set_title(row.overrides[-1].rpartition("=")[2].rpartition(":")[2], fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("real environment steps", fontsize=11)
    figure.supylabel("evaluation return", fontsize=11)
    panels.flat[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw(axes: Axes, runs: Sequence[Ended], label: str, color: str) -> None:
    steps = sorted(runs[0].returns)
    values = np.array([[run.returns[step] for step in steps] for run in runs])
    axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
    axes.plot(steps, values.mean(0), color=color, linewidth=2, label=label)


@dataclass(frozen=True)
class Box:
    """A labeled rectangle of the picture of modules.

    Attributes:
        title: First line, bold.
        text: Second line.
        place: Left, top, width and height in pixels.
        fill: Color.
    """

    title: str
    text: str
    place: tuple[int, int, int, int]
    fill: str


EDGE, ALGORITHM, SUPPORT = "#e8eaf6", "#bbdefb", "#eceff1"
# A module imports only from its own row and the rows below it; tests/test_docs.py checks that.
BOXES = (
    Box("commands/", "arguments, messages, exit codes", (20, 20, 430, 56), EDGE),
    Box("hydra_plugins/mbpo/", "Hydra's sweepers and launchers", (470, 20, 430, 56), EDGE),
    Box("run", "one run, from start to summary", (20, 92, 205, 56), EDGE),
    Box("sweeps/", "jobs, processes, search", (245, 92, 205, 56), EDGE),
    Box("trained/", "load, export, film, simulate", (470, 92, 205, 56), EDGE),
    Box("report/", "compare runs", (695, 92, 205, 56), EDGE),
    Box("build", "from options to objects", (20, 164, 430, 56), EDGE),
    Box("config/", "compose, type and check options", (470, 164, 430, 56), EDGE),
    Box("trainer", "act, store, fit, generate, mix, update", (20, 250, 880, 56), ALGORITHM),
    Box("agents/", "SAC, TD3, DDPG, DQN", (20, 322, 205, 56), ALGORITHM),
    Box("models/", "transition, reward, is-done", (245, 322, 205, 56), ALGORITHM),
    Box("rollouts", "experience from the model", (470, 322, 205, 56), ALGORITHM),
    Box("evaluation/", "evaluate, diagnose", (695, 322, 205, 56), SUPPORT),
    Box("exploration", "noise", (20, 394, 160, 56), ALGORITHM),
    Box("buffers", "store and mix", (200, 394, 160, 56), ALGORITHM),
    Box("envs/", "real experience", (380, 394, 160, 56), ALGORITHM),
    Box("logs/", "logger, progress, times", (560, 394, 160, 56), SUPPORT),
    Box("storage/", "checkpoints, records", (740, 394, 160, 56), SUPPORT),
    Box("nn/", "networks, Adam, streams", (20, 480, 280, 56), SUPPORT),
    Box("types, options, failures", "contracts and declarations", (320, 480, 580, 56), SUPPORT),
)


def modules_svg() -> str:
    """Return the modules as an SVG picture."""
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 556" role="img"'
        ' aria-label="The modules of mbpo_cli" font-family="sans-serif">',
        '<rect width="920" height="556" fill="#ffffff"/>',
    ]
    for box in BOXES:
        left, top, width, height = box.place
        middle = left + width / 2
        lines += [
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6" fill="{box.fill}"'
            ' stroke="#90a4ae"/>',
            f'<text x="{middle:g}" y="{top + 24}" font-size="15" font-weight="bold" fill="#212121"'
            f' text-anchor="middle">{escape(box.title)}</text>',
            f'<text x="{middle:g}" y="{top + 43}" font-size="12" fill="#455a64"'
            f' text-anchor="middle">{escape(box.text)}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    draw_curves(FOLDER / "learning_curves.png")
    (FOLDER / "modules.svg").write_text(modules_svg(), encoding="utf-8")
