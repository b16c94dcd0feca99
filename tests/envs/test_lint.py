"""What is noticed about environments, right and wrong ones, before anybody trains in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from mbpo_cli.build import build_env
from mbpo_cli.config.compose import make_config
from mbpo_cli.envs import lint, probe
from mbpo_cli.envs.environment import Environment
from mbpo_cli.envs.lint import Finding, Random
from mbpo_cli.envs.probe import without_effect
from tests.conftest import ChannelsEnv, CountingEnv, DiscretePointMassEnv, PointMassEnv, gym_env
from tests.envs.test_probe import DRAWS, Endless, Mortal
from tests.envs.test_probe import Random as Noisy

Make = Callable[[], gym.Env[Any, Any]]


class Odd(PointMassEnv):
    """A point mass whose results pass through `change`: observation, reward, whether it terminates."""

    def __init__(self, change: Callable[[Any, float], tuple[Any, float, bool]], size: int = 1) -> None:
        super().__init__()
        self.change = change
        self.action_space = gym.spaces.Box(-1, 1, (size,), np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, _, truncated, info = super().step(action)
        obs, reward, terminated = self.change(obs, reward)
        return obs, reward, terminated, truncated, info


class Twins(DiscretePointMassEnv):
    """Its fourth action is its first."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Discrete(4, start=1)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return super().step(action if action < 4 else 1)


class Wide(PointMassEnv):
    """Observes the position, in mm, and a constant without bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        return np.array([1_000 * obs[0], 7], np.float32), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return np.array([1_000 * obs[0], 7], np.float32), reward, terminated, truncated, info


class Breaking(PointMassEnv):
    """Fails in its thirtieth step."""

    total = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.total += 1
        if self.total == 30:
            raise RuntimeError("the pump is broken")
        return super().step(action)


class Old(PointMassEnv):
    """Returns four values."""

    def step(self, action: Any) -> Any:
        return super().step(action)[:4]


class Slow(PointMassEnv):
    """Takes 15 ms for a step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(0.015)
        return super().step(action)


def looked(make: Make, hold_steps: int = 1) -> tuple[list[Finding], list[Random]]:
    return lint.lint(Environment(make()), lambda: Environment(make()), 3, hold_steps, False)


@pytest.mark.parametrize(
    ("make", "level", "about", "text"),
    [
        (
            Endless,
            "error",
            "limit",
            "none (a random episode did not end within 100 steps); add max_episode_st",
        ),
        (Mortal, "error", "limit", "none (random episodes ended by termination alone"),
        (
            PointMassEnv,
            "note",
            "limit",
            "truncated after 20 steps, but values that follow from it assume 1,000",
        ),
        (PointMassEnv, "note", "limit", "or 'env.kwargs={max_episode_steps: 20}' here"),
        (lambda: CountingEnv(5, terminates=True), "warning", "repeats", "(the first observation differs the"),
        (
            lambda: Noisy(DRAWS["numpy"], "reward"),
            "warning",
            "repeats",
            "(the reward of step 1 differs between",
        ),
        (lambda: Odd(lambda o, r: (o + 2, r, False)), "warning", "observation", "element 0 out of bounds;"),
        (lambda: Odd(lambda o, r: (o, r, True)), "warning", "ends", "with the first step; nothing can"),
        (lambda: Odd(lambda o, r: (o, 5_000 + r, False)), "warning", "reward", "reaches 5,000; scale it"),
        (lambda: Odd(lambda o, r: (o, 500 + r, False)), "note", "reward", "reaches 500; scale it"),
        (lambda: Odd(lambda o, r: (o, 2.0, False)), "note", "reward", "2 in all steps; nothing is learned"),
        (
            lambda: Odd(lambda o, r: (o, r, False), size=2),
            "warning",
            "actions",
            "1 had no effect in the first",
        ),
        (Twins, "warning", "actions", "did what another one does in the first"),
        (Wide, "ok", "observation", "size 2, 2 unbounded; values -"),
        (Wide, "note", "observation", "element 1 never changed"),
        (Wide, "note", "observation", "element 0 up to 2,000; scale to about 1"),
        (ChannelsEnv, "ok", "observation", "size 14, 10 of 'a', 4 of 'b', 0 unbounded; values -"),
        (ChannelsEnv, "note", "observation", "elements 0 of 'b', 1 of 'b', 2 of 'b', 3 of 'b' never changed"),
        (Breaking, "error", "fails", "RuntimeError: the pump is broken at"),
        (Old, "error", "fails", "a step must return observation, reward, terminated, truncated, info"),
    ],
)
def test_what_is_wrong_is_found(
    make: Make, level: str, about: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "MAX_STEPS", 100)
    found = [each.text for each in looked(make)[0] if (each.level, each.about) == (level, about)]
    assert any(text in each for each in found), found


def test_a_slow_environment_is_not_played_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint, "MAX_SECONDS", 0.5)
    found, episodes = looked(lambda: gym.wrappers.TimeLimit(Slow(), 20))
    assert 5 < sum(len(episode.steps) for episode in episodes) < 40
    (speed,) = (each for each in found if each.about == "speed")
    assert speed.level == "note"
    assert "an evaluation of 20 whole episodes takes 0." in speed.text
    assert all(each.level in ("ok", "note") for each in found)


def test_what_is_said_of_rewards_and_ends_follows_from_the_steps() -> None:
    found, episodes = looked(lambda: CountingEnv(5, terminates=True))
    assert [len(episode.steps) for episode in episodes] == [5] * 200
    said = {each.about: each.text for each in found if each.level == "ok"}
    assert said["reward"] == (
        "1 to 5 in a step, 3 on average; random returns 15; 5 steps of such rewards return 5 to 25"
    )
    assert said["ends"] == "200 of 200 whole random episodes terminated, after 5 steps"


def test_actions_are_held() -> None:
    _, episodes = looked(PointMassEnv, hold_steps=3)
    actions = torch.stack([action for action, _ in episodes[0].steps])
    changes = (actions[1:] != actions[:-1]).any(1).nonzero()[:, 0] + 1
    assert changes.tolist() == [3, 6, 9, 12, 15, 18]


def test_actions_without_effect_are_told_apart(g: torch.Generator) -> None:
    three = Environment(Odd(lambda o, r: (o, r, False), size=3))
    assert without_effect(three, 0, g, 20) == [1, 2]
    assert without_effect(Environment(Twins()), 0, g, 20) == [3]
    assert without_effect(Environment(DiscretePointMassEnv()), 0, g, 20) == []
    assert without_effect(Environment(ChannelsEnv()), 0, g, 20) == []


@pytest.mark.parametrize(
    "env_id",
    [
        *("MountainCar-v0", "Acrobot-v1", "Swimmer-v5", "Pusher-v5", "BipedalWalker-v3", "LunarLander-v3"),
        *("CartPole-v1", "Pendulum-v1", "tests/Channels-v0", "tests/PointMass-v0"),
    ],
)
def test_there_is_no_false_alarm(env_id: str) -> None:
    config = make_config(*gym_env(env_id))
    plain = gym.make(env_id, disable_env_checker=True)
    assert list(lint.of_checker(plain)) == [Finding("ok", "check_env", "Gymnasium's own checks pass")]
    hold_steps = config.agent.warm_start_hold_steps
    found, _ = lint.lint(build_env(config), lambda: build_env(config), 0, hold_steps, False)
    assert [each for each in found if each.level not in ("ok", "note")] == []


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CountingEnv(5), "is non-deterministic as the observations are not equivalent"),
        (
            lambda: Odd(lambda o, r: (o.astype(np.float64), r, False)),
            "numpy array dtype to be float32, actual",
        ),
        (lambda: Odd(lambda o, r: (o, exit(), False)), "SystemExit: None at"),
        (Old, "old step API which returns one bool instead of two"),
    ],
)
def test_gymnasiums_own_checks_are_passed_on(make: Make, text: str) -> None:
    env = make()
    env.spec = gym.spec("tests/PointMass-v0")  # the checker compares observations only with one
    found = list(lint.of_checker(env))
    assert {each.level for each in found} == {"warning"}
    assert any(text in each.text for each in found), found
