"""A commented file of the group `env`; what follows from the environment is inherited from `gym`.

Knows no environment.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import yaml

from mbpo_cli.config.compose import config_folder
from mbpo_cli.config.rules import wanted
from mbpo_cli.config.typed import Config


def text_of(config: Config, name: str, known: Sequence[str], command: str) -> str:
    """Return the file of an environment as text.

    Args:
        config: A composed configuration with `env=gym`.
        name: The name of the environment.
        known: The functions of the model that are known: `reward`, `is_done`.
        command: What trains with the file.
    """
    shipped = yaml.safe_load((config_folder() / "env" / "gym.yaml").read_text())
    usual = (*((key, None) for key in vars(config.env)), ("num_envs", 1))
    chosen = dict(item for item in vars(config.env).items() if item not in usual)
    lines = [
        "# @package _global_",
        f"# Written by mbpo-env; {command}",
        "defaults:",
        f"  - gym # for {config.trainer.num_env_steps:,} steps in this environment it gives:",
        *(f"  #   {key}={operator.attrgetter(key)(config)}" for key, _ in wanted(shipped, "")),
        *(f"  - override /model/{part}: known" for part in known),
        "  - _self_",
        "",
        yaml.safe_dump({"env": {**chosen, "name": name}}, sort_keys=False, allow_unicode=True),
        "trainer:",
        f"  num_env_steps: {config.trainer.num_env_steps:_} # warm start and rhythm follow from it",
        f"  evaluate_every_steps: {config.trainer.evaluate_every_steps:_}",
    ]
    return "\n".join(lines) + "\n"
