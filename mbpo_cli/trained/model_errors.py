"""What `mbpo-model` reports: how far a learned model is from real episodes, as numbers, text and a picture.

Knows a model and episodes; does not know where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from mbpo_cli.evaluation import diagnostics, pictures
from mbpo_cli.evaluation.diagnostics import OneStep
from mbpo_cli.evaluation.evaluate import Episode
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.types import SpaceSpec

NUM_WORST = 5
MAX_ELEMENTS = 12
STEPS_AHEAD = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@torch.inference_mode()
def measure(
    model: EnvironmentModel,
    episodes: Sequence[Episode],
    horizon: int,
    stream: torch.Generator,
    spaces: SpaceSpec,
) -> tuple[dict[str, Any], bytes]:
    """Compare a model's predictions, up to `horizon` steps ahead, with real episodes.

    Returns:
        The errors as JSON values, and a picture of them as PNG.
    """
    rows = diagnostics.joined(episodes)
    one_step = diagnostics.one_step(model, rows)
    open_loop = diagnostics.open_loop(model, episodes, horizon)
    outcomes = diagnostics.outcome_metrics(model, rows, stream)
    coverage = None
    if one_step.score_EBO is not None:
        coverage = {str(level): one_step.coverage(level) for level in diagnostics.INTERVALS}
    found = {
        "elements": [spaces.element_name(element) for element in range(spaces.obs_size)],
        "error_by_element": one_step.error_MO.square().mean(0).sqrt().tolist(),
        "error_by_member": one_step.error_MO.square().mean(1).sqrt().tolist(),
        "disagreement": one_step.disagreement,
        "coverage": coverage,
        "error_by_steps_ahead": None if open_loop is None else open_loop.error_EK.mean(0).tolist(),
        **{name.removeprefix("diagnose/"): value for name, value in outcomes.items()},
        "worst": _worst(one_step, episodes, spaces),
    }
    return found, pictures.of_predictions(rows, one_step, open_loop)


def _worst(one_step: OneStep, episodes: Sequence[Episode], spaces: SpaceSpec) -> list[dict[str, Any]]:
    """Return the real steps with the largest prediction errors; actions are in the environment's units."""
    places = [(number, step) for number, episode in enumerate(episodes) for step in range(len(episode))]
    worst = []
    for row in one_step.error_B.argsort(descending=True)[:NUM_WORST].tolist():
        number, step = places[row]
        obs = episodes[number].obs[step].tolist()
        action = spaces.actions.to_env(episodes[number].action[step]).reshape(-1).tolist()
        error = float(one_step.error_B[row])
        worst.append({"episode": number, "step": step, "error": error, "obs": obs, "action": action})
    return worst


def as_text(found: dict[str, Any]) -> str:
    """Return the errors that `measure` found as text for a terminal."""
    errors = dict(zip(found["elements"], found["error_by_element"], strict=True))
    width = max(map(len, (*errors, "by member")))
    members = f"{_row(found['error_by_member'])} (disagreement {found['disagreement']:.3g})"
    lines = [
        "one-step error (1 is no better than predicting the mean change)",
        *(f"  {name:<{width}}  {error:.3g}" for name, error in errors.items()),
        f"  {'by member':<{width}}  {members}",
    ]
    if found["coverage"] is not None:
        shares = ", ".join(
            f"{share:.0%} in the {float(level):.0%} intervals" for level, share in found["coverage"].items()
        )
        lines.append(f"true values lie where they were predicted: {shares} (equal would be right)")
    ahead = found["error_by_steps_ahead"]
    if ahead is not None:
        steps = sorted({*(step for step in STEPS_AHEAD if step < len(ahead)), len(ahead)})
        growth = ", ".join(f"{ahead[step - 1]:.3g} after {step}" for step in steps)
        lines.append(f"error over several steps, in standard deviations of the observations: {growth}")
    names = {
        "reward_error": "reward error",
        "is_done_precision": "is-done precision",
        "is_done_recall": "is-done recall",
    }
    lines.append(", ".join(f"{text} {found[name]:.3g}" for name, text in names.items() if name in found))
    lines.append("worst predictions (actions in the environment's units)")
    for worst in found["worst"]:
        obs, action = (_row(worst[name][:MAX_ELEMENTS]) for name in ("obs", "action"))
        lines.append(
            f"  episode {worst['episode']}, step {worst['step']}: "
            f"error {worst['error']:.3g} at ({obs}) with action ({action})"
        )
    return "\n".join(lines)


def _row(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
