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


@dataclass
class MemberOptimizerOptions:
    """How the members of an ensemble are trained: one value for all, or a list with one per member."""

    learn_rate: float | list[float] = option(
        "step size of Adam, of all members or a list of each; 0 = leave its weights as they are",
        low=0,
        high=1,
        matlab="LearnRate",
    )
    gradient_threshold: float | list[float] | None = option(
        "largest L2 norm of a member's gradient, which is scaled down to it; null = no limit for any",
        above=0,
        matlab="GradientThreshold",
    )
    l2_regularization: float | list[float] = option(
        "factor of the squared weights added to the loss gradient", low=0, matlab="L2RegularizationFactor"
    )


class Optimizer:
    """Adam on a fixed set of parameters, with an optional limit on the gradient's norm.

    The first dimension of every parameter counts the members of a `BatchedMLP`; each option may
    differ between them.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], options: OptimizerOptions | MemberOptimizerOptions
    ) -> None:
        """Optimise `parameters`, which must not be empty."""
        self.parameters = list(parameters)
        device = self.parameters[0].device
        threshold, rate, l2 = options.gradient_threshold, options.learn_rate, options.l2_regularization
        self._threshold_M = None if threshold is None else torch.tensor(threshold, device=device)
        # Adam knows one rate and one factor; what differs between members is done around it.
        largest_rate = max(rate) if isinstance(rate, list) else rate
        self._rate_share_M = self._l2_M = None
        if isinstance(rate, list) and largest_rate > 0:
            self._rate_share_M = torch.tensor(rate, device=device) / largest_rate
        if isinstance(l2, list):
            self._l2_M = torch.tensor(l2, device=device)
        self.adam = torch.optim.Adam(
            self.parameters, lr=largest_rate, weight_decay=0.0 if isinstance(l2, list) else l2, fused=True
        )

    def minimize(self, loss: Tensor) -> None:
        """Take one step down the gradient of a scalar loss with respect to these parameters alone.

        Other parameters that the loss depends on are neither changed nor given a gradient.
        """
        self.adam.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)  # type: ignore[no-untyped-call]
        if self._threshold_M is not None:
            self._limit_gradients(self._threshold_M)
        if self._l2_M is not None:
            self._add_weights_to_gradients(self._l2_M)
        if self._rate_share_M is None:
            self.adam.step()
        else:
            self._step_by_shares(self._rate_share_M)

    def _limit_gradients(self, threshold_M: Tensor) -> None:
        # Members do not share a norm: one with an exploding gradient must not slow the others.
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        square_M = sum((g.reshape(len(g), -1).square().sum(1) for g in gradients), torch.zeros(()))
        scale_M = (threshold_M / square_M.sqrt()).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(_per_member(scale_M, gradient))

    @torch.no_grad()
    def _add_weights_to_gradients(self, l2_M: Tensor) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.addcmul_(_per_member(l2_M, parameter), parameter)

    @torch.no_grad()
    def _step_by_shares(self, share_M: Tensor) -> None:
        # A step of Adam is proportional to its rate.
        before = [parameter.clone() for parameter in self.parameters]
        self.adam.step()
        for parameter, old in zip(self.parameters, before, strict=True):
            parameter.copy_(torch.lerp(old, parameter, _per_member(share_M, parameter)))

    def state_dict(self) -> dict[str, Any]:
        """Return Adam's moments and step count."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        # Adam would go on with the very tensors that it is given.
        self.adam.load_state_dict(copy.deepcopy(state))


def _per_member(values_M: Tensor, like: Tensor) -> Tensor:
    """Shape one value per member so that it multiplies `like`, whose first dimension counts members."""
    return values_M.view(-1, *[1] * (like.ndim - 1))
