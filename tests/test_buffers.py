import math
import subprocess
import sys
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbpo_cli.buffers import LookAheadBuffer, ReplayBuffer, mix, num_real_of
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


def looking_ahead(num_steps: int, num_envs: int = 1, capacity: int = 10) -> LookAheadBuffer:
    return LookAheadBuffer(capacity, SPACE, num_steps=num_steps, discount_factor=0.5, num_envs=num_envs)


def take_step(buffer: ReplayBuffer, *rows: tuple[int, float, bool]) -> None:
    """Add a row per environment: its episode, reward and end; it leads from its number to that plus 0.5."""
    episodes, rewards, ends = zip(*rows, strict=True)
    batch = random_transitions(len(rows), SPACE)
    number = torch.arange(buffer.total_added, buffer.total_added + len(rows)).float()[:, None]
    batch.obs, batch.next_obs = number.expand(-1, 2), (number + 0.5).expand(-1, 2)
    batch.reward, batch.terminated = torch.tensor(rewards), torch.tensor(ends).float()
    buffer.add(batch, torch.tensor(episodes))


def returns(buffer: ReplayBuffer) -> dict[float, tuple[float, float, float]]:
    """Return of each row in mini-batches, by its number: reward, row of the last step, `terminated`."""
    rows = buffer.unpack(buffer.sample_rows(500, torch.Generator().manual_seed(0)))
    columns = (rows.obs[:, 0], rows.reward, rows.next_obs[:, 0] - 0.5, rows.terminated)
    numbered = zip(*(column.tolist() for column in columns), strict=True)
    return {number: (reward, last, ended) for number, reward, last, ended in numbered}


def test_the_look_ahead_ends_with_an_episode_that_terminates() -> None:
    buffer = looking_ahead(3)
    for row in ((0, 1.0, False), (0, 2.0, False), (0, 4.0, True), (1, 8.0, False), (1, 16.0, False)):
        take_step(buffer, row)
    assert returns(buffer) == {
        0: (1 + 0.5 * 2 + 0.25 * 4, 2, 1),
        1: (2 + 0.5 * 4, 2, 1),
        2: (4, 2, 1),
        # The second episode is not over: two steps, or one, and the value of what follows them.
        3: (8 + 0.5 * 16, 4, 1 - 0.5),
        4: (16, 4, 0),
    }


def test_after_a_time_limit_the_value_of_the_last_observation_counts() -> None:
    buffer = looking_ahead(3)
    for row in ((0, 1.0, False), (0, 2.0, False), (0, 4.0, False), (1, 8.0, False)):
        take_step(buffer, row)
    found = returns(buffer)
    assert found == {0: (3, 2, 1 - 0.25), 1: (4, 2, 1 - 0.5), 2: (4, 2, 0), 3: (8, 3, 0)}
    # What an agent makes of it, with the value 10: r + d r + d^2 r + d^3 10.
    reward, _, terminated = found[0]
    assert reward + 0.5 * (1 - terminated) * 10 == 1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 10


def test_environments_side_by_side_look_ahead_in_their_own_episodes() -> None:
    buffer = looking_ahead(2, num_envs=2)
    take_step(buffer, (0, 1.0, False), (1, 10.0, False))
    take_step(buffer, (0, 2.0, True), (1, 20.0, False))
    take_step(buffer, (2, 4.0, False), (1, 40.0, False))
    assert returns(buffer) == {
        0: (2, 2, 1),
        1: (20, 3, 0.5),
        2: (2, 2, 1),
        3: (40, 5, 0.5),
        4: (4, 4, 0),
        5: (40, 5, 0),
    }


def test_a_full_buffer_looks_ahead_over_its_last_slot() -> None:
    buffer = looking_ahead(3, capacity=4)
    for number in range(6):
        take_step(buffer, (0, 2.0**number, False))
    expected = {2: (12, 4, 0.75), 3: (24, 5, 0.75), 4: (32, 5, 0.5), 5: (32, 5, 0)}
    assert returns(buffer) == expected
    restored = looking_ahead(3, capacity=4)
    restored.restore(buffer.rows(2, 6), 6, 4)
    assert returns(restored) == expected
    assert set(restored.sample(100, torch.Generator()).reward.tolist()) == {4, 8, 16, 32}
    assert restored.contents().next_obs[:, 0].tolist() == [4.5, 5.5, 2.5, 3.5], "one step each"
    plain = ReplayBuffer(1, SPACE).unpack(buffer.rows(2, 6))
    assert plain.reward.tolist() == [4, 8, 16, 32], "stored experience can be read without its episodes"


def test_steps_that_not_all_environments_took_are_not_linked() -> None:
    # Runs of 5, 6 and 9 steps with two environments, each the extension of the one before.
    buffer = looking_ahead(2, num_envs=2)
    for rewards in ((1.0, 10.0), (2.0, 20.0), (3.0,), (4.0,), (5.0, 50.0), (6.0,)):
        take_step(buffer, *((episode, reward, False) for episode, reward in enumerate(rewards)))
    found = {number: reward for number, (reward, _, _) in returns(buffer).items()}
    assert found == {0: 2, 1: 20, 2: 2, 3: 20, 4: 3, 5: 4, 6: 5, 7: 50, 8: 6}


def test_episodes_have_different_marks_however_many_there_are() -> None:
    buffer = looking_ahead(2)
    for episode in (2**24, 2**24 + 1, 2**24 + 1):
        take_step(buffer, (episode, 1.0, False))
    assert [found[0] for _, found in sorted(returns(buffer).items())] == [1, 1.5, 1]


def test_only_real_experience_looks_ahead_in_a_mix(g: torch.Generator) -> None:
    real, generated = looking_ahead(2), ReplayBuffer(10, SPACE)
    for reward in (2.0, 4.0):
        take_step(real, (0, reward, False))
    generated.add(numbered(1000, 10))
    (batch,), _ = mix(real, generated, 200, 0.5, 1, g)
    assert batch.reward[:100].tolist() == [4.0] * 100, "2 + 0.5 * 4, and 4 alone"
    assert set(batch.reward[100:].tolist()) == set(range(1000, 1010))


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


def batches_of(buffer: ReplayBuffer, size: int, recorded: tuple[int, float] | None) -> list[list[float]]:
    """Return the rewards in 50 mini-batches of real transitions."""
    drawn, metrics = mix(buffer, None, size, 1, 50, torch.Generator().manual_seed(0), recorded)
    if recorded is not None:
        shares = {sum(value < recorded[0] for value in batch.reward.tolist()) for batch in drawn}
        assert shares == {metrics["mix/num_recorded"]}
    return [batch.reward.tolist() for batch in drawn]


@pytest.mark.parametrize("look_ahead", [False, True])
@pytest.mark.parametrize(
    ("size", "ratio", "num_recorded"), [(8, 0.5, 4), (7, 0.5, 4), (8, 0.0, 0), (8, 1.0, 8), (100, 0.07, 7)]
)
def test_a_share_of_the_real_transitions_comes_from_the_recorded_ones(
    size: int, ratio: float, num_recorded: int, look_ahead: bool
) -> None:
    buffer = looking_ahead(2, capacity=20) if look_ahead else ReplayBuffer(20, SPACE)
    buffer.add(numbered(0, 10))
    buffer.add(numbered(10, 3))
    batches = batches_of(buffer, size, (10, ratio))
    assert {sum(value < 10 for value in batch) for batch in batches} == {num_recorded}
    drawn = {value for batch in batches for value in batch}
    assert drawn == {*(range(10) if num_recorded else ()), *(range(10, 13) if num_recorded < size else ())}


def test_without_own_transitions_all_are_recorded_ones_and_the_other_way_round() -> None:
    buffer = ReplayBuffer(10, SPACE)
    buffer.add(numbered(0, 8))
    assert {value for batch in batches_of(buffer, 4, (8, 0.25)) for value in batch} == {*range(8)}
    buffer.add(numbered(8, 6))  # overwrites 0 to 3
    batches = batches_of(buffer, 4, (8, 0.25))
    assert {value for batch in batches for value in batch} == {*range(4, 14)}
    assert {sum(value < 8 for value in batch) for batch in batches} == {1}
    buffer.add(numbered(14, 4))
    assert {value for batch in batches_of(buffer, 4, (8, 0.25)) for value in batch} == {*range(8, 18)}


def test_generated_transitions_are_mixed_with_both_kinds_of_real_ones(g: torch.Generator) -> None:
    real, generated = ReplayBuffer(20, SPACE), ReplayBuffer(20, SPACE)
    real.add(numbered(0, 10))
    real.add(numbered(10, 5))
    generated.add(numbered(100, 5))
    (batch,), metrics = mix(real, generated, 10, 0.4, 1, g, (10, 0.5))
    kinds = [int(value >= 10) + int(value >= 100) for value in batch.reward.tolist()]
    assert kinds == [0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert metrics["mix/num_recorded"] == 2


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


def test_nothing_is_looked_ahead_from_transitions_without_episodes() -> None:
    buffer = looking_ahead(3)
    batch = numbered(0, 3)
    batch.obs = torch.arange(3.0)[:, None].expand(-1, 2)
    batch.next_obs, batch.terminated = batch.obs + 0.5, torch.zeros(3)
    buffer.add(batch)
    take_step(buffer, (0, 8.0, False))
    take_step(buffer, (0, 16.0, False))
    alone = {float(number): (float(number), float(number), 0.0) for number in range(3)}
    assert returns(buffer) == {**alone, 3.0: (16.0, 4.0, 0.5), 4.0: (16.0, 4.0, 0.0)}
