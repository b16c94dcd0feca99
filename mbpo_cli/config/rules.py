"""Values that follow from what is known before a run: steps, length of an episode, size of observations.

A file asks for one with `${rule:NAME}`; the configuration gets the value, which `--cfg job` shows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mbpo_cli.failures import ConfigError
from mbpo_cli.options import import_registering

REFERENCE = re.compile(r"\$\{rule:(\w+)\}")


@dataclass(frozen=True)
class Facts:
    """What the rules know of an environment; the defaults stand for what it does not tell.

    Attributes:
        episode: Largest number of steps of an episode.
        obs_size: Elements of an observation.
        action_size: Elements of an action; 1 if actions are discrete.
    """

    episode: int = 1_000
    obs_size: int = 1_000
    action_size: int = 1_000

    @property
    def is_small(self) -> bool:
        """True for control problems, unlike robots of many joints."""
        return self.obs_size <= 12 and self.action_size <= 2


def clip(value: float, low: int, high: int) -> int:
    """Return the value as a whole number within [low, high]."""
    return int(min(max(value, low), high))


def _horizon(facts: Facts) -> int:
    return clip(facts.episode / 4, 10, 100) if facts.is_small else 10


def _by_size(small: Any, large: Any, facts: Facts) -> Any:
    return small if facts.is_small else large


BY_SIZE: Mapping[str, tuple[Any, Any]] = {
    "hidden_sizes": ([64, 64], [256, 256]),
    "learn_rate": (1e-3, 3e-4),
    "target_smooth_factor": (0.05, 0.005),
    "num_networks": (5, 7),
    "num_elites": (3, 5),
    "model_hidden_sizes": ([128] * 3, [200] * 4),
    # Of algorithm=double_horizon, for large tasks mostly as published: the agent,
    "imagining_updates": (4, 1),
    "imagining_hidden_sizes": ([64, 64], [256] * 3),
    "imagining_activation": ("relu", "silu"),
    "imagining_initial_weights": ("uniform", "orthogonal"),
    "imagining_critics": (2, 5),
    "imagining_critic_dropout": (0.0, 1e-3),
    "imagining_bound_quantile": (0.0, 0.01),
    "imagining_scale_outputs": (False, True),
    "imagining_learn_rate": (5e-3, 3e-4),
    "imagining_policy_smooth_factor": (0.02, 0.01),
    # the model and its fits,
    "imagining_networks": (5, 8),
    "imagining_model_hidden_sizes": ([128] * 3, [256] * 3),
    "imagining_layer_norm": (False, True),
    "imagining_patience": (5, 30),
    "imagining_significance": (None, 0.1),
    "imagining_epochs": (100, 60),
    # and its rollouts.
    "imagining_first_updates": (0, 1_000),
    "imagining_generate_every": (10, 20),
    "imagining_num_rollout": (100, 256),
    "imagining_horizon": (50, 20),
    "imagining_retained_generations": (5, 10),
    "imagining_random_fraction": (0.25, 0.0),
}
"""Values for small tasks, and for all others."""

# A tenth of a run has random actions, and a fortieth passes between two generations, or two fits. Without
# any step, from data alone, there is one fit, which nothing corrects later.
BY_STEPS: Mapping[str, Callable[[int], Any]] = {
    "num_warm_start_steps": lambda steps: clip(steps / 10, 50, 5_000),
    "generate_every": lambda steps: clip(steps / 40, 50, 250),
    "fit_every": lambda steps: clip(steps / 40, 50, 250),
    "num_mini_batches": lambda steps: 10 if steps > 0 else "all",
    "epochs": lambda steps: 100 if steps > 0 else 400,
    "patience": lambda steps: 5 if steps > 0 else 40,
    "first_updates": lambda steps: 0 if steps > 0 else 6_000,
}
"""From the environment steps of a run to a value."""

# A generation has 20,000 transitions; where the model is not good enough for the horizon, max_disagreement
# ends rollouts sooner.
BY_ENV: Mapping[str, Callable[[Facts], Any]] = {
    "warm_start_hold_steps": lambda facts: clip(facts.episode / 20, 1, 10),
    "horizon": _horizon,
    "num_rollout": lambda facts: 20_000 // _horizon(facts),
    "discount_factor": lambda facts: 1 - 1 / clip(facts.episode / 3, 30, 200),
    **{name: partial(_by_size, *values) for name, values in BY_SIZE.items()},
}
"""From an environment to a value."""


def apply(config: DictConfig) -> None:
    """Replace every `${rule:NAME}` of a configuration by its value.

    The environment is made only if a rule asks for what it tells.

    Raises:
        ConfigError: There is no such rule.
    """
    values: Any = OmegaConf.to_container(config, resolve=False)
    for key, name in wanted(values, ""):
        if name in BY_STEPS:
            steps = values["trainer"]["num_env_steps"]
            # What is not a number is reported later.
            value = BY_STEPS[name](int(steps) if isinstance(steps, int | float) else 100_000)
        elif name in BY_ENV:
            env = values["env"]
            # As text, which can be cached.
            value = BY_ENV[name](_facts(str(env["id"]), env["module"], repr(env["kwargs"])))
        else:
            known = ", ".join((*BY_STEPS, *BY_ENV))
            raise ConfigError(f"{key}=${{rule:{name}}}: no such rule; available: {known}")
        OmegaConf.update(config, key, value)


def forget() -> None:
    """Ask environments anew for what they tell, as the function that makes those of an id may be another."""
    _facts.cache_clear()


def wanted(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the name of every rule that values ask for."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from wanted(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, str) and (match := REFERENCE.fullmatch(node)):
        yield path, match[1]


@cache
def _facts(id: str, module: str | None, kwargs: str) -> Facts:
    """Make an environment for what it tells: nothing if that fails, which the run reports."""
    import ast

    import gymnasium
    from gymnasium.spaces.utils import flatdim

    try:
        import_registering(module, id)
        with closing(gymnasium.make(id, **(ast.literal_eval(kwargs) or {}))) as env:
            action_size = math.prod(env.action_space.shape or ())
            limit = None if env.spec is None else env.spec.max_episode_steps
            return Facts(limit or Facts.episode, flatdim(env.observation_space), action_size)
    except Exception:  # of whatever is imported and made
        return Facts()
