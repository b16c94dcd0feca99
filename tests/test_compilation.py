from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from mbpo_cli import compilation
from mbpo_cli.build import build_agent, compiles
from mbpo_cli.compose import make_config
from mbpo_cli.failures import ConfigError
from mbpo_cli.optimizers import Optimizer
from tests.conftest import TINY, discrete, random_transitions, spaces

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LONG = ("trainer.num_env_steps=10_100", "agent.num_warm_start_steps=100")
PAYS = "agent.num_gradient_steps_per_update=2"


@pytest.mark.parametrize(
    ("overrides", "device", "expected"),
    [
        ((*LONG, PAYS), CPU, True),
        ((*LONG, "agent.num_gradient_steps_per_update=1"), CPU, False),
        ((*LONG, PAYS), GPU, False),
        ((*LONG, PAYS, "compile=false"), CPU, False),
        (("trainer.num_env_steps=10", "compile=true"), CPU, True),
    ],
)
def test_auto_compiles_where_enough_updates_are_to_come(
    overrides: tuple[str, ...], device: torch.device, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda: None)
    assert compiles(make_config(*overrides), device) == expected


def test_without_a_compiler_auto_goes_on_and_true_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiles(make_config(*LONG, PAYS), CPU)
    with pytest.raises(ConfigError, match="compile=true: there is no C\\+\\+ compiler no-such-compiler"):
        compiles(make_config("compile=true"), CPU)


def fails_to_compile(*args: object) -> None:
    raise TorchDynamoException("the compiler misses Python.h\n\nmany more lines")


def test_where_it_is_optional_a_failed_compilation_is_told_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: fails_to_compile)

    def double(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": 2 * x}

    doubled = compilation.compiled(double, optional=True)
    assert [doubled(torch.tensor(i))["x"].item() for i in (1, 2)] == [2, 4]
    assert caplog.messages == ["not compiled: the compiler misses Python.h"]
    with pytest.raises(TorchDynamoException):
        compilation.compiled(double)(torch.tensor(1))


@pytest.mark.parametrize(
    ("name", "is_discrete"),
    [
        ("dqn", True),
        pytest.param("sac", False, marks=pytest.mark.slow),
        pytest.param("sac", True, marks=pytest.mark.slow),
        pytest.param("td3", False, marks=pytest.mark.slow),
        pytest.param("ddpg", False, marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_are_the_same_steps(name: str, is_discrete: bool) -> None:
    space = discrete(num_actions=3) if is_discrete else spaces((3,), action_size=2)
    limit = "agent.critic_optimizer.gradient_threshold=0.5"
    plain, fast = (
        build_agent(make_config(*TINY, f"agent={name}", limit), space, torch.device("cpu")) for _ in "ab"
    )
    fast.compile(compilation.compiled)
    for seed in range(50):
        batch = random_transitions(16, space, seed=seed)
        expected, got = plain.update(batch), fast.update(batch)
        assert expected.keys() == got.keys()
        for tag, value in expected.items():
            torch.testing.assert_close(got[tag], value, rtol=2e-3, atol=1e-4)
    for tag, weights in plain.policy_state().items():
        torch.testing.assert_close(fast.policy_state()[tag], weights, rtol=2e-3, atol=1e-4)


class Scaled:
    """An object whose method is compiled, and which reads a number of its own in it."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.fast = compilation.compiled(self.step)

    def step(self, x: torch.Tensor, is_negative: bool) -> dict[str, torch.Tensor]:
        return {"x": (-x if is_negative else x) * self.factor}


def test_each_object_is_compiled_for_itself_and_its_flags_and_shapes_count() -> None:
    double, triple = Scaled(2), Scaled(3)
    for size in (4, 5):
        ones = torch.ones(size)
        for _ in range(2):
            assert torch.equal(double.fast(ones, False)["x"], 2 * ones)
            assert torch.equal(triple.fast(ones, False)["x"], 3 * ones)
            assert torch.equal(triple.fast(ones, True)["x"], -3 * ones)
            assert torch.equal(double.fast(ones, True)["x"], -2 * ones)


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "dqn"])
def test_what_an_agents_step_changes_are_parameters_that_keep_their_place(name: str) -> None:
    # Graphs of GPUs are captured once, with the addresses of what they change.
    space = discrete(num_actions=3) if name == "dqn" else spaces((3,), action_size=2)
    agent = build_agent(make_config(*TINY, f"agent={name}"), space, CPU)

    def tensors() -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for part in vars(agent).values():
            if isinstance(part, nn.Module):
                found += part.parameters()
            elif isinstance(part, Optimizer):
                found += [*part.first_moments, *part.second_moments, *part.step_counts]
            elif isinstance(part, torch.Tensor):
                found.append(part)
        return found

    places, before = (
        [tensor.data_ptr() for tensor in tensors()],
        [tensor.detach().clone() for tensor in tensors()],
    )
    assert all(isinstance(tensor, nn.Parameter) for tensor in tensors())
    for seed in range(4):
        agent.update(random_transitions(16, space, seed=seed))
    assert all(not torch.equal(old, new) for old, new in zip(before, tensors(), strict=True))
    agent.load_state_dict(agent.state_dict())
    assert [tensor.data_ptr() for tensor in tensors()] == places
