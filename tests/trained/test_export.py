"""Exported policies give the same actions and returns as the original, without this package."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mbpo_cli.build import build_env
from mbpo_cli.commands import export as export_cli
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError
from mbpo_cli.run import run
from mbpo_cli.trained import export
from mbpo_cli.trained.episodes import play_real
from mbpo_cli.trained.load import load
from mbpo_cli.types import ContinuousActions, DiscreteActions, SpaceSpec
from tests.conftest import CONF, TINY, gym_env

HAS_ONNX = all(importlib.util.find_spec(name) for name in export.ONNX_PACKAGES)
onnx = pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx"))
FORMATS = ["pt2", "torchscript", onnx]
POLICIES = {
    "sac": ("tests/PointMass-v0", "agent=sac"),
    "td3": ("tests/PointMass-v0", "agent=td3"),
    "channels": ("tests/Channels-v0", "agent=ddpg"),
    "sac_discrete": ("tests/DiscretePointMass-v0", "agent=sac"),
    "dqn": ("tests/DiscretePointMass-v0", "agent=dqn"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs, each trained when it is first requested."""
    folder = tmp_path_factory.mktemp("export")

    def path(name: str) -> Path:
        if not (folder / name).exists():
            env_id, *overrides = POLICIES.get(name, ("Pendulum-v1", "agent=sac"))
            run(make_config(*TINY, *gym_env(env_id), *overrides), folder / name)
        return folder / name

    return path


def returns_of(act: Callable[[Tensor], Tensor], env_id: str, seeds: list[int]) -> list[float]:
    """The returns of a policy that maps raw observations to raw actions."""
    env, returns = gym.make(env_id), []
    for seed in seeds:
        (obs, _), ended, total = env.reset(seed=seed), False, 0.0
        while not ended:
            flat = gym.spaces.flatten(env.observation_space, obs)
            action = act(torch.as_tensor(np.asarray(flat), dtype=torch.float32)[None])[0].numpy()
            obs, reward, terminated, truncated, _ = env.step(action[()])
            ended, total = terminated or truncated, total + float(reward)
        returns.append(total)
    return returns


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", POLICIES)
def test_an_exported_policy_gives_the_returns_of_the_original(
    name: str, form: str, trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained(name)
    output = tmp_path / f"policy{export.FORMATS[form].suffix}"
    export_cli.main([str(path), "--trust", "tests", "--format", form, "--output", str(output)])
    difference = float(re.findall(r"largest difference from the original: (\S+)", capsys.readouterr().out)[0])
    assert difference <= export.TOLERANCE
    assert list(tmp_path.iterdir()) == [output]
    seeds = list(range(10))
    original = load(path, trust=["tests"])
    expected = play_real(lambda: build_env(original.config), seeds, original.agent.act)
    returns = returns_of(export.FORMATS[form].read(output.read_bytes()), POLICIES[name][0], seeds)
    assert returns == pytest.approx([episode.total_reward for episode in expected], abs=1e-4)
    assert len(set(returns)) > 1


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
def test_the_examples_in_the_docs_load_each_format(trained: Callable[[str], Path], tmp_path: Path) -> None:
    returns = documented_returns(trained("pendulum"), tmp_path, [*export.FORMATS])
    assert returns[0] == pytest.approx(returns[2], abs=1e-2)


def test_the_example_in_the_docs_loads_the_formats_of_torch(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    returns = documented_returns(trained("pendulum"), tmp_path, ["pt2", "torchscript"])
    assert returns[0] == returns[1]
    original = load(trained("pendulum"))
    (episode,) = play_real(lambda: build_env(original.config), [0], original.agent.act)
    assert returns[0] == pytest.approx(episode.total_reward, abs=1e-3)


def documented_returns(path: Path, folder: Path, forms: list[str]) -> list[float]:
    """Run the lines of docs/tasks/deploy.md where this package cannot be imported; return what they print."""
    blocks = re.findall(
        r"```python\n(.*?)```", (CONF.parent / "docs" / "tasks" / "deploy.md").read_text(), re.DOTALL
    )
    (torch_example,) = [block for block in blocks if "policy.pt2" in block]
    (onnx_example,) = [block for block in blocks if "policy.onnx" in block]
    load_line = re.compile(r"= (torch\.export\S+)  # or (.*)")
    lines = {"pt2": torch_example, "torchscript": load_line.sub(r"= \2", torch_example), "onnx": onnx_example}
    assert lines["torchscript"] != torch_example
    for form in forms:
        export_cli.main([str(path), "--output", str(folder / f"policy{export.FORMATS[form].suffix}")])
    program = "\n".join(["import sys", "sys.modules['mbpo_cli'] = None", *(lines[form] for form in forms)])
    command = [sys.executable, "-W", "ignore", "-c", program]
    printed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    return [float(line) for line in printed.split()]


class Agent:
    """A custom agent whose policy is one network."""

    def __init__(self, network: nn.Module) -> None:
        self.critic, self.network = nn.Linear(2, 9), network

    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        action: Tensor = self.network(obs)
        return action.tanh()

    def policy_state(self) -> dict[str, Tensor]:
        return self.network.state_dict()


def greedy(network: nn.Module, spaces: SpaceSpec, action_space: gym.Space[Any]) -> export.GreedyPolicy:
    agent: Any = Agent(network)
    return export.GreedyPolicy(agent, spaces, action_space)


BOUNDS = ContinuousActions((-2.0, 0.0, 1.0, -1.0), (2.0, 8.0, 1.0, 3.0))


def test_actions_have_the_shape_and_the_bounds_of_their_space(tmp_path: Path) -> None:
    space = gym.spaces.Box(
        np.array(BOUNDS.low, np.float32).reshape(2, 2), np.array(BOUNDS.high, np.float32).reshape(2, 2)
    )
    policy = greedy(nn.Linear(2, 4), SpaceSpec((2,), BOUNDS), space)
    assert export.export(policy, "pt2", tmp_path / "policy.pt2") == 0
    action = torch.export.load(tmp_path / "policy.pt2").module()(100 * torch.randn(50, 2))
    assert action.shape == (50, 2, 2)
    assert all(space.contains(row.numpy()) for row in action)
    assert float(action[:, 0, 1].max()) == 8
    assert sum(p.numel() for p in policy.parameters()) == 3 * 4, "critics are not exported"


class ChangesOnExport(nn.Module):
    """A network whose exported outputs differ from its own."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.linear, self.error = nn.Linear(2, 4), error

    def forward(self, obs: Tensor) -> Tensor:
        jit: Any = torch.jit
        compiling = torch.compiler.is_exporting() or jit.is_tracing()
        output: Tensor = self.linear(obs)
        return output + (self.error if compiling else 0.0)


@pytest.mark.parametrize("form", ["pt2", "torchscript"])
def test_a_policy_that_differs_is_not_written(form: str, tmp_path: Path) -> None:
    space = gym.spaces.Box(-1, 1, (4,), np.float32)
    policy = greedy(ChangesOnExport(1e-3), SpaceSpec((2,), ContinuousActions((-1.0,) * 4, (1.0,) * 4)), space)
    with pytest.raises(ConfigError, match="not written, as its actions differ by"):
        export.export(policy, form, tmp_path / f"policy{export.FORMATS[form].suffix}")
    assert list(tmp_path.iterdir()) == []


def test_the_greatest_difference() -> None:
    def constant(value: float, kind: torch.dtype, *shape: int) -> Callable[[Tensor], Tensor]:
        return lambda obs: torch.full((len(obs), *shape), value, dtype=kind)

    box = SpaceSpec((2,), ContinuousActions((-4.0, 0.0), (4.0, 0.0)))
    zero = constant(0, torch.float32, 2)
    difference = export.greatest_difference
    assert difference(zero, constant(1, torch.float32, 2), box) == 2, (
        "where both bounds are equal, in the unit of the action"
    )
    assert difference(zero, constant(1, torch.float64, 2), box) == float("inf")
    assert difference(zero, constant(1, torch.float32, 1), box) == float("inf")
    assert not difference(zero, constant(float("nan"), torch.float32, 2), box) <= export.TOLERANCE
    three = SpaceSpec((2,), DiscreteActions(3))
    one = constant(1, torch.int64)
    assert difference(one, one, three) == 0
    assert difference(one, constant(2, torch.int64), three) == 1


class Scattered(Agent):
    """An agent whose policy is not one network."""

    def policy_state(self) -> dict[str, Tensor]:
        return {"weight": torch.zeros(1)}


def test_an_agent_that_cannot_be_exported_is_refused() -> None:
    agent: Any = Scattered(nn.Linear(2, 4))
    with pytest.raises(ConfigError, match="agent=Scattered: cannot be exported"):
        export.GreedyPolicy(agent, SpaceSpec((2,), BOUNDS), gym.spaces.Box(-1, 1, (4,)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "policy.bin"], "--output policy.bin: must end in .pt2 for pt2, .pt for torchscript"),
        (["--output", "policy.pt2", "--format", "onnx"], "--output policy.pt2: must end in .onnx"),
        (["--output", "{run}/policy.pt"], "policy.pt: belongs to the run"),
        (["--output", "/nowhere/policy.pt2"], "/nowhere is not a writable directory"),
        (["--output", "policy.onnx"], "pip install 'mbpo-cli[onnx]'"),
        ([], "required: --output"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    trained: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = trained("pendulum")
    before = (path / "policy.pt").read_bytes()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ending:
        export_cli.main([str(path), *(argument.replace("{run}", str(path)) for argument in arguments)])
    assert ending.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert (path / "policy.pt").read_bytes() == before
    assert list(tmp_path.iterdir()) == []
