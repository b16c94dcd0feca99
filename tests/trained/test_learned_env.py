"""The learned model as a Gymnasium vector environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.regions import PlausibleRange
from mbpo_cli.run import run
from mbpo_cli.trained.learned_env import LearnedVectorEnv, first_observations
from mbpo_cli.trained.load import load
from mbpo_cli.types import SpaceSpec, Transitions
from tests.conftest import CONF, TINY, discrete, gym_env, random_transitions, spaces


class AddsAction(EnvironmentModel):
    """A model in which o' = o + a and r = o, and episodes end when o' is 3 or more."""

    def __init__(self) -> None:
        class Networks:
            num_members = 2

        class Transition:
            network, elites = Networks(), torch.arange(2)

        self.transition: Any = Transition()

    def step(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Transitions:
        next_obs = obs + action.sum(1, keepdim=True)
        return Transitions(obs, action, obs[:, 0], next_obs, (next_obs[:, 0] >= 3).float())


BOX = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)


def adder(num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **options: Any) -> LearnedVectorEnv:
    """Environments of that model; episodes start at 0, and an action of 2 is a step of 1."""
    from mbpo_cli.types import ContinuousActions

    space = SpaceSpec((1,), ContinuousActions((-2.0,), (2.0,)))
    start = lambda count, stream: torch.zeros(count, 1)  # noqa: E731
    return LearnedVectorEnv(AddsAction(), space, BOX, start, num_envs, autoreset_mode=mode, **options)


def act(
    env: LearnedVectorEnv, *actions: float
) -> tuple[list[float], list[float], list[bool], list[bool], Any]:
    obs, reward, terminated, truncated, infos = env.step(np.array(actions, np.float32)[:, None])
    assert [str(values.dtype) for values in (obs, reward, terminated)] == ["float32", "float64", "bool"]
    return obs[:, 0].tolist(), reward.tolist(), terminated.tolist(), truncated.tolist(), infos


def test_next_step_mode_starts_an_episode_in_the_step_after_the_last() -> None:
    env = adder(2, max_steps=4)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    env.reset()
    act(env, 2, 1)
    act(env, 2, 1)
    assert act(env, 2, 1)[:4] == ([3.0, 1.5], [2.0, 1.0], [True, False], [False, False])
    assert act(env, 2, 1)[:4] == ([0.0, 2.0], [0.0, 1.5], [False, False], [False, True]), (
        "a reset, not a step"
    )
    assert act(env, 2, 1)[:4] == ([1.0, 0.0], [0.0, 0.0], [False, False], [False, False])
    for _ in range(2):
        last = act(env, 0, 0)
    assert last[3] == [False, False]
    assert act(env, 0, 0)[3] == [True, False], "the time limit counts from the new start"


def test_same_step_mode_starts_an_episode_in_the_last_step() -> None:
    env = adder(2, AutoresetMode.SAME_STEP)
    env.reset(options={"obs": np.array([[2.0], [1.0]])})
    obs, reward, terminated, truncated, infos = act(env, 2, 2)
    assert (obs, reward, terminated, truncated) == ([0.0, 2.0], [2.0, 1.0], [True, False], [False, False])
    assert infos["final_obs"][0].tolist() == [3.0]
    assert infos["final_obs"][1] is None
    assert infos["_final_obs"].tolist() == [True, False]
    assert act(env, 2, 0)[0] == [1.0, 2.0]


def test_disabled_mode_starts_no_episode() -> None:
    env = adder(2, AutoresetMode.DISABLED)
    with pytest.raises(gym.error.ResetNeeded):
        act(env, 0, 0)
    env.reset(options={"obs": [[2.0], [1.0]]})
    act(env, 2, 0)
    with pytest.raises(gym.error.ResetNeeded):
        act(env, 0, 0)
    env.reset(options={"reset_mask": np.array([True, False])})
    assert act(env, 2, 0)[:4] == ([1.0, 1.0], [0.0, 1.0], [False, False], [False, False])


def test_an_implausible_prediction_is_discarded() -> None:
    seen = Transitions(*(torch.tensor(values) for values in ([[0.0]], [[0.0]], [0.0], [[1.0]], [0.0])))
    env = adder(2, plausible=PlausibleRange(seen, max_departure=0.5))
    env.reset()
    obs, reward, terminated, truncated, infos = act(env, 2, 0)
    assert truncated == [False, True], "1 is within the range that was seen, and 0 is too far from it"
    assert (obs, reward, terminated) == ([1.0, 0.0], [0.0, 0.0], [False, False])
    assert infos["implausible"].tolist() == [False, True]
    unlimited = adder(1)
    unlimited.reset(options={"obs": [[float("inf")]]})
    assert act(unlimited, 0)[3] == [True], "what is not finite is never plausible"


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
def test_gymnasiums_wrappers_count_its_episodes(mode: AutoresetMode) -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(adder(2, mode))
    env.reset()
    for _ in range(8):
        *_, infos = env.step(np.array([[2.0], [0.0]], np.float32))
        if "episode" in infos:
            assert infos["episode"]["l"][0] == 3
            assert infos["episode"]["r"][0] == 0 + 1 + 2
    assert env.episode_count == 2


def test_discrete_actions_are_numbered_as_in_the_real_environment() -> None:
    seen = []

    class Watching(AddsAction):
        def step(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Transitions:
            seen.append(action.tolist())
            return super().step(obs, action, generator)

    from mbpo_cli.types import DiscreteActions

    space = SpaceSpec((1,), DiscreteActions(3, start=5))
    first = gym.spaces.Discrete(3, start=5)
    env = LearnedVectorEnv(Watching(), space, first, lambda count, stream: torch.zeros(count, 1), 2)
    env.reset()
    env.step(np.array([5, 7]))
    assert seen == [[[1, 0, 0], [0, 0, 1]]]
    box = spaces((1,), 2).actions
    action = torch.rand(50, 2) * 2 - 1
    assert torch.allclose(box.from_env(box.to_env(action)), action, atol=1e-6)
    assert discrete((1,), 4).actions.from_env(torch.tensor([3])).tolist() == [[0, 0, 0, 1]]


def test_first_observations_are_those_to_which_no_step_led() -> None:
    steps = random_transitions(10, spaces((2,)))
    for row in (1, 2, 4, 5, 7, 8, 9):  # episodes start in rows 0, 3 and 6
        steps.obs[row] = steps.next_obs[row - 1]
    assert torch.equal(first_observations(steps, 1, is_complete=True), steps.obs[[0, 3, 6]])
    assert torch.equal(first_observations(steps[1:], 1, is_complete=False), steps.obs[[3, 6]])
    beside = random_transitions(9, spaces((2,)))  # two environments; the last row is a step of only one
    for row in (2, 3, 5, 6, 8):
        beside.obs[row] = beside.next_obs[row - 2]
    assert torch.equal(first_observations(beside, 2, is_complete=True), beside.obs[[0, 1, 4, 7]])


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learned") / "run"
    run(make_config(*TINY, *gym_env("tests/PointMass-v0"), "trainer.num_env_steps=50"), path)
    return path


def test_episodes_start_where_those_of_the_run_did(point: Path) -> None:
    env = LearnedVectorEnv.from_run(point, 30, trust=["tests"])
    obs, _ = env.reset(seed=0)
    experience = load(point, trust=["tests"]).experience()
    first = {float(experience.obs[row, 0]) for row in (0, 20, 40)}  # its episodes have 20 steps
    assert set(obs[:, 0].tolist()) == first
    again, _ = env.reset(seed=0)
    other, _ = env.reset(seed=1)
    assert np.array_equal(obs, again)
    assert not np.array_equal(obs, other)
    assert np.array_equal(env.reset(seed=[1] * 30)[0], env.reset(seed=[1] * 30)[0])
    assert not np.array_equal(env.reset(seed=[None] * 30)[0], env.reset(seed=[None] * 30)[0])
    fresh = LearnedVectorEnv.from_run(point, 30, trust=["tests"], starts="resets")
    assert len(set(fresh.reset(seed=0)[0][:, 0].tolist())) == 30
    assert env.observation_space.contains(obs)


def test_a_chosen_member_predicts_alone_otherwise_all_elites_do(
    point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[list[int]] = []
    for member in (None, 0, 2):
        env = LearnedVectorEnv.from_run(point, 4, trust=["tests"], member=member)
        transition = env._model.transition
        predict = transition.predict

        def spy(obs: Tensor, action: Tensor, members: Tensor, *rest: Any, predict: Any = predict) -> Tensor:
            used.append(sorted(members.tolist()))
            prediction: Tensor = predict(obs, action, members, *rest)
            return prediction

        monkeypatch.setattr(transition, "predict", spy)
        env.reset(seed=0)
        env.step(env.action_space.sample())
    assert used[1:] == [[0], [2]]
    assert len(used[0]) == 2
    with pytest.raises(ConfigError, match="member=3: must be from 0 to 2"):
        LearnedVectorEnv.from_run(point, trust=["tests"], member=3)


def test_the_time_limit_is_that_of_the_environment(tmp_path: Path) -> None:
    run(make_config(*TINY, "env=pendulum"), tmp_path / "run")
    env = LearnedVectorEnv.from_run(tmp_path / "run", 3)
    env._plausible = None  # an untrained model soon leaves it
    env.reset(seed=0)
    for step in range(200):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert truncated.tolist() == [step == 199] * 3
        assert not terminated.any()


def test_an_agent_of_stable_baselines3_trains_in_it(point: Path) -> None:
    """An adapter to the vector environments of stable-baselines3, which start the next episode at once."""
    pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecEnv

    class Adapter(VecEnv):  # type: ignore[misc]
        def __init__(self, env: LearnedVectorEnv) -> None:
            self.env = env
            super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

        def reset(self) -> Any:
            return self.env.reset()[0]

        def step_async(self, actions: Any) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            obs, reward, terminated, truncated, infos = self.env.step(self.actions)
            done = terminated | truncated
            adapted: list[dict[str, Any]] = [{} for _ in done]
            for row in np.flatnonzero(done):
                adapted[row] = {
                    "terminal_observation": infos["final_obs"][row],
                    "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
                }
            return obs, reward.astype(np.float32), done, adapted

        def close(self) -> None:
            self.env.close()

        def get_attr(self, name: str, indices: Any = None) -> list[Any]:
            return [getattr(self.env, name, None)] * self.num_envs

        def set_attr(self, name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper: Any, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

    learned = LearnedVectorEnv.from_run(
        point, 4, trust=["tests"], max_steps=20, autoreset_mode=AutoresetMode.SAME_STEP
    )
    learned.reset(seed=0)
    agent = PPO("MlpPolicy", Adapter(learned), n_steps=32, batch_size=32, seed=0, device="cpu")
    before = [weights.clone() for weights in agent.policy.parameters()]
    agent.learn(400)
    assert agent.num_timesteps >= 400
    assert any(
        not torch.equal(weights, old) for weights, old in zip(agent.policy.parameters(), before, strict=True)
    )


def test_the_lines_of_the_docs(point: Path) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (CONF.parent / "docs" / "tasks" / "python.md").read_text(), re.DOTALL
    )
    (lines,) = [block for block in blocks if "LearnedVectorEnv" in block]
    program = lines.replace('"outputs/.../..."', f"{str(point)!r}, trust=['tests']")
    assert program != lines
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["obs"].shape == (64, 1)
    assert names["terminated"].shape == (64,)
