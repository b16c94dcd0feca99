"""Bounds of the returns that are possible with the rewards seen so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LARGEST = torch.finfo(torch.float32).max
# Of the moving averages, per update. Source: Kubo et al. 2025, public code.
RATE = 3e-4


class ReturnBounds(nn.Module):
    """The range of returns that rewards and the discount allow, so that critics cannot run away.

    With rewards within [low, high], the value of a state from which an episode may end soon or never lies
    between the smaller of low and low / (1 - discount) and the larger of high and high / (1 - discount).
    With a discount of 1 there are no bounds.

    Args:
        quantile: 0 takes the smallest and the largest reward seen; otherwise low and high are moving averages
            of this quantile of the rewards of an update and of that as far from the other end.
    """

    def __init__(self, discount_factor: float, quantile: float, device: torch.device) -> None:
        super().__init__()
        self._horizon = 1 / (1 - discount_factor) if discount_factor < 1 else math.inf
        self._quantile = quantile
        # Parameters, as compiled steps may change nothing else.
        self.low = nn.Parameter(torch.full((), LARGEST, device=device), requires_grad=False)
        self.high = nn.Parameter(torch.full((), -LARGEST, device=device), requires_grad=False)

    @torch.no_grad()
    def see(self, rewards: Tensor) -> None:
        """Widen the range of rewards to contain these, or move it towards their quantiles."""
        if self._quantile == 0:
            self.low.copy_(torch.minimum(self.low, rewards.amin()))
            self.high.copy_(torch.maximum(self.high, rewards.amax()))
            return
        is_first = self.low > self.high
        levels = rewards.new_tensor((self._quantile, 1 - self._quantile))
        for bound, now in zip((self.low, self.high), rewards.flatten().quantile(levels), strict=True):
            bound.copy_(torch.where(is_first, now, torch.lerp(bound, now, RATE)))

    def limited(
        self, value_B: Tensor, least_bonus: Tensor | float = 0, most_bonus: Tensor | float = 0
    ) -> Tensor:
        """Return values within the bounds.

        The bonuses are the range of what is added to each reward, such as an entropy.
        """
        return value_B.clamp(*self._range(least_bonus, most_bonus))

    def scaled(self, outputs: Tensor) -> Tensor:
        """Map outputs from [-1, 1] to the range of returns, before any reward was seen to themselves."""
        low, high = self._range(0, 0)
        has_range = (self.low <= self.high) & (low < high)
        half_width = torch.where(has_range, (high - low) / 2, 1.0)
        return outputs * half_width + torch.where(has_range, (high + low) / 2, 0.0)

    def _range(self, least_bonus: Tensor | float, most_bonus: Tensor | float) -> tuple[Tensor, Tensor]:
        low, high = self.low + least_bonus, self.high + most_bonus
        return torch.minimum(low, low * self._horizon), torch.maximum(high, high * self._horizon)
