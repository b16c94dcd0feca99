"""When an agent's training counts as diverged."""

import math

import pytest
import torch

from mbpo_cli.agents.divergence import check_updates
from mbpo_cli.failures import Diverged
from mbpo_cli.types import Metrics
from tests.conftest import random_transitions, spaces


def check(value: float, max_reward: float, discount: float, tag: str = "agent/q_value") -> None:
    """Check two updates after 40 others, the second with a value."""
    updates: list[Metrics] = [{"agent/q_value": 0.0}, {tag: torch.tensor(value), "agent/loss": 1.0}]
    check_updates(updates, 40, [random_transitions(2, spaces())], spaces(), max_reward, discount)


@pytest.mark.parametrize(
    ("max_reward", "discount", "limit"),
    [(1.0, 0.99, 1e4), (0.01, 0.99, 1e4), (30.0, 0.99, 3e5), (30.0, 0.0, 3e3), (5.0, 0.5, 1e3)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_q_values_are_limited_to_a_hundred_times_the_largest_return(
    max_reward: float, discount: float, limit: float, sign: int
) -> None:
    check(sign * limit * 0.999, max_reward, discount)
    check(sign * limit * 1.001, max_reward, discount, tag="agent/critic_loss")
    with pytest.raises(Diverged, match=r"agent/q_value is .* in update 42"):
        check(sign * limit * 1.001, max_reward, discount)


def test_without_discounting_returns_have_no_limit() -> None:
    check(1e30, 1.0, 1.0)
    with pytest.raises(Diverged, match="agent/q_value is inf in update 42"):
        check(math.inf, 1.0, 1.0)
