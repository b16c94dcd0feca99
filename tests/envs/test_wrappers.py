"""Which wrappers an environment may have: subclasses of gymnasium.Wrapper that keep no hidden state."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import WrapperSpec

from mbpo_cli.config.compose import make_config
from mbpo_cli.envs.environment import make
from mbpo_cli.envs.wrappers import FITTING, UNFIT, BadWrapper, apply, check_fit, is_harmless
from tests.conftest import CONF, CountingEnv

ENVIRONMENT = CONF.parent / "docs" / "environments.md"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ClipReward": {"min_reward": -1},
    "DelayObservation": {"delay": 2},
    "DiscretizeAction": {"bins": 3},
    "DtypeObservation": {"dtype": "float32"},
    "FilterObservation": {"filter_keys": ["obs"]},
    "FrameStackObservation": {"stack_size": 2},
    "RepeatAction": {"num_repeats": 2},
    "RescaleAction": {"min_action": 0, "max_action": 1},
    "RescaleObservation": {"min_obs": 0, "max_obs": 1},
    "StickyAction": {"repeat_action_probability": 0.5},
    "TimeLimit": {"max_episode_steps": 7},
}


class Frozen(gym.wrappers.NormalizeObservation[Any, Any, Any]):
    """A subclass, which does not fit either."""


class Told(gym.Wrapper[Any, Any, Any, Any]):
    """Adds to `info` only."""

    def step(self, action: Any) -> Any:
        *outcome, info = self.env.step(action)
        return *outcome, {**info, "action": action}


class Broken(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: Any) -> None:
        raise LookupError("no\nsuch file")


def wrapped(name: str) -> gym.Env[Any, Any]:
    env: gym.Env[Any, Any] = gym.make("Pendulum-v1")
    if name == "FilterObservation":
        env = gym.wrappers.TimeAwareObservation(env, flatten=False)
    return apply(env, {"_target_": f"gymnasium.wrappers.{name}", **ARGUMENTS.get(name, {})})


def episode(env: gym.Env[Any, Any], num_steps: int = 5) -> list[Any]:
    env.action_space.seed(0)
    steps = [env.reset(seed=0)[0]]
    for _ in range(num_steps):
        obs, reward, *_ = env.step(env.action_space.sample())
        steps += [obs, reward]
    return steps


@pytest.mark.parametrize("name", sorted(FITTING | UNFIT.keys()))
def test_wrappers_that_fit_carry_nothing_into_the_next_episode(name: str) -> None:
    env = wrapped(name)
    first, second = episode(env), episode(env)
    if name in FITTING:
        check_fit(env)
        for before, after in zip(first, second, strict=True):
            np.testing.assert_equal(before, after)
    else:
        with pytest.raises(BadWrapper, match=f"^{name}: does not fit: .*; "):
            check_fit(env)


@pytest.mark.parametrize("name", ["NormalizeObservation", "NormalizeReward"])
def test_statistics_change_what_an_episode_shows(name: str) -> None:
    """The reason why these do not fit."""
    env = wrapped(name)
    first, second = episode(env), episode(env)
    assert not np.allclose(np.concatenate([*map(np.ravel, first)]), np.concatenate([*map(np.ravel, second)]))


def test_the_docs_have_a_decision_on_every_wrapper_of_gymnasium() -> None:
    named = set(re.findall(r"`(\w+)`", ENVIRONMENT.read_text().partition("## Wrappers")[2]))
    wrappers = {
        name
        for name in gym.wrappers.__all__
        if name not in gym.wrappers._wrapper_to_class and isinstance(getattr(gym.wrappers, name), type)
    }
    assert len(wrappers) > 30
    assert wrappers | gym.wrappers._wrapper_to_class.keys() <= named
    assert FITTING | UNFIT.keys() <= named


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        (f"{__name__}.Frozen", "Frozen: does not fit: its statistics"),
        ("gymnasium.wrappers.NormalizeReward", "use ClipReward"),
        (f"{__name__}.wrapped", "not a subclass of gymnasium.Wrapper"),
        ("gymnasium.make", "not a subclass of gymnasium.Wrapper"),
        ("subprocess.Popen", "not a subclass of gymnasium.Wrapper"),
        ("tests.conftest.CountingEnv", "not a subclass of gymnasium.Wrapper"),
        ("gymnasium.wrappers.vector.RecordEpisodeStatistics", "not a subclass of gymnasium.Wrapper"),
        (f"{__name__}.Broken", "no such file"),
        ("gymnasium.wrappers.Nothing", "has no 'Nothing'"),
        ("Nothing", "is not of the form package.module.name"),
    ],
)
def test_a_wrapper_that_cannot_be_used_is_named(wrapper: str, message: str) -> None:
    from mbpo_cli.build import build_env
    from mbpo_cli.failures import ConfigError

    config = make_config(f"env.wrappers=[{wrapper}]")
    with pytest.raises(ConfigError, match=r"^env\.wrappers=") as caught:
        build_env(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_called_before_it_is_known_to_be_a_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr("os.system", lambda *arguments: called.append(arguments))
    with pytest.raises(BadWrapper):
        apply(CountingEnv(), "os.system")
    assert called == []


def test_wrappers_of_the_users_own_are_applied() -> None:
    config = make_config(f"env.wrappers=[{__name__}.Told]")
    env = make(config.env)._env
    env.reset(seed=0)
    assert "action" in env.step(env.action_space.sample())[4]


def test_a_wrapper_that_a_registered_environment_brings_is_found() -> None:
    spec: WrapperSpec = gym.wrappers.NormalizeReward.wrapper_spec()
    gym.register("tests/Normalized-v0", "tests.conftest:CountingEnv", additional_wrappers=(spec,))
    try:
        with pytest.raises(BadWrapper, match="NormalizeReward: does not fit"):
            make(make_config("env=gym", "env.id=tests/Normalized-v0").env)
    finally:
        gym.registry.pop("tests/Normalized-v0")


def test_what_a_run_directory_may_name_without_trust() -> None:
    names = [name for name in dir(gym.wrappers) if is_harmless(getattr(gym.wrappers, name))]
    assert set(names) == FITTING | UNFIT.keys()
    assert not is_harmless(Told)
    assert not is_harmless(gym.wrappers.RecordVideo)
    assert not is_harmless(gym.make)
