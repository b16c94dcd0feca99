"""Known reward and is-done functions, with the signature of the learned ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbpo_cli.options import Component, option, resolve
from mbpo_cli.types import KnownFunction, SpaceSpec


@dataclass
class KnownOptions(Component):
    """Options of a known function."""

    function: str | None = option("the function, as package.module.name")

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
    """A known function, called with actions in the environment's own units; it uses no random stream."""

    Options = KnownOptions

    def __init__(self, options: KnownOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        assert options.function is not None
        self.function: KnownFunction = resolve(options.function)
        self.spaces = spaces

    def predict(self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator) -> Tensor:
        """Return rewards, or 1.0 where o' is terminal, shape (B,)."""
        return self.function(obs, self.spaces.actions.to_env(action), next_obs).to(obs.dtype)
