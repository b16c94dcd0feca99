"""Replay buffers, and mini-batches that mix real with generated experience.

Does not know where the experience comes from or what it is used for.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from mbpo_cli.types import SpaceSpec, Transitions


def _columns(spaces: SpaceSpec) -> list[int]:
    return [spaces.obs_size, spaces.action_size, 1, spaces.obs_size, 1]


def num_bytes(capacity: int, spaces: SpaceSpec) -> int:
    """Return the size of a replay buffer that is full."""
    return capacity * sum(_columns(spaces)) * torch.float32.itemsize


class ReplayBuffer:
    """A circular buffer of transitions, each packed into one row of a single float32 tensor."""

    def __init__(self, capacity: int, spaces: SpaceSpec, device: torch.device | str = "cpu") -> None:
        self.capacity = capacity
        self.size = 0
        self.total_added = 0
        self._columns = _columns(spaces)
        # Not initialized, so that memory is used only as rows are written.
        self._rows = torch.empty(capacity, sum(self._columns), device=device)

    def __len__(self) -> int:
        return self.size

    def add(self, transitions: Transitions) -> None:
        """Append a batch from any device, in one copy; it overwrites the oldest rows of a full buffer."""
        rows = torch.column_stack(tuple(vars(transitions).values()))
        skipped = max(len(rows) - self.capacity, 0)
        start = (self.total_added + skipped) % self.capacity
        head = rows[skipped : skipped + self.capacity - start]
        tail = rows[skipped + len(head) :]
        self._rows[start : start + len(head)] = head
        self._rows[: len(tail)] = tail
        self.total_added += len(rows)
        self.size = min(self.size + len(rows), self.capacity)

    def forget_all_but(self, newest: int) -> None:
        """Forget the oldest rows, so that at most `newest` are left."""
        self.size = min(self.size, newest)

    def sample_rows(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` packed rows uniformly with replacement; the buffer must not be empty."""
        index = torch.randint(self.size, (count,), generator=generator, device=self._rows.device)
        if self.size < min(self.total_added, self.capacity):
            index = (index + self.total_added - self.size) % self.capacity
        return self._rows[index]

    def sample(self, count: int, generator: torch.Generator) -> Transitions:
        """Draw `count` transitions uniformly with replacement; the buffer must not be empty."""
        return self.unpack(self.sample_rows(count, generator))

    def contents(self) -> Transitions:
        """Return all transitions by slot, as views into the buffer; none may have been forgotten."""
        return self.unpack(self._rows[: self.size])

    def unpack(self, rows: Tensor) -> Transitions:
        """Return packed rows as transitions, without a copy."""
        obs, action, reward, next_obs, terminated = torch.split(rows, self._columns, dim=1)
        return Transitions(obs, action, reward[:, 0], next_obs, terminated[:, 0])

    def rows(self, start: int, end: int) -> Tensor:
        """Return packed rows by number, counted from the first ever added; all must still be stored."""
        return self._rows[self._slots(start, end)]

    def restore(self, rows: Tensor, total_added: int, size: int) -> None:
        """Restore a buffer that held the last `size` of `total_added` rows; `rows` ends with these.

        Raises:
            ValueError: The rows or the numbers do not fit this buffer.
        """
        if not 0 <= size <= min(total_added, self.capacity):
            raise ValueError(f"{size} of {total_added} rows cannot be in a buffer of {self.capacity}")
        if size > 0:
            if len(rows) < size or rows.shape[1] != self._rows.shape[1]:
                raise ValueError(f"rows of shape {tuple(rows.shape)} are not {size} of this buffer's")
            slots = self._slots(total_added - size, total_added)
            self._rows[slots] = rows[len(rows) - size :].to(self._rows.device)
        self.total_added, self.size = total_added, size

    def _slots(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end, device=self._rows.device) % self.capacity


def num_real_of(mini_batch_size: int, real_ratio: float) -> int:
    """Return the number of real transitions in a mini-batch of M: ceil(M * R).

    R is taken as the decimal number in the configuration: 100 * 0.07 is 7, not 7.000000000000001.
    Source: the page, step 4.1.
    """
    return math.ceil(mini_batch_size * Fraction(str(real_ratio)))


def mix(
    real: ReplayBuffer,
    generated: ReplayBuffer | None,
    mini_batch_size: int,
    real_ratio: float,
    num_batches: int,
    generator: torch.Generator,
) -> tuple[list[Transitions], dict[str, float]]:
    """Draw mini-batches of real and generated experience, with counts; all real before the first generation.

    Source: the page, step 4.1.
    """
    num_real = num_real_of(mini_batch_size, real_ratio)
    if generated is None or len(generated) == 0:
        num_real = mini_batch_size
    # One draw from each buffer serves all mini-batches.
    parts = [
        buffer.sample_rows(num_batches * count, generator).view(num_batches, count, -1)
        for buffer, count in ((real, num_real), (generated, mini_batch_size - num_real))
        if buffer is not None and count > 0
    ]
    batches = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    metrics = {
        "mix/num_real": num_real,
        "mix/num_generated": mini_batch_size - num_real,
        "mix/real_share": num_real / mini_batch_size,
    }
    return [real.unpack(rows) for rows in batches], metrics
