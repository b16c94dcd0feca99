"""What `mbpo-evaluate` reports: returns and lengths of episodes, as text and as JSON.

Knows the outcomes of episodes; does not know how they were played.
"""

from __future__ import annotations

import json
import math
from typing import Any

from mbpo_cli.evaluation.evaluate import Evaluation
from mbpo_cli.storage.directory import versions
from mbpo_cli.trained.load import Trained


def as_text(real: Evaluation, in_model: Evaluation | None) -> str:
    """Return a table with a line per episode, then a line of means and standard deviations."""
    columns = {"real": real} if in_model is None else {"real": real, "in model": in_model}
    lines = ["episode" + "".join(f"  {f'return ({name})':>17}  length" for name in columns)]
    for episode in range(len(real.returns)):
        cells = (
            f"  {found.returns[episode]:17.1f}  {found.lengths[episode]:6}" for found in columns.values()
        )
        lines.append(f"{episode:7}" + "".join(cells))
    for name, found in columns.items():
        lines.append(
            f"{name}: return {found.return_mean:.1f} ± {found.return_std:.1f}, "
            f"length {found.length_mean:.1f} ± {found.length_std:.1f} "
            f"(mean ± standard deviation, n = {len(found.returns)})"
        )
    return "\n".join(lines)


def as_json(trained: Trained, seed: int, real: Evaluation, in_model: Evaluation | None) -> dict[str, Any]:
    """Return the results and where they come from; a number that is not finite becomes null."""
    config, checkpoint = trained.config, trained.checkpoint
    # JSON has no infinity: an infinite bound becomes the text "inf".
    kwargs = json.dumps(config.env.kwargs, default=str)
    return {
        "run": str(trained.path),
        "source": trained.source,
        "env_steps": None if checkpoint is None else checkpoint.step,
        "agent": config.agent.name,
        "env": config.env.id,
        "env_kwargs": json.loads(kwargs, parse_constant=lambda constant: str(float(constant))),
        "seed": seed,
        "real": _evaluation(real),
        "in_model": None if in_model is None else _evaluation(in_model),
        "versions": versions(),
    }


def _evaluation(found: Evaluation) -> dict[str, Any]:
    episodes = zip(found.returns, found.lengths, strict=True)
    return {
        "return_mean": _finite(found.return_mean),
        "return_std": _finite(found.return_std),
        "length_mean": found.length_mean,
        "length_std": found.length_std,
        "episodes": [{"return": _finite(total), "length": length} for total, length in episodes],
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
