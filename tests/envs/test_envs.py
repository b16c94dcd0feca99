from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from mbpo_cli.envs.collector import MAX_REPLAY, Collector
from mbpo_cli.envs.environment import Environment
from mbpo_cli.envs.known import never, pendulum_reward
from mbpo_cli.envs.spaces import UnsuitableSpace, space_spec
from mbpo_cli.failures import EnvironmentFailed
from mbpo_cli.types import DiscreteActions
from tests.conftest import ChannelsEnv, CountingEnv, DiscretePointMassEnv, PointMassEnv, spaces

Box = gym.spaces.Box
ACTIONS = Box(-1, 1, (2,), np.float32)


def test_box_observations_of_any_shape_are_one_channel() -> None:
    assert space_spec(Box(-1, 1, (2, 3), np.float64), ACTIONS) == spaces((6,), 2)


def test_dict_and_tuple_entries_are_channels_in_flattened_order() -> None:
    env = ChannelsEnv()
    wrapped = Environment(env)
    assert wrapped.spaces.channels == (10, 4)
    obs = wrapped.reset(seed=0)
    assert obs.dtype == torch.float32
    assert obs.shape == (14,)
    assert obs[10:].tolist() == [0.5] * 4, "channel b is the last"
    pair = gym.spaces.Tuple((Box(-1, 1, (3,)), Box(-1, 1, (2,))))
    assert space_spec(pair, ACTIONS).channels == (3, 2)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (Box(0, 255, (8, 8, 3), np.uint8), ACTIONS, "images"),
        (gym.spaces.Discrete(5), ACTIONS, "must be a Box"),
        (gym.spaces.Dict({"a": gym.spaces.Dict({"b": Box(-1, 1, (1,))})}), ACTIONS, "must be a Box"),
        (Box(-1, 1, (3,)), gym.spaces.MultiDiscrete([2, 2]), "number the combinations in a wrapper"),
        (Box(-1, 1, (3,)), gym.spaces.MultiBinary(3), "must be Discrete or a Box of floats"),
        (Box(-1, 1, (3,)), Box(-3, 3, (1,), np.int64), "must be Discrete or a Box of floats"),
        (Box(-1, 1, (3,)), Box(-np.inf, np.inf, (1,)), "unbounded"),
        (Box(-1, 1, (3,)), Box(-3e38, 3e38, (1,), np.float32), "unbounded"),
        (Box(-1, 1, (3,)), Box(-1e300, 1e300, (1,), np.float64), "unbounded"),
        (Box(-1, 1, (3,)), Box(-1, 1, (0,), np.float32), "no elements"),
        (Box(-1, 1, (0,)), ACTIONS, "no elements"),
        (gym.spaces.Dict({}), ACTIONS, "no entries"),
    ],
)
def test_unsuitable_spaces_are_rejected(observation: Any, action: Any, message: str) -> None:
    with pytest.raises(UnsuitableSpace, match=message):
        space_spec(observation, action)


@pytest.mark.parametrize("num_steps", [MAX_REPLAY, MAX_REPLAY + 1])
def test_episodes_are_replayed_up_to_a_maximum_length(num_steps: int) -> None:
    class Endless(PointMassEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            obs, reward, _, _, info = super().step(action)
            return obs, reward, False, False, info

    collector = Collector([Environment(Endless())], seed_of=lambda number: number)
    for step in range(num_steps):
        collector.step(torch.tensor([[(-1.0) ** step]]))
    again = Collector([Environment(Endless())], seed_of=lambda number: number)
    assert again.load_state_dict(collector.state_dict()) == (num_steps == MAX_REPLAY)
    assert again.steps == ([num_steps] if num_steps == MAX_REPLAY else [0])


@pytest.mark.parametrize("last", [3, 9])
def test_an_episode_that_ends_or_fails_during_replay_is_restarted(last: int) -> None:
    class Unrepeatable(PointMassEnv):
        """Ends after a number of steps, and raises an error at the next one."""

        def __init__(self, last: int) -> None:
            super().__init__()
            self.num_steps_left = last

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.num_steps_left -= 1
            if self.num_steps_left < 0:
                raise RuntimeError("the episode is over")
            obs, reward, _, _, info = super().step(action)
            return obs, reward, self.num_steps_left == 0, False, info

    collector = Collector([Environment(Unrepeatable(10))], seed_of=lambda number: number)
    for _ in range(9):
        collector.step(torch.tensor([[1.0]]))
    again = Collector([Environment(Unrepeatable(last))], seed_of=lambda number: number)
    assert not again.load_state_dict(collector.state_dict())
    assert again.steps == [0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_scaled_to_the_bounds_of_the_environment(dtype: Any) -> None:
    counting = CountingEnv(action_dtype=dtype)
    env = Environment(counting)
    env.reset(seed=0)
    for action, expected in ((-1.0, -3.0), (0.0, -1.0), (1.0, 1.0), (2.0, 1.0)):
        env.step(torch.tensor([action]))
        assert counting.actions[-1].tolist() == [expected]
        assert counting.actions[-1].dtype == dtype


def test_action_bounds_hold_in_the_environments_own_precision() -> None:
    class Tenth(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = Box(-0.1, 0.1, (1,), np.float64)

    env = Environment(Tenth())
    env.reset(seed=0)
    env.step(torch.tensor([1.0]))  # the environment asserts that its space contains the action


def test_observations_are_copies() -> None:
    class Aliased(CountingEnv):
        shared = np.zeros(2)

        def step(self, action: Any) -> Any:
            _, *rest = super().step(action)
            self.shared[:] = self.steps
            return self.shared, *rest

    env = Environment(Aliased())
    env.reset(seed=0)
    first = env.step(torch.zeros(1)).obs
    env.step(torch.zeros(1))
    assert first.tolist() == [1.0, 1.0]


def test_known_functions_of_pendulum_agree_with_the_environment() -> None:
    """2,000 random steps in 10 episodes, in float32."""
    env = Environment(gym.make("Pendulum-v1"))
    g = torch.Generator().manual_seed(0)
    rows = []
    for episode in range(10):
        obs = env.reset(seed=episode)
        for _ in range(200):
            action = torch.rand(1, generator=g) * 2 - 1
            step = env.step(action)
            rows.append((obs, env.spaces.actions.to_env(action), step))
            obs = step.obs
    obs, action = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
    next_obs = torch.stack([row[2].obs for row in rows])
    reward = torch.tensor([row[2].reward for row in rows])
    torch.testing.assert_close(pendulum_reward(obs, action, next_obs), reward, atol=1e-4, rtol=1e-4)
    done = torch.tensor([float(row[2].terminated) for row in rows])
    assert torch.equal(never(obs, action, next_obs), done)
    assert rows[199][2].truncated


def test_discrete_actions_are_one_hot_inside_and_integers_for_the_environment(
    g: torch.Generator,
) -> None:
    env = Environment(DiscretePointMassEnv())
    assert env.spaces.actions == DiscreteActions(3, start=1)
    position = float(env.reset(seed=0)[0])
    for action, push in (([1.0, 0, 0], -0.3), ([0.0, 1, 0], 0.0), ([0.0, 0, 1], 0.3)):
        env.reset(seed=0)
        assert float(env.step(torch.tensor(action)).obs[0]) == pytest.approx(position + push)
    batch = torch.stack([env.spaces.actions.sample(g) for _ in range(50)])
    assert set(env.spaces.actions.to_env(batch).tolist()) == {1, 2, 3}


@pytest.mark.parametrize(("limits", "expected"), [((), 200), ((30,), 30), ((500,), 200), ((50, 40), 40)])
def test_the_smallest_time_limit_counts(limits: tuple[int, ...], expected: int) -> None:
    env: gym.Env[Any, Any] = gym.make("Pendulum-v1")
    for limit in limits:
        env = gym.wrappers.TimeLimit(env, limit)
    assert Environment(env).max_steps == expected
    assert Environment(gym.make("tests/PointMass-v0")).max_steps is None


def test_a_failed_render_is_reported_as_an_environment_failure() -> None:
    env = Environment(gym.make("Pendulum-v1", render_mode="rgb_array"))
    with pytest.raises(EnvironmentFailed, match="ResetNeeded"):
        env.render()
    env.reset(0)
    assert env.render().shape == (500, 500, 3)
    invisible = Environment(CountingEnv())
    invisible.reset(0)
    with pytest.raises(EnvironmentFailed, match="CountingEnv, step 0 of the episode"):
        invisible.render()
