"""Small environments and helpers that many tests share."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from absl import logging as absl_logging
from torch import Tensor, nn

from mbpo_cli.config.compose import make_config
from mbpo_cli.nn.optimizers import MemberOptimizerOptions
from mbpo_cli.types import ContinuousActions, DiscreteActions, SpaceSpec, Transitions

torch.set_num_threads(1)
# Its handler, which dm_control installs, closes its stream when Hydra sets up logging: not pytest's.
absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)


@pytest.fixture(autouse=True)
def hydra_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what `mbpo-train` in this process sets, with which all later commands would show tracebacks."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what only a crash of the machine would show, and takes half the time of a checkpoint."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what commands that run in this process change in the logging of all later tests."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in handlers and isinstance(handler, logging.FileHandler):
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


CONF = Path(__file__).parents[1] / "conf"
# What a run directory holds, without TensorBoard's file.
RUN_FILES = (
    *("checkpoints", "config.yaml", "curve.png", "experience", "metrics.jsonl"),
    *("policy.pt", "run.lock", "summary.json"),
)


class CountingEnv(gym.Env[Any, Any]):
    """Observes (episode, step) and rewards the step; ends by termination or time limit as told."""

    def __init__(
        self, episode_steps: int = 5, terminates: bool = False, action_dtype: Any = np.float32
    ) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(-3.0, 1.0, (1,), action_dtype)
        self.episode_steps, self.terminates = episode_steps, terminates
        self.episode, self.steps = -1, 0
        self.actions: list[Any] = []
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, 0.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.actions.append(action)
        self.steps += 1
        ends = self.steps == self.episode_steps
        obs = np.array([self.episode, float(self.steps)])
        return obs, float(self.steps), ends and self.terminates, ends and not self.terminates, {}


class ChannelsEnv(gym.Env[Any, Any]):
    """A Dict observation of 10 and 4 elements, as in the example of the page."""

    def __init__(self) -> None:
        box = gym.spaces.Box
        self.observation_space = gym.spaces.Dict(
            {"a": box(-1, 1, (5, 2), np.float64), "b": box(-1, 1, (4,), np.float32)}
        )
        self.action_space = box(-1, 1, (2,), np.float32)
        self.steps = 0

    def _obs(self) -> dict[str, Any]:
        return {"a": self.np_random.uniform(-1, 1, (5, 2)), "b": np.full(4, 0.5, np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._obs(), float(action.sum()), self.steps == 7, False, {}


class PointMassEnv(gym.Env[Any, Any]):
    """A point on a line, pushed by the action; reward is minus the squared distance to the origin.

    With walls, to touch one at -2 or 2 is the end.
    """

    def __init__(self, walls: bool = False) -> None:
        self.walls = walls
        self.observation_space = gym.spaces.Box(-2, 2, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.steps, self.position = 0, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.position = 0, float(self.np_random.uniform(-1.5, 1.5))
        return np.array([self.position], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.position = float(np.clip(self.position + 0.3 * float(action[0]), -2, 2))
        reward = -(self.position**2)
        terminated = self.walls and abs(self.position) == 2
        return np.array([self.position], np.float32), reward, terminated, self.steps == 20, {}


def point_mass_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """The known reward of a point mass."""
    return -next_obs[:, 0].square()


def numpy_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """A reward that no gradient can flow through."""
    return torch.from_numpy(obs.numpy()[:, 0])


def point_mass_is_done(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """The known end of a point mass between walls."""
    return next_obs[:, 0].abs() >= 2


class DiscretePointMassEnv(PointMassEnv):
    """The same point, pushed left, not at all or right by the actions 1, 2 and 3."""

    def __init__(self, walls: bool = False) -> None:
        super().__init__(walls)
        self.action_space = gym.spaces.Discrete(3, start=1)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return super().step(np.array([action - 2.0]))


class DiscreteChannelsEnv(ChannelsEnv):
    """The channels of 10 and 4 elements with two actions."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Discrete(2)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return super().step(np.array([action]))


def _raise() -> None:
    raise RuntimeError("fragile")


FAULTS: dict[str, Callable[[], Any]] = {
    "FRAGILE": _raise,
    "MORTAL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SILENT": lambda: os._exit(0),
    "STUCK": lambda: time.sleep(1000),
    "FULL": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),  # files are full at 1,000 bytes
}


class FragileEnv(PointMassEnv):
    """Has a fault at its tenth step, if the variable of that name in os.environ lists its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.total = str(number), 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.total += 1
        if self.total == 10:
            for name, fail in FAULTS.items():
                if self.number in os.environ.get(name, "").split(","):
                    fail()
        return super().step(action)


gym.register("tests/Fragile-v0", "tests.conftest:FragileEnv")
gym.register("tests/Counting-v0", "tests.conftest:CountingEnv")
gym.register("tests/Channels-v0", "tests.conftest:ChannelsEnv")
gym.register("tests/PointMass-v0", "tests.conftest:PointMassEnv")
gym.register("tests/DiscretePointMass-v0", "tests.conftest:DiscretePointMassEnv")
gym.register("tests/DiscreteChannels-v0", "tests.conftest:DiscreteChannelsEnv")


PLAIN_NETWORKS = (
    "agent.critics.layer_norm=false",
    "agent.critics.bound_targets=false",
    "agent.normalize_observations=false",
    "agent.policy_smooth_factor=1",
)
"""Overrides that choose the networks of the agents' papers."""

TINY = (
    "agent.hidden_sizes=[8]",
    "agent.mini_batch_size=16",
    "agent.num_warm_start_steps=5",
    "agent.num_gradient_steps_per_update=1",
    "model.transition.hidden_sizes=[8]",
    "model.transition.num_networks=3",
    "model.transition.num_elites=2",
    "model.training.num_mini_batches=2",
    "model.training.patience=null",
    "mbpo.num_epoch_for_training_model=1",
    "mbpo.max_relative_error=null",
    "mbpo.model_rollout_options.num_rollout=10",
    "mbpo.model_rollout_options.max_disagreement=null",
    "mbpo.model_rollout_options.random_fraction=0",
    "trainer.num_env_steps=20",
    "trainer.evaluate_every_steps=10",
    "trainer.num_eval_episodes=2",
    "trainer.log_every_steps=5",
    "trainer.diagnostics=false",
    *PLAIN_NETWORKS,
)
"""Overrides that make a run take a fraction of a second, with a model that is used however bad it is."""
EXAMINED = (*TINY, "trainer.diagnostics=true")
"""The same with diagnostics, and pictures of them, which take most of the time then."""


def gym_env(env_id: str) -> tuple[str, ...]:
    """Overrides that choose a registered environment."""
    return ("env=gym", f"env.id={env_id}")


def spaces(channels: Sequence[int] = (3,), action_size: int = 1) -> SpaceSpec:
    """A space with actions between -1 and 1."""
    return SpaceSpec(tuple(channels), ContinuousActions((-1.0,) * action_size, (1.0,) * action_size))


def discrete(channels: Sequence[int] = (3,), num_actions: int = 2) -> SpaceSpec:
    """A space with so many actions."""
    return SpaceSpec(tuple(channels), DiscreteActions(num_actions))


def adam(rate: Any, threshold: Any = None, l2: Any = 0.0, **others: Any) -> MemberOptimizerOptions:
    """Options of Adam with its usual values, or with others."""
    usual = {
        "gradient_threshold_method": "global_l2norm",
        "algorithm": "adam",
        "gradient_decay_factor": 0.9,
        "squared_gradient_decay_factor": 0.999,
        "epsilon": 1e-8,
    }
    return MemberOptimizerOptions(rate, threshold, l2_regularization=l2, **{**usual, **others})


def random_transitions(count: int, space: SpaceSpec, seed: int = 0) -> Transitions:
    """Transitions of random numbers, one in ten of them terminal."""
    g = torch.Generator().manual_seed(seed)
    return Transitions(
        torch.randn(count, space.obs_size, generator=g),
        torch.stack([space.actions.sample(g) for _ in range(count)]),
        torch.randn(count, generator=g),
        torch.randn(count, space.obs_size, generator=g),
        (torch.rand(count, generator=g) < 0.1).float(),
    )


def copies(module: nn.Module) -> list[Tensor]:
    """The parameters as they are now."""
    return [p.detach().clone() for p in module.parameters()]


def same(module: nn.Module, before: list[Tensor]) -> bool:
    """Whether the parameters are exactly those."""
    return all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """The rows that a run has logged, oldest first."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


Said = Callable[..., tuple[int, str, str]]
Refusal = Callable[..., str]


@pytest.fixture
def mbpo_train(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Said:
    """Run mbpo-train in this process; return its exit code, its output and its errors."""
    from mbpo_cli.commands import train as cli

    def run_here(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mbpo-train", *words])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ending:
            code = int(str(ending.code))
        return code, *capfd.readouterr()

    return run_here


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mbpo_train: Said) -> Refusal:
    """Run mbpo-train in an empty folder; return the one line of its refusal, which writes nothing."""
    monkeypatch.chdir(tmp_path)

    def line(*words: str) -> str:
        code, output, errors = mbpo_train(*words)
        assert (code, output, errors.count("\n")) == (2, "", 1), errors
        assert not list(tmp_path.iterdir())
        return errors.removeprefix("mbpo-train: error: ").strip()

    return line


@pytest.fixture
def g() -> torch.Generator:
    """A random stream."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def train_in(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a configuration in a fresh directory and return what it wrote."""
    from mbpo_cli.run import run

    def train(*overrides: str, name: str = "run") -> dict[str, Any]:
        path = tmp_path / name
        score = run(make_config(*overrides), path)
        return {
            "path": path,
            "score": score,
            "summary": json.loads((path / "summary.json").read_text()),
            "metrics": metrics_of(path),
            "policy": torch.load(path / "policy.pt", weights_only=True),
        }

    return train
