"""Adam with the three options of MATLAB's rlOptimizerOptions, shared by agents and models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mbpo_cli.options import option

# Source: Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization"; not configurable.
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

THRESHOLD = (
    "limit of the L2 norm of the gradient of a network, or of a member of an ensemble; larger gradients are "
    "scaled down; null = no limit"
)
L2 = (
    "L2 penalty: factor of each parameter (also biases, limits of the log-variance and the logarithm of the "
    "entropy weight) that is added to its gradient, after the limit of the norm"
)


@dataclass
class OptimizerOptions:
    """Options of the optimizer of one part."""

    learn_rate: float = option(
        "learning rate of Adam; 0 = do not train this part", low=0, high=1, matlab="LearnRate"
    )
    gradient_threshold: float | None = option(THRESHOLD, above=0, matlab="GradientThreshold")
    l2_regularization: float = option(L2, low=0, matlab="L2RegularizationFactor")


@dataclass
class MemberOptimizerOptions:
    """Options of the optimizer of an ensemble: one value for all members, or a list with one per member."""

    learn_rate: float | list[float] = option(
        "learning rate of Adam, one or a list with one per member; 0 = do not train",
        low=0,
        high=1,
        matlab="LearnRate",
    )
    gradient_threshold: float | list[float] | None = option(THRESHOLD, above=0, matlab="GradientThreshold")
    l2_regularization: float | list[float] = option(L2, low=0, matlab="L2RegularizationFactor")


class Optimizer:
    """Adam with an optional limit on the gradient norm and, for ensembles, options per member.

    The first dimension of each parameter is the member of a `BatchedMLP`.
    """

    SAVED = ("first_moments", "second_moments", "step_counts")

    def __init__(
        self, parameters: Iterable[nn.Parameter], options: OptimizerOptions | MemberOptimizerOptions
    ) -> None:
        self.parameters = list(parameters)
        self.device = device = self.parameters[0].device
        threshold, rate, l2 = options.gradient_threshold, options.learn_rate, options.l2_regularization
        self._threshold_M = None if threshold is None else torch.tensor(threshold, device=device)
        # Adam takes one rate and one factor; differences between members are applied around it.
        self._rate = max(rate) if isinstance(rate, list) else rate
        self._l2 = 0.0 if isinstance(l2, list) else l2
        self._rate_share_M = self._l2_M = None
        if isinstance(rate, list) and self._rate > 0:
            self._rate_share_M = torch.tensor(rate, device=device) / self._rate
        if isinstance(l2, list):
            self._l2_M = torch.tensor(l2, device=device)
        self.first_moments = [_kept(torch.zeros_like(parameter)) for parameter in self.parameters]
        self.second_moments = [_kept(torch.zeros_like(parameter)) for parameter in self.parameters]
        # One count for all: to advance one for each parameter would take a tenth of a small network's update.
        self._count = _kept(torch.zeros((), device=device))
        self.step_counts = [self._count] * len(self.parameters)

    @property
    def gradient_norm(self) -> float:
        """L2 norm of Adam's running mean of gradients; gradients themselves do not survive compiled steps."""
        return float(torch.stack([moment.square().sum() for moment in self.first_moments]).sum().sqrt())

    def minimize(self, loss: Tensor) -> None:
        """Take one gradient step on a scalar loss.

        Other parameters that the loss depends on are neither changed nor given a gradient.
        """
        # torch's kernel assumes without a check that gradients have their parameters' memory layout.
        gradients = [gradient.contiguous() for gradient in torch.autograd.grad(loss, self.parameters)]
        with torch.no_grad():
            if self._threshold_M is not None:
                gradients = _limited(gradients, self._threshold_M)
            if self._l2_M is not None:
                pairs = zip(gradients, self.parameters, strict=True)
                gradients = [g + _per_member(self._l2_M, g) * parameter for g, parameter in pairs]
            if self._rate_share_M is None:
                self._step(gradients)
            else:
                self._step_by_shares(gradients, self._rate_share_M)

    def _step(self, gradients: list[Tensor]) -> None:
        if torch.compiler.is_compiling():  # torch.compile cannot trace the fused kernel
            self._step_by_formula(gradients)
            return
        self._count.add_(1)
        torch._fused_adam_(
            self.parameters,  # type: ignore[arg-type]
            gradients,
            self.first_moments,
            self.second_moments,
            [],
            self.step_counts,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=self._rate,
            weight_decay=self._l2,
            eps=EPSILON,
            maximize=False,
        )

    def _step_by_formula(self, gradients: list[Tensor]) -> None:
        # The bias corrections are computed once for all parameters. A compiler moves powers, as in torch's
        # own formulas, into the innermost loops, but not exponentials.
        self._count.add_(1)
        count = self._count
        rate = self._rate / (1 - torch.exp(math.log(BETA1) * count))
        scale = torch.sqrt(1 - torch.exp(math.log(BETA2) * count))
        moments = zip(self.first_moments, self.second_moments, strict=True)
        for parameter, gradient, (first, second) in zip(self.parameters, gradients, moments, strict=True):
            descent = gradient + self._l2 * parameter if self._l2 > 0 else gradient
            first.lerp_(descent, 1 - BETA1)
            second.lerp_(descent.square(), 1 - BETA2)
            parameter.sub_(rate * first / (second.sqrt() / scale + EPSILON))

    def _step_by_shares(self, gradients: list[Tensor], share_M: Tensor) -> None:
        # Adam's step is proportional to the learning rate.
        before = [parameter.clone() for parameter in self.parameters]
        self._step(gradients)
        for parameter, old in zip(self.parameters, before, strict=True):
            parameter.copy_(torch.lerp(old, parameter, _per_member(share_M, parameter)))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all gradients so far."""
        for tensor in (*self.first_moments, *self.second_moments, self._count):
            tensor.zero_()

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Return Adam's moments and step counts."""
        return {name: [tensor.clone() for tensor in getattr(self, name)] for name in self.SAVED}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restore the result of `state_dict`."""
        for name in self.SAVED:
            for tensor, stored in zip(getattr(self, name), state[name], strict=True):
                tensor.copy_(stored)


def _kept(value: Tensor) -> Tensor:
    """Make a tensor a parameter, whose place in memory compiled steps may rely on."""
    return nn.Parameter(value, requires_grad=False)


def _limited(gradients: list[Tensor], threshold_M: Tensor) -> list[Tensor]:
    # One norm per member: a member with an exploding gradient must not slow the others.
    square_M = torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradients]).sum(0)
    scale_M = (threshold_M / square_M.sqrt()).clamp(max=1.0)
    return [g * _per_member(scale_M, g) for g in gradients]


def _per_member(values_M: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per member to broadcast with `like`, whose first dimension is the member."""
    return values_M.view(-1, *[1] * (like.ndim - 1))
