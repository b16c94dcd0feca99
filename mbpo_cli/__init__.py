"""Model-Based Policy Optimization (MBPO), run from the command line with Hydra configs.

Throughout, "the page" is MathWorks' documentation page "Model-Based Policy Optimization (MBPO)
Agents", and "the paper" is Janner, Fu, Zhang and Levine, "When to Trust Your Model: Model-Based
Policy Optimization", NeurIPS 2019.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# What a notebook or a script needs. Looked up when it is asked for, as torch takes seconds to import.
_PLACES = {
    "make_config": "mbpo_cli.config.compose.make_config",
    "train": "mbpo_cli.run.run",
    "load": "mbpo_cli.trained.load.load",
    "evaluation_of": "mbpo_cli.trained.episodes.evaluation_of",
    "LearnedVectorEnv": "mbpo_cli.trained.learned_env.LearnedVectorEnv",
}


def __getattr__(name: str) -> Any:
    """Return something of a room that is not imported yet."""
    if name not in _PLACES:
        raise AttributeError(f"module 'mbpo_cli' has no attribute '{name}'")
    room, _, own_name = _PLACES[name].rpartition(".")
    return getattr(importlib.import_module(room), own_name)
