"""Adam with the three options of MATLAB's rlOptimizerOptions, shared by agents and models."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbpo_cli.options import option


@dataclass
class OptimizerOptions:
    """How one part is trained."""

    learn_rate: float = option(
        "step size of Adam; 0 = leave this part as it is", low=0, high=1, matlab="LearnRate"
    )
    gradient_threshold: float | None = option(
        "largest L2 norm of a network's gradient, which is scaled down to it; null = no limit",
        above=0,
        matlab="GradientThreshold",
    )
    l2_regularization: float = option(
        "factor of the squared weights added to the loss gradient", low=0, matlab="L2RegularizationFactor"
    )


class Optimizer:
    """Adam on a fixed set of parameters, with an optional limit on the gradient's norm.

    The first dimension of every parameter counts the members of a `BatchedMLP`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], options: OptimizerOptions) -> None:
        """Optimise `parameters`, which must not be empty."""
        self.parameters = list(parameters)
        self.threshold = options.gradient_threshold
        self.adam = torch.optim.Adam(
            self.parameters, lr=options.learn_rate, weight_decay=options.l2_regularization, fused=True
        )

    def minimize(self, loss: Tensor) -> None:
        """Take one step down the gradient of a scalar loss with respect to these parameters alone.

        Other parameters that the loss depends on are neither changed nor given a gradient.
        """
        self.adam.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)  # type: ignore[no-untyped-call]
        if self.threshold is not None:
            self._limit_gradients(self.threshold)
        self.adam.step()

    def _limit_gradients(self, threshold: float) -> None:
        # Members do not share a norm: one with an exploding gradient must not slow the others.
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        square_M = sum((g.reshape(len(g), -1).square().sum(1) for g in gradients), torch.zeros(()))
        scale_M = (threshold / square_M.sqrt()).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale_M.view(-1, *[1] * (gradient.ndim - 1)))

    def state_dict(self) -> dict[str, Any]:
        """Return Adam's moments and step count."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        # Adam would go on with the very tensors that it is given.
        self.adam.load_state_dict(copy.deepcopy(state))
