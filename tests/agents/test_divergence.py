"""When an agent's training counts as diverged; its cause is in `test_cause_of_divergence`."""

import math

import pytest

from mbpo_cli.agents.divergence import check_updates
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import Diverged
from tests.conftest import TINY, random_transitions, spaces


@pytest.mark.parametrize(
    ("max_reward", "discount", "limit"),
    [(1.0, 0.99, 1e4), (0.01, 0.99, 1e4), (30.0, 0.99, 3e5), (30.0, 0.0, 3e3), (1.0, 1.0, math.inf)],
)
def test_q_values_are_limited_to_a_hundred_times_the_largest_return(
    max_reward: float, discount: float, limit: float
) -> None:
    batches, options = [random_transitions(2, spaces())], make_config(*TINY).agent
    options.discount_factor = discount
    for value in (1.001 * limit, -1.001 * limit):
        with pytest.raises(Diverged, match=r"agent/q_value is .* in update 41"):
            check_updates([{"agent/q_value": value}], 40, batches, spaces(), max_reward, options)
        value = 0.999 * min(limit, 1e30)
        check_updates([{"agent/q_value": value}], 40, batches, spaces(), max_reward, options)
        value = min(abs(value) * 2, 1e30)
        check_updates([{"agent/critic_loss": value}], 40, batches, spaces(), max_reward, options)
