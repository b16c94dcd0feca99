"""Replay buffers, returns of several steps, and mini-batches that mix real with generated experience.

Does not know where the experience comes from or what it is used for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from mbpo_cli.types import SpaceSpec, Transitions

# Whole numbers below it are exact in float32; only those of successive episodes must differ.
LARGEST_MARK = 2**24
# A resumed run looks again at what its earlier part has seen.
MAX_UNSEEN = 10_000


def _columns(spaces: SpaceSpec) -> list[int]:
    return [spaces.obs_size, spaces.action_size, 1, spaces.obs_size, 1]


def num_bytes(capacity: int, spaces: SpaceSpec) -> int:
    """Return the size of a replay buffer that is full."""
    return capacity * sum(_columns(spaces)) * torch.float32.itemsize


class ReplayBuffer:
    """A circular buffer of transitions, each packed into one row of a single float32 tensor."""

    NUM_MARKS = 0
    """Columns of a row after those of the transition."""

    def __init__(self, capacity: int, spaces: SpaceSpec, device: torch.device | str = "cpu") -> None:
        self.capacity = capacity
        self.size = 0
        self.total_added = 0
        self._columns = _columns(spaces)
        # Not initialized, so that memory is used only as rows are written.
        self._rows = torch.empty(capacity, sum(self._columns) + self.NUM_MARKS, device=device)

    def __len__(self) -> int:
        return self.size

    def add(self, transitions: Transitions, episodes: Tensor | None = None) -> None:
        """Append a batch from any device, in one copy; it overwrites the oldest rows of a full buffer.

        `episodes` are the numbers of their episodes, shape (B,), for buffers that look ahead.
        """
        self._append(torch.column_stack(tuple(vars(transitions).values())))

    def _append(self, rows: Tensor) -> None:
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

    def sample_rows(self, count: int, generator: torch.Generator, part: range | None = None) -> Tensor:
        """Draw `count` packed rows for updates uniformly with replacement; the buffer must not be empty.

        `part` are the numbers of the rows to draw from, counted from the first ever added; None = all.
        """
        return self._rows[self._draw(count, generator, part)]

    def _draw(self, count: int, generator: torch.Generator, part: range | None = None) -> Tensor:
        if part is not None:
            place = torch.randint(len(part), (count,), generator=generator, device=self._rows.device)
            return (part.start + place) % self.capacity
        index = torch.randint(self.size, (count,), generator=generator, device=self._rows.device)
        if self.size < min(self.total_added, self.capacity):
            index = (index + self.total_added - self.size) % self.capacity
        return index

    def sample(self, count: int, generator: torch.Generator) -> Transitions:
        """Draw `count` transitions uniformly with replacement; the buffer must not be empty."""
        return self.unpack(self._rows[self._draw(count, generator)])

    def contents(self) -> Transitions:
        """Return all transitions by slot, as views into the buffer; none may have been forgotten."""
        return self.unpack(self._rows[: self.size])

    def unpack(self, rows: Tensor) -> Transitions:
        """Return packed rows as transitions, without a copy."""
        columns = rows[:, : sum(self._columns)]
        obs, action, reward, next_obs, terminated = torch.split(columns, self._columns, dim=1)
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


class LookAheadBuffer(ReplayBuffer):
    """A replay buffer of real experience whose rows for updates hold the returns of up to n steps.

    Each row also has the number of its episode. Environments take turns, so that the steps of an episode are
    `num_envs` rows apart; a row that is not there, or belongs to another episode, ends the look-ahead.
    """

    NUM_MARKS = 1

    def __init__(
        self,
        capacity: int,
        spaces: SpaceSpec,
        device: torch.device | str = "cpu",
        *,
        num_steps: int,
        discount_factor: float,
        num_envs: int,
    ) -> None:
        super().__init__(capacity, spaces, device)
        self._num_steps, self._discount_factor, self._num_envs = num_steps, discount_factor, num_envs

    def add(self, transitions: Transitions, episodes: Tensor | None = None) -> None:
        """Append one step of each environment; `episodes` are the numbers of their episodes, shape (B,).

        From transitions without `episodes`, such as those of another run, nothing is looked ahead.
        """
        mark = torch.full((len(transitions),), math.nan)
        if episodes is not None and len(transitions) == self._num_envs:
            # At the end of a run there may be fewer; if it is extended, distances differ there.
            mark = (episodes % LARGEST_MARK).float()
        self._append(torch.column_stack((*vars(transitions).values(), mark)))

    def sample_rows(self, count: int, generator: torch.Generator, part: range | None = None) -> Tensor:
        """Draw `count` packed rows for updates, as `ReplayBuffer` does.

        A row has the discounted sum of the rewards of k steps and the observation after them; k is n, or the
        number of steps to the end of the episode or to the newest one, if that is smaller. `terminated` is
        1 - discount^(k - 1) (1 - done): in a target, discount (1 - terminated) V is discount^k V, 0 after an
        end.

        Source: Sutton 1988, "Learning to Predict by the Methods of Temporal Differences".
        """
        slots = self._draw(count, generator, part)
        newest = self.total_added - 1
        numbers = newest - (newest - slots) % self.capacity
        first = self._rows[slots]
        goes_on = torch.ones_like(slots, dtype=torch.bool)
        found = self.unpack(first)
        reward, next_obs, weight = found.reward, found.next_obs, 1 - found.terminated
        for step in range(1, self._num_steps):
            later = numbers + step * self._num_envs
            rows = self._rows[later % self.capacity]
            goes_on = goes_on & (later <= newest) & (rows[:, -1] == first[:, -1])
            ahead, discount = self.unpack(rows), self._discount_factor**step
            reward = torch.where(goes_on, reward + discount * ahead.reward, reward)
            next_obs = torch.where(goes_on[:, None], ahead.next_obs, next_obs)
            weight = torch.where(goes_on, discount * (1 - ahead.terminated), weight)
        return torch.column_stack((found.obs, found.action, reward, next_obs, 1 - weight))


class Unseen:
    """Passes on what was added to a buffer since the last call, of the run's own steps.

    Args:
        look: Gets the new transitions, and the number of the step of the first.
    """

    def __init__(self, look: Callable[[Transitions, int], None]) -> None:
        self._look = look
        self._num_seen = 0

    def __call__(self, buffer: ReplayBuffer, num_steps: int) -> None:
        """Look at a buffer whose last `num_steps` rows, if not overwritten, are the run's own."""
        end = buffer.total_added
        first = end - num_steps
        start = max(self._num_seen, end - min(len(buffer), MAX_UNSEEN), first)
        self._look(buffer.unpack(buffer.rows(start, end)), start + 1 - first)
        self._num_seen = end


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
    recorded: tuple[int, float] | None = None,
) -> tuple[list[Transitions], dict[str, float]]:
    """Draw mini-batches of real and generated experience, with counts; all real before the first generation.

    `recorded` are the number of transitions that the real buffer began with, and their fraction of the real
    ones in a mini-batch, where both kinds are there. Source: the page, step 4.1; of `recorded`, Ball et al.
    2023, "Efficient Online Reinforcement Learning with Offline Data" (RLPD), section 4.1.
    """
    num_real = num_real_of(mini_batch_size, real_ratio)
    if generated is None or len(generated) == 0:
        num_real = mini_batch_size
    metrics = {
        "mix/num_real": num_real,
        "mix/num_generated": mini_batch_size - num_real,
        "mix/real_share": num_real / mini_batch_size,
    }
    sources: list[tuple[ReplayBuffer | None, int, range | None]] = [(real, num_real, None)]
    if recorded is not None:
        oldest, newest = real.total_added - len(real), real.total_added
        num_rows, ratio = recorded
        parts = range(oldest, num_rows), range(max(oldest, num_rows), newest)
        count = num_real_of(num_real, ratio) if len(parts[1]) > 0 else num_real
        count = count if len(parts[0]) > 0 else 0
        sources = [(real, count, parts[0]), (real, num_real - count, parts[1])]
        metrics["mix/num_recorded"] = count
    sources.append((generated, mini_batch_size - num_real, None))
    # One draw from each source serves all mini-batches.
    drawn = [
        buffer.sample_rows(num_batches * count, generator, part).view(num_batches, count, -1)
        for buffer, count, part in sources
        if buffer is not None and count > 0
    ]
    batches = torch.cat(drawn, dim=1) if len(drawn) > 1 else drawn[0]
    return [real.unpack(rows) for rows in batches], metrics
