import math
import subprocess
import sys
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbpo_cli.buffers import ReplayBuffer, mix, num_real_of
from mbpo_cli.types import Transitions
from tests.conftest import random_transitions, spaces

SPACE = spaces((2,))


def numbered(first: int, count: int) -> Transitions:
    """Transitions whose rewards are their numbers."""
    batch = random_transitions(count, SPACE)
    batch.reward = torch.arange(first, first + count, dtype=torch.float32)
    return batch


def rewards(buffer: ReplayBuffer) -> list[float]:
    return buffer.contents().reward.tolist()


def test_stored_transitions_are_returned_unchanged() -> None:
    buffer = ReplayBuffer(10, SPACE)
    batch = random_transitions(7, SPACE)
    buffer.add(batch)
    stored = buffer.contents()
    for name in ("obs", "action", "reward", "next_obs", "terminated"):
        torch.testing.assert_close(getattr(stored, name), getattr(batch, name), rtol=0, atol=0)


@given(st.integers(1, 7), st.lists(st.integers(1, 20), max_size=6))
def test_a_full_buffer_keeps_the_newest(capacity: int, sizes: list[int]) -> None:
    buffer, total = ReplayBuffer(capacity, SPACE), 0
    for size in sizes:
        buffer.add(numbered(total, size))
        total += size
    kept = min(total, capacity)
    assert len(buffer) == kept
    # Number i is in slot i % capacity, whatever the batch sizes.
    assert rewards(buffer) == sorted(range(total - kept, total), key=lambda i: i % capacity)


def test_sampling_draws_only_what_is_stored(g: torch.Generator) -> None:
    buffer = ReplayBuffer(100, SPACE)
    buffer.add(numbered(5, 3))
    assert set(buffer.sample(200, g).reward.tolist()) == {5.0, 6.0, 7.0}


def test_state_survives_a_restart() -> None:
    buffer, restored = ReplayBuffer(5, SPACE), ReplayBuffer(5, SPACE)
    buffer.add(numbered(0, 8))
    restored.restore(buffer.rows(3, 8), 8, 5)
    for each in (buffer, restored):
        each.add(numbered(8, 1))
    assert rewards(buffer) == rewards(restored)


@pytest.mark.parametrize("num_added", [4, 8, 13])
def test_forgotten_transitions_are_never_sampled(num_added: int, g: torch.Generator) -> None:
    buffer, restored = ReplayBuffer(5, SPACE), ReplayBuffer(5, SPACE)
    buffer.add(numbered(0, num_added))
    buffer.forget_all_but(3)
    restored.restore(buffer.rows(num_added - 4, num_added), num_added, 3)
    for each in (buffer, restored):
        assert set(each.sample(200, g).reward.tolist()) == {*range(num_added - 3, num_added)}
        each.add(numbered(num_added, 1))
        assert set(each.sample(200, g).reward.tolist()) == {*range(num_added - 3, num_added + 1)}
        each.add(numbered(num_added + 1, 9))
        assert set(each.sample(200, g).reward.tolist()) == {*range(num_added + 5, num_added + 10)}


@pytest.mark.parametrize("total_added", [0, 5])
def test_a_buffer_without_rows_is_restored(total_added: int) -> None:
    buffer = ReplayBuffer(10, spaces())
    buffer.restore(torch.empty(0, 0), total_added, 0)
    assert (len(buffer), buffer.total_added) == (0, total_added)


@pytest.mark.parametrize(("num_rows", "total_added", "size"), [(2, 8, 3), (3, 8, -1), (9, 8, 6), (3, 2, 3)])
def test_inconsistent_rows_are_rejected(num_rows: int, total_added: int, size: int) -> None:
    buffer = ReplayBuffer(5, SPACE)
    with pytest.raises(ValueError, match="rows"):
        buffer.restore(torch.zeros(num_rows, buffer.rows(0, 0).shape[1]), total_added, size)


@pytest.mark.parametrize(
    ("size", "ratio", "num_real"),
    [
        (256, 0.2, 52),
        (256, 0.05, 13),
        (100, 0.07, 7),
        (100, 0.29, 29),
        (10, 0.0, 0),
        (10, 1.0, 10),
        (1, 0.01, 1),
    ],
)
def test_number_of_real_transitions(size: int, ratio: float, num_real: int) -> None:
    assert num_real_of(size, ratio) == num_real


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_number_of_real_transitions_is_the_exact_ceiling(size: int, per_mille: int) -> None:
    exact = math.ceil(size * Decimal(per_mille) / 1000)
    assert num_real_of(size, per_mille / 1000) == exact


@pytest.mark.parametrize(("ratio", "num_real"), [(0.2, 52), (0.0, 0), (1.0, 256)])
def test_mix_combines_real_and_generated_transitions(ratio: float, num_real: int, g: torch.Generator) -> None:
    real, generated = ReplayBuffer(10, SPACE), ReplayBuffer(10, SPACE)
    real.add(numbered(0, 10))
    generated.add(numbered(1000, 10))
    batches, metrics = mix(real, generated, 256, ratio, 3, g)
    assert [len(batch) for batch in batches] == [256] * 3
    assert metrics == {
        "mix/num_real": num_real,
        "mix/num_generated": 256 - num_real,
        "mix/real_share": num_real / 256,
    }
    assert [int((batch.reward < 1000).sum()) for batch in batches] == [num_real] * 3
    assert not torch.equal(batches[0].reward, batches[1].reward)


def test_mix_is_all_real_before_the_first_generation(g: torch.Generator) -> None:
    real = ReplayBuffer(10, SPACE)
    real.add(numbered(0, 10))
    for generated in (None, ReplayBuffer(10, SPACE)):
        (batch,), metrics = mix(real, generated, 20, 0.1, 1, g)
        assert metrics["mix/num_real"] == 20
        assert len(batch) == 20


def test_with_ratio_0_the_real_buffer_may_be_empty(g: torch.Generator) -> None:
    generated = ReplayBuffer(10, SPACE)
    generated.add(numbered(0, 1))
    (batch,), metrics = mix(ReplayBuffer(10, SPACE), generated, 8, 0.0, 1, g)
    assert (len(batch), metrics["mix/num_real"]) == (8, 0)


HUMANOID = """
import torch
from mbpo_cli.buffers import ReplayBuffer
from tests.conftest import random_transitions, spaces

def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

space = spaces((348,), 17)
rows = random_transitions(10_000, space)
before = megabytes()
buffer = ReplayBuffer(1_000_000, space)
empty = megabytes() - before
for _ in range(100):
    buffer.add(rows)
buffer.sample(256, torch.Generator())
print(empty, megabytes() - before)
"""


@pytest.mark.slow
def test_a_million_humanoid_transitions_need_little_more_memory_than_their_numbers() -> None:
    done = subprocess.run([sys.executable, "-c", HUMANOID], capture_output=True, text=True, check=True)
    empty, full = map(float, done.stdout.split())
    numbers = 1_000_000 * (2 * 348 + 17 + 2) * 4 / 1e6
    print(f"{full:,.0f} MB for {numbers:,.0f} MB of numbers")
    assert empty < 0.01 * numbers, "memory is used only when rows are written"
    assert full < 1.2 * numbers
