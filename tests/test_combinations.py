"""Every agent with every model function and both rhythms, on tiny environments, for a few hundred steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import TINY, gym_env

AGENTS = (
    ("sac", "tests/PointMass-v0"),
    ("td3", "tests/PointMass-v0"),
    ("ddpg", "tests/PointMass-v0"),
    ("dqn", "tests/DiscretePointMass-v0"),
    ("sac", "tests/DiscretePointMass-v0"),
)
FUNCTIONS = itertools.product(
    ("gaussian", "deterministic"), ("deterministic", "gaussian", "known"), ("learned", "known", "never")
)


@pytest.mark.parametrize(("agent", "env"), AGENTS)
@pytest.mark.parametrize(("transition", "reward", "is_done"), FUNCTIONS)
def test_every_combination_trains(
    agent: str, env: str, transition: str, reward: str, is_done: str, train_in: Callable[..., dict[str, Any]]
) -> None:
    num_env_steps = 150
    for rhythm in ("episode", "50"):
        run = train_in(
            *TINY,
            *gym_env(env),
            "env.kwargs={walls:true}",
            "env.reward_function=tests.conftest.point_mass_reward",
            "env.is_done_function=tests.conftest.point_mass_is_done",
            f"agent={agent}",
            f"model/transition={transition}",
            f"model/reward={reward}",
            f"model/is_done={is_done}",
            f"mbpo.generate_every={rhythm}",
            f"trainer.num_env_steps={num_env_steps}",
            "trainer.evaluate_every_steps=150",
            "trainer.log_every_steps=75",
            name=rhythm,
        )
        assert run["summary"]["status"] == "done"
        assert run["summary"]["gradient_steps"] == num_env_steps - 5
        last = run["metrics"][-1]
        assert last["buffer/model_size"] > 0
        numbers = [value for row in run["metrics"] for value in row.values()]
        assert all(math.isfinite(number) for number in numbers)
        is_learned = {"transition": True, "reward": reward != "known", "is_done": is_done == "learned"}
        for part, expected in is_learned.items():
            assert any(f"model/{part}_loss" in row for row in run["metrics"]) == expected, part


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "dqn", "sac on two actions"])
def test_every_agent_trains_on_several_observation_channels(
    name: str, train_in: Callable[..., dict[str, Any]]
) -> None:
    discrete = name in ("dqn", "sac on two actions")
    env = "tests/DiscreteChannels-v0" if discrete else "tests/Channels-v0"
    run = train_in(*TINY, *gym_env(env), f"agent={name.split()[0]}", "trainer.num_env_steps=60")
    assert run["summary"]["status"] == "done"
    assert any("model/transition_loss" in row for row in run["metrics"])
