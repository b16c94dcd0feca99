"""Weights of transitions that make the members of an ensemble differ where data are few."""

from __future__ import annotations

import torch
from torch import Tensor

SLOTS_AT_ONCE = 4_096


class Bootstrap:
    """One number for each buffer slot and member, drawn from an exponential distribution with a mean of 1.

    They follow from a seed and the number of the slot, so that there is nothing to store. Source: Rubin 1981,
    "The Bayesian Bootstrap".
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._device = generator.device
        self._seed = int(torch.randint(2**62, (), generator=generator, device=self._device))
        self._blocks: list[Tensor] = []

    def weights(self, num_slots: int, num_members: int) -> Tensor:
        """Return the numbers of the first slots, shape (N, M), for always the same number of members."""
        while len(self._blocks) * SLOTS_AT_ONCE < num_slots:
            stream = torch.Generator().manual_seed(self._seed + len(self._blocks))
            block = torch.empty(SLOTS_AT_ONCE, num_members).exponential_(generator=stream)
            self._blocks.append(block.to(self._device))
        return torch.cat(self._blocks)[:num_slots]
