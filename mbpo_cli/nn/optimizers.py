"""Optimizers with the options of MATLAB's rlOptimizerOptions, shared by agents and models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mbpo_cli.options import option

RATE = "learning rate; 0 = do not train this part"
THRESHOLD = "limit of the gradient, as gradient_threshold_method says; null = no limit"
L2 = (
    "L2 penalty: factor of each parameter (also biases, limits of the log-variance and the logarithm of the "
    "entropy weight) that is added to its gradient, after the limit of that; in adamw, parameters shrink "
    "by it times the learning rate instead"
)


@dataclass
class MemberOptimizerOptions:
    """Options of the optimizer of an ensemble: of some, one value for all members or a list with one each."""

    learn_rate: float | list[float] = option(
        f"{RATE}; one, or a list with one per member", low=0, high=1, matlab="LearnRate"
    )
    gradient_threshold: float | list[float] | None = option(THRESHOLD, above=0, matlab="GradientThreshold")
    gradient_threshold_method: Literal["global_l2norm", "l2norm", "absolute_value"] = option(
        "global_l2norm = the gradient of a network, or of a member of an ensemble, is scaled down if its L2 "
        "norm is larger; l2norm = so is that of each weight matrix and each bias vector by itself; "
        "absolute_value = each element is clipped",
        matlab="GradientThresholdMethod",
    )
    l2_regularization: float | list[float] = option(L2, low=0, matlab="L2RegularizationFactor")
    algorithm: Literal["adam", "adamw", "sgdm", "rmsprop"] = option(
        "adamw = Adam whose l2_regularization is apart from the gradient; sgdm = gradient descent with "
        "momentum",
        matlab="Algorithm",
    )
    gradient_decay_factor: float = option(
        "factor by which past gradients fade per step: beta1 of adam and adamw, momentum of sgdm; without "
        "effect in rmsprop",
        low=0,
        high=0.99999,
        matlab=("GradientDecayFactor", "Momentum"),
    )
    squared_gradient_decay_factor: float = option(
        "factor by which past squared gradients fade per step: beta2 of adam and adamw; also of rmsprop",
        low=0,
        high=0.99999,
        matlab="SquaredGradientDecayFactor",
    )
    epsilon: float = option(
        "added to the root of the mean squared gradient, by which steps are divided; without effect in sgdm",
        above=0,
        high=1,
        matlab="Epsilon",
    )


@dataclass
class OptimizerOptions(MemberOptimizerOptions):
    """Options of the optimizer of one part."""

    learn_rate: float = option(RATE, low=0, high=1, matlab="LearnRate")
    gradient_threshold: float | None = option(THRESHOLD, above=0, matlab="GradientThreshold")
    l2_regularization: float = option(L2, low=0, matlab="L2RegularizationFactor")


class Optimizer:
    """Adam, AdamW, SGD with momentum or RMSProp, with an optional limit of the gradient.

    The first dimension of each parameter is the member of a `BatchedMLP`, which may have options of its own.

    Sources: Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization"; Loshchilov and Hutter 2019,
    "Decoupled Weight Decay Regularization"; for SGDM and RMSProp MATLAB's trainingOptions, in which neither
    corrects for the bias of the first means.
    """

    SAVED = ("first_moments", "second_moments", "step_counts")

    def __init__(self, parameters: Iterable[nn.Parameter], options: MemberOptimizerOptions) -> None:
        self.parameters = list(parameters)
        self.device = device = self.parameters[0].device
        threshold, rate, l2 = options.gradient_threshold, options.learn_rate, options.l2_regularization
        self._threshold_M = None if threshold is None else torch.tensor(threshold, device=device)
        self._method, self._algorithm = options.gradient_threshold_method, options.algorithm
        # RMSProp has no mean of gradients: the last one stands for it.
        self._beta1 = 0.0 if self._algorithm == "rmsprop" else options.gradient_decay_factor
        self._beta2, self._epsilon = options.squared_gradient_decay_factor, options.epsilon
        # The kernel takes one rate and one factor; differences between members are applied around it.
        self._rate = max(rate) if isinstance(rate, list) else rate
        self._l2 = 0.0 if isinstance(l2, list) or self._algorithm == "adamw" else l2
        self._rate_share_M = self._l2_M = self._shrink_M = None
        if isinstance(rate, list) and self._rate > 0:
            self._rate_share_M = torch.tensor(rate, device=device) / self._rate
        if self._algorithm == "adamw":
            self._shrink_M = 1 - self._rate * torch.tensor(l2, device=device)
        elif isinstance(l2, list):
            self._l2_M = torch.tensor(l2, device=device)
        self.first_moments = [_kept(torch.zeros_like(parameter)) for parameter in self.parameters]
        self.second_moments = [_kept(torch.zeros_like(parameter)) for parameter in self.parameters]
        # One count for all: to advance one for each parameter would take a tenth of a small network's update.
        self._count = _kept(torch.zeros((), device=device))
        self.step_counts = [self._count] * len(self.parameters)

    @property
    def gradient_norm(self) -> float:
        """L2 norm of the running mean of gradients; gradients themselves do not survive compiled steps."""
        return float(torch.stack([moment.square().sum() for moment in self.first_moments]).sum().sqrt())

    def minimize(self, loss: Tensor) -> None:
        """Take one gradient step on a scalar loss.

        Other parameters that the loss depends on are neither changed nor given a gradient.
        """
        # torch's kernel assumes without a check that gradients have their parameters' memory layout.
        gradients = [gradient.contiguous() for gradient in torch.autograd.grad(loss, self.parameters)]
        with torch.no_grad():
            if self._threshold_M is not None:
                gradients = _limited(gradients, self._threshold_M, self._method)
            if self._l2_M is not None:
                pairs = zip(gradients, self.parameters, strict=True)
                gradients = [g + _per_member(self._l2_M, g) * parameter for g, parameter in pairs]
            if self._rate_share_M is None:
                self._step(gradients)
            else:
                self._step_by_shares(gradients, self._rate_share_M)

    def _step(self, gradients: list[Tensor]) -> None:
        if self._shrink_M is not None:
            for parameter in self.parameters:
                parameter.mul_(_per_member(self._shrink_M, parameter))
        # torch.compile cannot trace the fused kernel, which serves Adam alone.
        if torch.compiler.is_compiling() or self._algorithm not in ("adam", "adamw"):
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
            beta1=self._beta1,
            beta2=self._beta2,
            lr=self._rate,
            weight_decay=self._l2,
            eps=self._epsilon,
            maximize=False,
        )

    def _step_by_formula(self, gradients: list[Tensor]) -> None:
        self._count.add_(1)
        rate: Tensor | float = self._rate
        scale: Tensor | float = 1.0
        if self._algorithm in ("adam", "adamw"):
            # The bias corrections are computed once for all parameters. A compiler moves powers, as in
            # torch's own formulas, into the innermost loops, but not exponentials.
            rate = rate / (1 - torch.exp(_log(self._beta1) * self._count))
            scale = torch.sqrt(1 - torch.exp(_log(self._beta2) * self._count))
        elif self._algorithm == "sgdm":
            rate = rate / (1 - self._beta1)  # the sum of fading gradients is so many times their mean
        moments = zip(self.first_moments, self.second_moments, strict=True)
        for parameter, gradient, (first, second) in zip(self.parameters, gradients, moments, strict=True):
            descent = gradient + self._l2 * parameter if self._l2 > 0 else gradient
            first.lerp_(descent, 1 - self._beta1)
            second.lerp_(descent.square(), 1 - self._beta2)
            step = rate * first
            parameter.sub_(
                step if self._algorithm == "sgdm" else step / (second.sqrt() / scale + self._epsilon)
            )

    def _step_by_shares(self, gradients: list[Tensor], share_M: Tensor) -> None:
        # Steps are proportional to the learning rate.
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
        """Return the means of gradients and of their squares, and the step counts."""
        return {name: [tensor.clone() for tensor in getattr(self, name)] for name in self.SAVED}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restore the result of `state_dict`."""
        for name in self.SAVED:
            for tensor, stored in zip(getattr(self, name), state[name], strict=True):
                tensor.copy_(stored)


def _kept(value: Tensor) -> Tensor:
    """Make a tensor a parameter, whose place in memory compiled steps may rely on."""
    return nn.Parameter(value, requires_grad=False)


def _log(decay_factor: float) -> float:
    return math.log(decay_factor) if decay_factor > 0 else -math.inf


def _limited(gradients: list[Tensor], threshold_M: Tensor, method: str) -> list[Tensor]:
    if method == "absolute_value":
        limits = [_per_member(threshold_M, g) for g in gradients]
        return [g.clamp(-limit, limit) for g, limit in zip(gradients, limits, strict=True)]
    # By parameter and member: a member with an exploding gradient must not slow the others.
    square_PM = torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradients])
    if method == "global_l2norm":
        square_PM = square_PM.sum(0).expand_as(square_PM)
    scale_PM = (threshold_M / square_PM.sqrt()).clamp(max=1.0)
    return [g * _per_member(scale_M, g) for g, scale_M in zip(gradients, scale_PM, strict=True)]


def _per_member(values_M: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per member to broadcast with `like`, whose first dimension is the member."""
    return values_M.view(-1, *[1] * (like.ndim - 1))
