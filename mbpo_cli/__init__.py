"""Model-Based Policy Optimization (MBPO), run from the command line with Hydra configs.

Throughout, "the page" is MathWorks' documentation page "Model-Based Policy Optimization (MBPO)
Agents", and "the paper" is Janner, Fu, Zhang and Levine, "When to Trust Your Model: Model-Based
Policy Optimization", NeurIPS 2019.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbpo_cli.commands.python import train
    from mbpo_cli.config.compose import make_config
    from mbpo_cli.evaluation.callbacks import Callback
    from mbpo_cli.trained.episodes import evaluation_of
    from mbpo_cli.trained.learned_env import LearnedVectorEnv
    from mbpo_cli.trained.load import load

__all__ = ["Callback", "LearnedVectorEnv", "evaluation_of", "load", "make_config", "train"]
__version__ = "0.2.0"

# What scripts and notebooks import. Loaded on first use, because torch takes seconds to import.
_EXPORTS = {
    "make_config": "mbpo_cli.config.compose.make_config",
    "train": "mbpo_cli.commands.python.train",
    "Callback": "mbpo_cli.evaluation.callbacks.Callback",
    "load": "mbpo_cli.trained.load.load",
    "evaluation_of": "mbpo_cli.trained.episodes.evaluation_of",
    "LearnedVectorEnv": "mbpo_cli.trained.learned_env.LearnedVectorEnv",
}


def __getattr__(name: str) -> Any:
    """Return an exported name; import its module first."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mbpo_cli' has no attribute '{name}'")
    module, _, own_name = _EXPORTS[name].rpartition(".")
    return getattr(importlib.import_module(module), own_name)
