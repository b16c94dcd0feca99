"""Known reward and is-done functions, and their comparison with what really happens.

Does not know where real transitions are stored.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.failures import EnvironmentFailed
from mbpo_cli.options import Component, option, resolve
from mbpo_cli.types import KnownFunction, SpaceSpec, Transitions

log = logging.getLogger(__name__)

# What a known function may differ by, relative to the reward and to the mean reward. Rounding costs 1e-6, and
# the least exact of the shipped functions up to 1e-4.
TOLERANCE = 1e-4
# The fraction of steps in which it may differ by more. Observations can hide what ends an episode, such as a
# velocity that is clipped.
RARE = 0.01

REMEDIES = {
    "reward": "model/reward=deterministic learns it, model/reward=known uses your own env.reward_function",
    "is_done": "model/is_done=learned learns it, model/is_done=known uses your own env.is_done_function",
}


@dataclass
class KnownOptions(Component):
    """Options of a known function."""

    function: str | None = option("the function, as package.module.name")
    kwargs: dict[str, Any] | None = option(
        "keyword arguments of the environment; the function gets those that are keyword-only parameters of it"
    )

    def __post_init__(self) -> None:
        if self.function is None:
            raise ValueError("function=null: not known for this environment; name it under env, or learn it")
        try:
            function = resolve(self.function)
        except ImportError as error:
            raise ValueError(f"function={self.function}: {error}") from error
        if not callable(function):
            raise ValueError(f"function={self.function}: is not a function")


class Known:
    """A known function, called with actions in the environment's own units; it uses no random stream.

    Attributes:
        name: The function, as package.module.name.
        arguments: What it gets of the environment's keyword arguments.
    """

    Options = KnownOptions

    def __init__(self, options: KnownOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        assert options.function is not None
        self.name = options.function
        function: KnownFunction = resolve(options.function)
        self.arguments = _arguments(function, options.kwargs or {})
        self.function: KnownFunction = partial(function, **self.arguments)
        self.spaces = spaces

    def predict(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return rewards, or 1.0 where o' is terminal, shape (B,)."""
        return self.function(obs, self.spaces.actions.to_env(action), next_obs).to(obs.dtype)

    most_likely = predict


def _arguments(function: KnownFunction, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the keyword arguments that are keyword-only parameters of a function."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # of a builtin function
        return {}
    own = [name for name, parameter in parameters.items() if parameter.kind == parameter.KEYWORD_ONLY]
    return {name: kwargs[name] for name in own if name in kwargs}


class Comparison:
    """Compares known functions with real transitions, and ends a run in which they are not the environment's.

    If it differs in at most 1 % of the steps so far, a line in the log says so, once; more often, and with
    `allow_mismatch`, a warning.
    """

    def __init__(self, functions: Mapping[str, Known], allow_mismatch: bool) -> None:
        self._functions, self._allow_mismatch = functions, allow_mismatch
        self._num_steps = 0
        self._num_different = dict.fromkeys(functions, 0)
        self._told: set[tuple[str, bool]] = set()
        for part, function in functions.items():
            if function.arguments:
                log.info("model.%s.function=%s gets %s", part, function.name, function.arguments)

    def __call__(self, real: Transitions, first_step: int) -> None:
        """Compare transitions that have not been compared before; the first is from the step `first_step`.

        Raises:
            EnvironmentFailed: A function is not the environment's.
        """
        self._num_steps += len(real)
        for part, function in self._functions.items():
            known = function.predict(real.obs, real.action, real.next_obs)
            truth = real.reward if part == "reward" else real.terminated
            tolerance = TOLERANCE * (truth.abs() + truth.abs().mean())
            different = (~((known - truth).abs() <= tolerance)).nonzero()[:, 0].tolist()
            if different:
                row = different[0]
                values = f"{float(known[row]):.6g}, but the environment {float(truth[row]):.6g}"
                self._report(part, len(different), f"in step {first_step + row:,} it gives {values}")

    def _report(self, part: str, num_different: int, example: str) -> None:
        self._num_different[part] += num_different
        message = (
            f"model.{part}.function={self._functions[part].name}: {example} "
            f"({self._num_different[part]:,} of {self._num_steps:,} environment steps differ)"
        )
        is_rare = self._num_different[part] <= RARE * self._num_steps
        if not (is_rare or self._allow_mismatch):
            remedy = f"{REMEDIES[part]}, and model.allow_mismatch=true accepts it"
            raise EnvironmentFailed(f"{message}; {remedy}")
        if (part, is_rare) not in self._told:
            self._told.add((part, is_rare))
            log.log(logging.INFO if is_rare else logging.WARNING, "%s", message)
