"""Bounds of the returns that are possible with the rewards seen so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LARGEST = torch.finfo(torch.float32).max


class ReturnBounds(nn.Module):
    """Limits values to what rewards and the discount allow, so that critics cannot run away.

    With rewards within [low, high], the value of a state from which an episode may end soon or never lies
    between the smaller of low and low / (1 - discount) and the larger of high and high / (1 - discount).
    With a discount of 1 there are no bounds.
    """

    def __init__(self, discount_factor: float, device: torch.device) -> None:
        super().__init__()
        self._horizon = 1 / (1 - discount_factor) if discount_factor < 1 else math.inf
        # Parameters, as compiled steps may change nothing else.
        self.low = nn.Parameter(torch.full((), LARGEST, device=device), requires_grad=False)
        self.high = nn.Parameter(torch.full((), -LARGEST, device=device), requires_grad=False)

    def limited(
        self,
        reward_B: Tensor,
        value_B: Tensor,
        least_bonus: Tensor | float = 0,
        most_bonus: Tensor | float = 0,
    ) -> Tensor:
        """Widen the range of rewards to contain these, and return values within the bounds.

        The bonuses are the range of what is added to each reward, such as an entropy.
        """
        self.low.copy_(torch.minimum(self.low, reward_B.amin()))
        self.high.copy_(torch.maximum(self.high, reward_B.amax()))
        low, high = self.low + least_bonus, self.high + most_bonus
        least = torch.minimum(low, low * self._horizon)
        return value_B.clamp(least, torch.maximum(high, high * self._horizon))
