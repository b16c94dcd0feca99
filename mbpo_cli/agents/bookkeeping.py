"""What the agents of this package share besides networks: counting updates, compilation and checkpoints.

It knows nothing of losses. An agent of your own does not need it (see `mbpo_cli.types.Agent`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mbpo_cli.nn.compilation import one_by_one
from mbpo_cli.types import Accelerate, GradientStep, Metrics, Transitions


class Bookkeeping(ABC):
    """Counts updates, runs the gradient step (compiled or not), and saves named attributes."""

    _step: GradientStep
    """One gradient step: a function of what `arguments` returns that changes nothing but parameters."""

    SAVED: ClassVar[tuple[str, ...]]
    """Attributes in `state_dict`: tensors, generators, or objects with a `state_dict` of their own."""

    def __init__(self) -> None:
        self.num_updates = 0
        self._steps = one_by_one(self._step)

    @abstractmethod
    def arguments(self, batch: Transitions) -> dict[str, Any]:
        """Return the arguments of the gradient step on a mini-batch, with everything random already drawn."""

    def is_due(self, frequency: int) -> bool:
        """Return True in every `frequency`-th update."""
        return self.num_updates % frequency == 0

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        """Take one gradient step per mini-batch, and return the metrics of each."""
        arguments = []
        for batch in batches:
            self.num_updates += 1
            arguments.append(self.arguments(batch))
        return self._steps(arguments)

    def compile(self, accelerate: Accelerate) -> None:
        """Replace the gradient step by an accelerated one."""
        self._steps = accelerate(self._step)

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes in `SAVED` and the number of updates."""
        return {**{name: _state(getattr(self, name)) for name in self.SAVED}, "num_updates": self.num_updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        for name in self.SAVED:
            _restore(getattr(self, name), state[name])
        self.num_updates = state["num_updates"]


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.detach().clone() if isinstance(part, Tensor) else part.state_dict()


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, Tensor):
        part.copy_(state)
    else:
        part.load_state_dict(state)
