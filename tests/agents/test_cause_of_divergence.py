"""The message of an agent that has diverged names the likely cause."""

import math
import re

import gymnasium as gym
import numpy as np
import pytest
import torch

from mbpo_cli.agents.divergence import check_updates
from mbpo_cli.config.compose import make_config
from mbpo_cli.envs.spaces import space_spec
from mbpo_cli.failures import Diverged
from mbpo_cli.types import SpaceSpec, Transitions
from tests.conftest import TINY, spaces

SCALE = (
    "scale it to about 1, with agent.normalize_observations=true, gymnasium.wrappers.RescaleObservation or a "
    "TransformObservation of your own"
)
TRANSFORM = "scale them, with a gymnasium.wrappers.TransformReward of your own"
LOWER = "lower the learning rates of the agent, or set their gradient_threshold"


def box(size: int) -> gym.Space[np.ndarray]:
    return gym.spaces.Box(-np.inf, np.inf, (size,))


def check(
    space: SpaceSpec, obs: list[float], max_reward: float, q_value: float = math.nan, *overrides: str
) -> None:
    """Check two updates, of which the second has an observation and a Q-value of its own."""
    safe = ("agent.critics.layer_norm=true", "agent.critics.bound_targets=true")
    off = ("agent.normalize_observations=false", "agent.discount_factor=0.9")
    options = make_config(*TINY, *safe, *off, *overrides).agent
    batches = [
        Transitions(rows, torch.zeros(2, 1), torch.zeros(2), rows, torch.zeros(2))
        for rows in (torch.zeros(2, len(obs)), torch.tensor([[0.0] * len(obs), obs]))
    ]
    updates = [{"agent/q_value": torch.tensor(value)} for value in (1.0, q_value)]
    check_updates(updates, 10, batches, space, max_reward, options)


@pytest.mark.parametrize(
    ("obs", "max_reward", "cause"),
    [
        ([1.0, -101325.0, 293.0], 1.0, f"element 1 of the observation reaches 1.01e+05; {SCALE}"),
        ([math.nan, 1.0, 1.0], 1.0, f"element 0 of the observation reaches nan; {SCALE}"),
        ([99.0, 1.0, 1.0], 1.0, LOWER),
        ([1.0, 1.0, 1.0], 1e6, f"rewards reach 1e+06; {TRANSFORM}"),
        (
            [1.0, 1.0, 1e9],
            1e6,
            f"element 2 of the observation reaches 1e+09; {SCALE}; rewards reach 1e+06; {TRANSFORM}",
        ),
    ],
)
def test_the_cause_is_what_is_large(obs: list[float], max_reward: float, cause: str) -> None:
    space = spaces((3,))
    with pytest.raises(Diverged, match=re.escape(f"agent/q_value is nan in update 12: {cause}") + "$"):
        check(space, obs, max_reward)
    with pytest.raises(
        Diverged, match=re.escape(f"but no return exceeds {10 * max_reward:.3g}: {cause}") + "$"
    ):
        check(space, obs, max_reward, q_value=-1001 * max_reward)
    check(space, obs, max_reward, q_value=-999 * max_reward)


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["agent.critics.layer_norm=false"], "agent.critics.layer_norm=true may prevent it"),
        (["agent.critics.bound_targets=false"], "agent.critics.bound_targets=true may prevent it"),
        (
            ["agent.critics.layer_norm=false", "agent.critics.bound_targets=false"],
            "agent.critics.layer_norm=true agent.critics.bound_targets=true may prevent it",
        ),
    ],
)
def test_what_would_keep_critics_from_running_away_is_named(overrides: list[str], remedy: str) -> None:
    with pytest.raises(Diverged, match=re.escape(f"agent/q_value is nan in update 12: {remedy}") + "$"):
        check(spaces((3,)), [1.0, 1.0, 1.0], 1.0, math.nan, *overrides)


def test_scaled_observations_are_no_cause() -> None:
    with pytest.raises(Diverged, match=re.escape(f"update 12: {LOWER}") + "$"):
        check(spaces((3,)), [1e6, 1.0, 1.0], 1.0, math.nan, "agent.normalize_observations=true")


@pytest.mark.parametrize(
    ("observation", "name"),
    [
        (gym.spaces.Dict({"valve": box(1), "tank": box(2)}), "element 1 of 'tank' of the observation"),
        (gym.spaces.Tuple((box(1), box(2))), "element 1 of '1' of the observation"),
        (gym.spaces.Box(-np.inf, np.inf, (3, 1)), "element 2 of the observation"),
    ],
)
def test_an_element_is_named_with_its_channel(observation: gym.Space[object], name: str) -> None:
    space = space_spec(observation, box_of_actions())
    flat = [1.0, 1.0, 5e4]
    if isinstance(observation, gym.spaces.Dict):  # whose keys Gymnasium sorts
        assert space.channel_names == ("tank", "valve")
        flat = [1.0, 5e4, 1.0]
    with pytest.raises(Diverged, match=f": {name} reaches 5e\\+04"):
        check(space, flat, 1.0)


def box_of_actions() -> gym.Space[np.ndarray]:
    return gym.spaces.Box(-1.0, 1.0, (1,))
