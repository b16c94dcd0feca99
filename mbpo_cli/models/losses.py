"""The loss functions of the page, per ensemble member.

Source: the page, Training Algorithm, step 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def channel_weights(channels: Sequence[int]) -> Tensor:
    """Return the weight of each element, shape (sum of channels,), that gives all channels equal weight.

    An element of channel i weighs 1 / (N_o * M_oi), for N_o channels of M_oi elements.
    """
    return torch.cat([torch.full((size,), 1 / (len(channels) * size)) for size in channels])


def half_mean_loss(
    prediction_MBD: Tensor, target_MBD: Tensor, weights_D: Tensor, importance_MB: Tensor | None = None
) -> Tensor:
    """Return each member's 1/(2B) sum_b ||Y_b - T_b||^2, elements and maybe rows weighted; shape (M,)."""
    return 0.5 * _mean((prediction_MBD - target_MBD).square(), importance_MB) @ weights_D


def gaussian_loss(
    mean_MBD: Tensor,
    log_variance_MBD: Tensor,
    target_MBD: Tensor,
    weights_D: Tensor,
    importance_MB: Tensor | None = None,
) -> Tensor:
    """Return each member's mean negative log-likelihood, elements and maybe rows weighted; shape (M,)."""
    squared_error = (target_MBD - mean_MBD).square() * torch.exp(-log_variance_MBD)
    likelihood = squared_error + log_variance_MBD + math.log(2 * math.pi)
    return 0.5 * _mean(likelihood, importance_MB) @ weights_D


def _mean(values_MBD: Tensor, importance_MB: Tensor | None) -> Tensor:
    return (values_MBD if importance_MB is None else importance_MB[..., None] * values_MBD).mean(1)


def is_done_loss(logit_MB: Tensor, target_MB: Tensor) -> Tensor:
    """Return each member's weighted cross-entropy of logits; shape (M,).

    J = -1/B sum_b (w0 T_b ln Y_b + w1 (1 - T_b) ln(1 - Y_b)) with w0 = 1/sum T, w1 = 1/sum (1 - T);
    a class that is absent from the batch contributes 0.
    """
    other_MB = 1 - target_MB
    done_M = (target_MB * functional.softplus(-logit_MB)).sum(1) / target_MB.sum(1).clamp(min=1)
    not_done_M = (other_MB * functional.softplus(logit_MB)).sum(1) / other_MB.sum(1).clamp(min=1)
    return (done_M + not_done_M) / target_MB.shape[1]
