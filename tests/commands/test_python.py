"""The Python interface has the command line's errors and progress, and takes what people have."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import mbpo_cli
from mbpo_cli.failures import ConfigError
from mbpo_cli.nn.seeding import episode_seeds
from mbpo_cli.trained.load import Trained
from tests.conftest import TINY, gym_env

BRIEF = (*TINY, "mbpo=off", "trainer.num_env_steps=10", "trainer.num_eval_episodes=1")
TRUST = ["tests"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Train in an environment, once, by text; return what has been learned."""
    folder, done = tmp_path_factory.mktemp("runs"), set[str]()

    def load(*choices: str) -> Trained:
        path = str(folder / choices[0].replace("/", "_"))
        if path not in done:
            mbpo_cli.train(mbpo_cli.make_config(*BRIEF, *choices), path)
            done.add(path)
        return mbpo_cli.load(path, trust=TRUST)

    return lambda name: load(*name.split())


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (({"seed": 1},), "{'seed': 1}: must be texts as on the command line, as in make_config('env=pen"),
        ((["seed=1"],), "['seed=1']: must be texts"),
        ((3,), "3: must be texts"),
        (("env=penduluum",), "env=penduluum: no such choice; did you mean env=pendulum?"),
        (("env=pendulum seed=3",), "is not one option; write env=pendulum seed=3, each by itself"),
        (("agent", "sac"), "agent sac: cannot be read; write agent=sac"),
        (("seed=1,2",), "seed=1,2: several values for one run"),
    ],
)
def test_a_wrong_argument_has_the_error_of_the_command_line(overrides: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mbpo_cli.make_config(*overrides)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_training_checks_as_the_command_line_does_and_writes_nothing(tmp_path: Path) -> None:
    config = mbpo_cli.make_config("agent=dqn")
    with pytest.raises(ConfigError, match="agent=dqn: not for a Box of actions"):
        mbpo_cli.train(config, str(tmp_path / "run"))
    wrong: Any = {"seed": 1}
    with pytest.raises(ConfigError, match=r"config: must be what make_config.* returns, not a dict"):
        mbpo_cli.train(wrong, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_used_directory_is_refused_with_the_first_differences(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    mbpo_cli.train(mbpo_cli.make_config(*BRIEF), path)
    with pytest.raises(
        ConfigError, match=r"^path=.*run: already holds a run .*, and \d+ more\); choose "
    ) as it:
        mbpo_cli.train(mbpo_cli.make_config("agent=ddpg", "env=pendulum"), path)
    assert len(str(it.value)) < 500


def test_progress_is_printed_unless_logging_is_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, package = logging.getLogger(), logging.getLogger("mbpo_cli")
    config = mbpo_cli.make_config(*BRIEF)
    mbpo_cli.train(config, tmp_path / "with_handlers")  # pytest's
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(root, "handlers", [])
    mbpo_cli.train(config, tmp_path / "plain")
    printed = capsys.readouterr().out
    assert "step 10: evaluation return" in printed
    assert f"run directory    {tmp_path / 'plain'}" in printed
    assert (root.handlers, package.level) == ([], logging.NOTSET)
    monkeypatch.setattr(package, "level", logging.ERROR)
    mbpo_cli.train(config, tmp_path / "quiet")
    assert capsys.readouterr().out == ""


ENVS = (
    "env=pendulum",
    "env=gym env.id=tests/Channels-v0",
    "env=gym env.id=tests/DiscretePointMass-v0 agent=dqn",
)


@pytest.mark.parametrize("name", ENVS)
def test_a_policy_plays_the_environment_itself(name: str, trained: Callable[[str], Trained]) -> None:
    run = trained(name)
    (seed,) = episode_seeds(run.config.seed, "evaluation", 1)
    total, ended = 0.0, False
    with closing(gym.make(run.config.env.id)) as env:
        obs, _ = env.reset(seed=seed)
        while not ended:
            action, state = run.policy.predict(obs)
            assert env.action_space.contains(action)
            assert state is None
            obs, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            ended = terminated or truncated
    assert total == mbpo_cli.evaluation_of(run, num_episodes=1).return_mean


@pytest.mark.parametrize("name", ENVS)
def test_a_batch_of_observations_has_a_batch_of_actions(name: str, trained: Callable[[str], Trained]) -> None:
    policy = trained(name).policy
    space = policy.obs_space
    space.seed(0)
    samples = [space.sample() for _ in range(5)]
    batch: Any = (
        np.stack(samples)
        if isinstance(space, gym.spaces.Box)
        else {
            key: np.stack([sample[key] for sample in samples])
            for key in space.spaces  # type: ignore[attr-defined]
        }
    )
    actions, _ = policy.predict(batch)
    singles = np.stack([policy.predict(sample)[0] for sample in samples])
    assert actions.shape == (5, *(policy.action_space.shape or ()))
    assert actions.dtype == policy.action_space.dtype
    np.testing.assert_allclose(actions, singles, rtol=1e-5, atol=1e-5)


def test_lists_and_tensors_are_observations_too(trained: Callable[[str], Trained]) -> None:
    policy = trained("env=pendulum").policy
    expected, _ = policy.predict(np.array([1.0, 0.0, 0.5]))
    for same in (
        [1, 0, 0.5],
        (1.0, 0.0, 0.5),
        torch.tensor([1.0, 0.0, 0.5]),
        np.array([1, 0, 0.5], np.float32),
    ):
        assert policy.predict(same)[0] == expected
    assert -2 <= expected[0] <= 2


@pytest.mark.parametrize(
    ("name", "obs", "reason"),
    [
        (ENVS[0], np.ones(4), "obs: has shape (4,), but must have (3,), or (B, 3) for a batch"),
        (ENVS[0], np.ones((2, 2, 3)), "obs: has shape (2, 2, 3), but"),
        (ENVS[1], np.ones(14), "obs: must be a mapping with the keys a, b"),
        (ENVS[1], {"a": np.ones((5, 2)), "b": np.ones(3)}, "obs['b']: has shape (3,), but must have (4,)"),
        (
            ENVS[1],
            {"a": np.ones((2, 5, 2)), "b": np.ones((3, 4))},
            "obs: its arrays are batches of different",
        ),
    ],
)
def test_an_observation_that_does_not_fit_is_described(
    name: str, obs: Any, reason: str, trained: Callable[[str], Trained]
) -> None:
    with pytest.raises(ConfigError) as caught:
        trained(name).policy.predict(obs)
    assert reason in str(caught.value)


def test_a_run_of_ones_own_environment_says_how_to_trust_it(tmp_path: Path) -> None:
    mbpo_cli.train(mbpo_cli.make_config(*BRIEF, *gym_env("tests/PointMass-v0")), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"; load\(\.\.\., trust=\['tests'\]\) lets it be imported$"):
        mbpo_cli.load(str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="nope: no such directory"):
        mbpo_cli.load(str(tmp_path / "nope"))


def test_folders_of_files_of_ones_own(tmp_path: Path) -> None:
    folders = [tmp_path / "it's, one", tmp_path / "two\\"]
    texts = {"one": "env:\n  id: Acrobot-v1\n", "two": "env:\n  step_timeout: 9\n"}
    for folder, (name, text) in zip(folders, texts.items(), strict=True):
        (folder / "env").mkdir(parents=True)
        defaults = "# @package _global_\ndefaults: [gym, _self_]\n"
        (folder / "env" / f"{name}.yaml").write_text(defaults + text)
    assert mbpo_cli.make_config("env=one", config_dir=folders[0]).env.id == "Acrobot-v1"
    assert mbpo_cli.make_config("env=one", config_dir=str(folders[0])).env.id == "Acrobot-v1"
    both = mbpo_cli.make_config("env=two", "env.id=CartPole-v1", config_dir=folders)
    assert (both.env.id, both.env.step_timeout) == ("CartPole-v1", 9)
    several: list[Any] = [tmp_path / "nope", [folders[0], str(tmp_path / "nope")]]
    for wrong in several:
        with pytest.raises(ConfigError, match=r"^config_dir=/.*/nope: no such directory$"):
            mbpo_cli.make_config(config_dir=wrong)
    with pytest.raises(ConfigError, match=r"^config_dir=3: no such directory$"):
        mbpo_cli.make_config(config_dir=3)  # type: ignore[arg-type]
