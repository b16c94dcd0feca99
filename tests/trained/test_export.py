"""Exported policies and models compute the same as the original, without this package."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mbpo_cli
from mbpo_cli.build import build_env
from mbpo_cli.commands import export as export_cli
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError
from mbpo_cli.run import run
from mbpo_cli.storage.records import evaluations
from mbpo_cli.trained import export, exportable
from mbpo_cli.trained.episodes import play_real
from mbpo_cli.trained.load import load
from mbpo_cli.types import ContinuousActions, SpaceSpec
from tests.conftest import CONF, TINY, gym_env

HAS_ONNX = all(importlib.util.find_spec(name) for name in export.ONNX_PACKAGES)
onnx = pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx"))
FORMATS = ["pt2", "torchscript", onnx]
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
POLICIES = {
    "sac": ("tests/PointMass-v0", "agent=sac"),
    "td3": ("tests/PointMass-v0", "agent=td3"),
    "channels": ("tests/Channels-v0", "agent=ddpg"),
    "sac_discrete": ("tests/DiscretePointMass-v0", "agent=sac"),
    "dqn": ("tests/DiscretePointMass-v0", "agent=dqn"),
}
LEARNED = ("model/reward=gaussian", "model/is_done=learned")
MODELS = {
    "gaussian": ("Pendulum-v1", "agent=sac", "model/transition=gaussian", *LEARNED),
    "deterministic": ("tests/Channels-v0", "agent=ddpg", "model/transition=deterministic", *LEARNED),
    "known": (
        *("tests/DiscretePointMass-v0", "agent=dqn", "model/reward=known", "model/is_done=known"),
        "env.kwargs={walls: true}",
        "env.reward_function=tests.conftest.point_mass_reward",
        "env.is_done_function=tests.conftest.point_mass_is_done",
    ),
    "numpy": (
        *("tests/PointMass-v0", "agent=sac", "model/reward=known", "model.allow_mismatch=true"),
        "env.reward_function=tests.conftest.numpy_reward",
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs, each trained when it is first requested."""
    folder = tmp_path_factory.mktemp("export")

    def path(name: str) -> Path:
        if not (folder / name).exists():
            env_id, *overrides = {**POLICIES, **MODELS}.get(name, ("Pendulum-v1", "agent=sac"))
            fitted = ["mbpo.generate_every=5"] if name in MODELS else []
            run(make_config(*TINY, *gym_env(env_id), *fitted, *overrides), folder / name)
        return folder / name

    return path


def channels_of(obs: Any) -> list[Tensor]:
    """The inputs of an exported policy for one observation of an environment."""
    channels = [obs[key] for key in sorted(obs)] if isinstance(obs, dict) else [obs]
    return [torch.as_tensor(np.asarray(channel), dtype=torch.float32)[None] for channel in channels]


def returns_of(act: Callable[..., Any], env_id: str, seeds: list[int]) -> list[float]:
    """The returns of a policy that maps raw observations to raw actions."""
    env, returns = gym.make(env_id), []
    for seed in seeds:
        (obs, _), ended, total = env.reset(seed=seed), False, 0.0
        while not ended:
            found = act(*channels_of(obs))
            action = (found if isinstance(found, Tensor) else found[0])[0].numpy()
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


@needs_onnx
def test_the_examples_in_the_docs_load_each_format(trained: Callable[[str], Path], tmp_path: Path) -> None:
    returns = documented_returns(trained("pendulum"), tmp_path, [*export.FORMATS])
    assert returns[0] == pytest.approx(returns[2], abs=1e-2)


@pytest.mark.slow
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


TWO = gym.spaces.Box(-np.inf, np.inf, (2,))


def greedy(
    network: nn.Module,
    spaces: SpaceSpec,
    action_space: gym.Space[Any],
    obs_space: gym.Space[Any] = TWO,
) -> exportable.GreedyPolicy:
    agent: Any = Agent(network)
    return exportable.GreedyPolicy(agent, spaces, obs_space, action_space)


BOUNDS = ContinuousActions((-2.0, 0.0, 1.0, -1.0), (2.0, 8.0, 1.0, 3.0))


def test_actions_have_the_shape_and_the_bounds_of_their_space() -> None:
    space = gym.spaces.Box(
        np.array(BOUNDS.low, np.float32).reshape(2, 2), np.array(BOUNDS.high, np.float32).reshape(2, 2)
    )
    policy = greedy(nn.Linear(2, 4), SpaceSpec((2,), BOUNDS), space)
    contents, difference = export.export(policy, "pt2", {})
    assert difference == 0
    action = torch.export.load(io.BytesIO(contents)).module()(100 * torch.randn(50, 2))
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
def test_a_policy_that_differs_is_refused(form: str) -> None:
    space = gym.spaces.Box(-1, 1, (4,), np.float32)
    policy = greedy(ChangesOnExport(1e-3), SpaceSpec((2,), ContinuousActions((-1.0,) * 4, (1.0,) * 4)), space)
    with pytest.raises(ConfigError, match=r"not written, as its outputs differ by 1\.0e-03 from the run's"):
        export.export(policy, form, {})


class Constant(exportable.Exportable):
    """A function of one number that always has the same output."""

    has_gradients = False

    def __init__(self, value: Sequence[float], port: exportable.Port) -> None:
        super().__init__()
        self.inputs, self.outputs = [exportable.Port("obs", (1,))], [port]
        self.value = torch.tensor(value, dtype=port.dtype)

    def forward(self, *values: Tensor) -> Tensor:
        return self.value.expand(len(values[0]), *self.value.shape)

    def examples(self, num_rows: int, stream: torch.Generator) -> list[Tensor]:
        return [torch.zeros(num_rows, 1)]


def test_the_greatest_difference() -> None:
    difference = export.greatest_difference
    box = exportable.Port("action", (2,), torch.float32, (-4.0, 0.0), (4.0, 0.0))
    zero, double = Constant([0, 0], box), exportable.Port("", (2,), torch.float64)
    assert difference(zero, Constant([1, 0], box)) == 0.25, "half of the range is the unit"
    assert difference(zero, Constant([1, 2], box)) == 2, "or 1, where both bounds are equal"
    assert difference(zero, Constant([0, 0], double)) == float("inf")
    assert difference(zero, Constant([0], box)) == float("inf")
    assert not difference(zero, Constant([0, float("nan")], box)) <= export.TOLERANCE
    half_bounded = exportable.Port("next_obs", (2,), torch.float32, (-4.0, 0.0), (4.0, float("inf")))
    large = Constant([-50, 0], half_bounded)
    assert difference(large, Constant([-49, 0], half_bounded)) == pytest.approx(0.02)
    three = exportable.Port.of("action", gym.spaces.Discrete(3, start=1))
    assert difference(Constant(1, three), Constant(1, three)) == 0  # type: ignore[arg-type]
    assert difference(Constant(1, three), Constant(2, three)) == 1  # type: ignore[arg-type]


class Scattered(Agent):
    """An agent whose policy is not one network."""

    def policy_state(self) -> dict[str, Tensor]:
        return {"weight": torch.zeros(1)}


def test_an_agent_that_cannot_be_exported_is_refused() -> None:
    agent: Any = Scattered(nn.Linear(2, 4))
    with pytest.raises(ConfigError, match="agent=Scattered: cannot be exported"):
        exportable.GreedyPolicy(agent, SpaceSpec((2,), BOUNDS), TWO, gym.spaces.Box(-1, 1, (4,)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "policy.bin"], "--output policy.bin: must end in .pt2 for pt2, .pt for torchscript"),
        (["--output", "policy.pt2", "--format", "onnx"], "--output policy.pt2: must end in .onnx"),
        (["--output", "{run}/policy.pt"], "policy.pt: belongs to the run"),
        (["--output", "/nowhere/policy.pt2"], "/nowhere is not a writable directory"),
        (["--output", "policy.onnx"], "pip install 'mbpo-cli[onnx]'"),
        (["--model", "model.bin"], "--model model.bin: must end in .pt2"),
        (["--model", "same.pt", "--output", "same.pt"], "--model same.pt: is the file of --output"),
        (["--model", "model.pt", "--output", "policy.pt"], "the model has not been fitted yet"),
        ([], "--output FILE: missing"),
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


def read_onnx(contents: bytes) -> Any:
    return importlib.import_module("onnx").load_from_string(contents)


@needs_onnx
@pytest.mark.parametrize(
    ("obs_space", "shapes"),
    [
        (gym.spaces.Box(-1, 1, (2, 2)), {"obs": (2, 2)}),
        (
            gym.spaces.Tuple([gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(0, 1, ())]),
            {"obs_0": (3,), "obs_1": ()},
        ),
        # Names that the output or a value within the graph would otherwise have.
        (
            gym.spaces.Dict({"view": gym.spaces.Box(-1, 1, (2, 1)), "action": gym.spaces.Box(-1, 1, (2,))}),
            {"action": (2,), "view": (2, 1)},
        ),
    ],
)
def test_an_onnx_file_has_an_input_for_each_channel(
    obs_space: gym.Space[Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    spaces = SpaceSpec((4,), ContinuousActions((-1.0,) * 4, (1.0,) * 4))
    policy = greedy(nn.Linear(4, 4), spaces, gym.spaces.Box(-1, 1, (4,), np.float32), obs_space)
    contents, _ = export.export(policy, "onnx", {})
    model = read_onnx(contents)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", export.OPSET)]
    found = {each.name: each.type.tensor_type.shape.dim for each in model.graph.input}
    assert list(found) == list(shapes)
    for name, (batch, *rest) in found.items():
        assert batch.dim_param == "batch"
        assert tuple(dim.dim_value for dim in rest) == shapes[name]
    flat = torch.arange(8.0).reshape(2, 4) / 10
    rows = torch.split(flat, [int(np.prod(shape)) for shape in shapes.values()], 1)
    inputs = [row.reshape(2, *shape) for row, shape in zip(rows, shapes.values(), strict=True)]
    (action,) = export.FORMATS["onnx"].read(contents)(*inputs)
    torch.testing.assert_close(action, policy.network(flat).tanh())


def metadata_of(path: Path) -> dict[str, Any]:
    """What an exported file says about itself."""
    if path.suffix == ".onnx":
        pairs = read_onnx(path.read_bytes()).metadata_props
        texts = {"environment", "agent", "software", "software_license", "model_license"}
        return {each.key: each.value if each.key in texts else json.loads(each.value) for each in pairs}
    files = {export.METADATA: ""}
    if path.suffix == ".pt2":
        torch.export.load(path, extra_files=files)
    else:
        torch.jit.load(path, _extra_files=files)  # type: ignore[no-untyped-call]
    return dict(json.loads(files[export.METADATA]))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_describes_itself(form: str, trained: Callable[[str], Path], tmp_path: Path) -> None:
    path = trained("pendulum")
    output = tmp_path / f"policy{export.FORMATS[form].suffix}"
    export_cli.main([str(path), "--output", str(output), "--license", "CC0-1.0"])
    bounds = {"low": [-1, -1, -8], "high": [1, 1, 8]}
    assert metadata_of(output) == {
        "environment": "Pendulum-v1",
        "agent": "sac",
        "env_steps": 20,
        "return_mean": evaluations(path)[20],
        "inputs": [{"name": "obs", "dtype": "float32", "shape": ["batch", 3], **bounds}],
        "outputs": [{"name": "action", "dtype": "float32", "shape": ["batch", 1], "low": [-2], "high": [2]}],
        "software": f"mbpo-cli {mbpo_cli.__version__}",
        "software_license": "MIT",
        "model_license": "CC0-1.0",
    }


def test_metadata_without_bounds_and_checkpoint(trained: Callable[[str], Path]) -> None:
    original = load(trained("pendulum"))
    policy = greedy(nn.Linear(2, 4), SpaceSpec((2,), BOUNDS), gym.spaces.Box(-1, 1, (4,), np.float32))
    found = exportable.description(replace(original, checkpoint=None), policy, None)
    assert not {"env_steps", "return_mean", "model_license"} & set(found)
    assert found["inputs"][0]["low"] == found["inputs"][0]["high"] == [None, None]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["gaussian", "deterministic", "known"])
def test_an_exported_model_predicts_as_the_program_does(
    name: str, form: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    path, output = trained(name), tmp_path / f"model{export.FORMATS[form].suffix}"
    export_cli.main([str(path), "--trust", "tests", "--model", str(output)])
    original = load(path, trust=["tests"])
    model, experience = original.model(), original.experience()
    elites = model.transition.elites
    assert len(elites) == 2 < model.transition.network.num_members
    with torch.no_grad():
        by_member, own = model.transition.moments(experience.obs, experience.action)
        mean = by_member[elites].mean(0)
        variance = by_member[elites].var(0, correction=0)
        if own is not None:
            variance += own[elites].square().mean(0)
        reward = model.reward.most_likely(experience.obs, experience.action, mean)  # type: ignore[attr-defined]
        ends = model.is_done.most_likely(experience.obs, experience.action, mean)  # type: ignore[attr-defined]
    expected = {"next_obs": mean, "next_obs_deviation": variance.sqrt(), "reward": reward, "terminated": ends}
    obs = [experience.obs]
    if name == "deterministic":
        obs = [experience.obs[:, :10].reshape(-1, 5, 2), experience.obs[:, 10:]]
        expected = {
            f"next_{channel}{suffix}": rows
            for suffix in ("", "_deviation")
            for channel, rows in zip(
                "ab",
                (
                    expected[f"next_obs{suffix}"][:, :10].reshape(-1, 5, 2),
                    expected[f"next_obs{suffix}"][:, 10:],
                ),
                strict=True,
            )
        } | {"reward": reward, "terminated": ends}
    found = export.FORMATS[form].read(output.read_bytes())(
        *obs, original.spaces.actions.to_env(experience.action)
    )
    assert [port["name"] for port in metadata_of(output)["outputs"]] == list(expected)
    for value, output_name in zip(found, expected, strict=True):
        torch.testing.assert_close(value, expected[output_name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["pt2", "torchscript"])
def test_gradients_flow_through_an_exported_model(
    form: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    path, output = trained("gaussian"), tmp_path / f"model{export.FORMATS[form].suffix}"
    export_cli.main([str(path), "--model", str(output)])
    original = load(path)
    with closing(build_env(original.config)) as env:
        expected = exportable.LearnedModel(original.model(), original.spaces, env.obs_space, env.action_space)
    found = []
    for model in (expected, export.FORMATS[form].read(output.read_bytes())):
        obs, action = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[0.3]])
        inputs = [obs.requires_grad_(), action.requires_grad_()]
        next_obs, _, reward, _ = model(*inputs)
        found.append(torch.autograd.grad(next_obs.sum() + reward.sum(), inputs))
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0])
    torch.testing.assert_close(found[0], found[1])


def test_a_known_function_that_torch_cannot_export_is_refused(
    trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trained("numpy")), "--trust", "tests", "--output", str(tmp_path / "policy.pt2")]
    with pytest.raises(SystemExit) as ending:
        export_cli.main([*arguments, "--model", str(tmp_path / "model.pt2")])
    assert ending.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mbpo-export: error: --format pt2: ")
    assert list(tmp_path.iterdir()) == [], "not even the policy"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_example_in_cpp_runs_a_policy(trained: Callable[[str], Path], tmp_path: Path) -> None:
    page = (CONF.parent / "docs" / "tasks" / "deploy.md").read_text()
    (program,) = re.findall(r"```cpp\n(.*?)```", page, re.DOTALL)
    assert len(program.splitlines()) <= 40
    (tmp_path / "policy.cpp").write_text(program)
    lines = [line.removeprefix("//") for line in program.splitlines() if line.startswith("//   ")]
    assert len(lines) == 3
    command = "\n".join(lines).replace("$(python", f"$({sys.executable}")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    path = trained("pendulum")
    export_cli.main([str(path), "--output", str(tmp_path / "policy.pt")])
    obs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    text = "".join(" ".join(map(str, row)) + "\n" for row in obs.tolist())
    done = subprocess.run(["./policy"], cwd=tmp_path, input=text, capture_output=True, text=True, check=True)
    original = load(path)
    expected = original.spaces.actions.to_env(original.agent.act(obs))
    found = [[float(number) for number in line.split()] for line in done.stdout.splitlines()]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-5)
    assert json.loads(done.stderr)["env_steps"] == 20
    wrong = subprocess.run(
        ["./policy"], cwd=tmp_path, input="1 2\n", capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    missing = subprocess.run(["./policy", "no.pt"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert missing.returncode == 1
