from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from mbpo_cli.build import (
    accelerator,
    build_agent,
    build_model,
    compiles,
    num_fit_steps,
    num_updates,
    updates_per_launch,
)
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError, Stopped
from mbpo_cli.models.function import LearnedFunction
from mbpo_cli.nn import compilation
from mbpo_cli.nn.optimizers import Optimizer
from mbpo_cli.types import GradientStep, GradientSteps, Transitions
from tests.conftest import TINY, discrete, random_transitions, spaces
from tests.test_resume import outcome

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DEVICES = [
    CPU,
    pytest.param(GPU, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
LONG = ("trainer.num_env_steps=10_100", "agent.num_warm_start_steps=100")
PAYS = "agent.num_gradient_steps_per_update=2"


@pytest.mark.parametrize(
    ("overrides", "device", "expected"),
    [
        ((*LONG, PAYS), CPU, True),
        ((*LONG, "agent.num_gradient_steps_per_update=1"), CPU, False),
        ((*LONG, PAYS), GPU, False),
        ((*LONG, PAYS, "compile=false"), CPU, False),
        ((*LONG, PAYS, "agent.learning_frequency=2"), CPU, False),
        ((*LONG, PAYS, "agent.learning_frequency=episode"), CPU, False),
        (("trainer.num_env_steps=10", "compile=true"), CPU, True),
    ],
)
def test_auto_compiles_if_there_are_enough_updates(
    overrides: tuple[str, ...], device: torch.device, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda: None)
    config = make_config(*overrides)
    assert compiles(config, device, num_updates(config)) == expected


@pytest.mark.parametrize(
    ("num_env_steps", "per_step", "expected"),
    [
        (5_099, 20, 1),
        (5_100, 20, 4),
        *((100_100, per_step, expected) for per_step, expected in {1: 1, 5: 1, 6: 3, 10: 2, 40: 4}.items()),
    ],
)
def test_long_runs_compile_several_steps_as_one_function(
    num_env_steps: int, per_step: int, expected: int
) -> None:
    config = make_config(
        f"trainer.num_env_steps={num_env_steps}",
        "agent.num_warm_start_steps=100",
        f"agent.num_gradient_steps_per_update={per_step}",
    )
    assert updates_per_launch(config) == expected


@pytest.mark.parametrize(("compile", "is_optional"), [("auto", True), ("true", False)])
def test_compilation_is_optional_only_with_auto(
    compile: str, is_optional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(compilation, "compiled", lambda step, **options: calls.append(options))
    accelerator(make_config(f"compile={compile}"), "agent", 3)(lambda: {})
    assert calls == [{"optional": is_optional, "per_launch": 3}]


FITS = (
    "mbpo.generate_every=100",
    "mbpo.num_epoch_for_training_model=20",
    "model.training.mini_batch_size=50",
    "model.training.patience=null",
)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("mbpo.generate_every=episode",), 0),
        (("model.training.num_mini_batches=10",), 100 * 20 * 10),
        (("model.training.num_mini_batches=10", "model.training.patience=4"), 100 * 5 * 10),
        (
            (
                "model.training.num_mini_batches=10",
                "model.training.patience=4",
                "model.training.min_epochs=9",
            ),
            100 * 9 * 10,
        ),
        (("model.training.num_mini_batches=10", "model.training.patience=40"), 100 * 20 * 10),
        (("model.training.num_mini_batches=all",), 100 * 20 * (5_050 * 8 // 10 // 50)),
        (
            ("model.training.num_mini_batches=all", "agent.experience_buffer_length=2_000"),
            100 * 20 * (1_000 * 8 // 10 // 50),
        ),
    ],
)
def test_lower_estimate_of_the_number_of_fit_steps(overrides: tuple[str, ...], expected: int) -> None:
    assert num_fit_steps(make_config(*LONG, *FITS, *overrides)) == expected


def test_without_a_compiler_auto_is_plain_and_true_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiles(make_config(*LONG, PAYS), CPU, 1_000_000)
    with pytest.raises(ConfigError, match="compile=true: there is no C\\+\\+ compiler no-such-compiler"):
        compiles(make_config("compile=true"), CPU, 1)


def fails_to_compile(*args: object) -> None:
    raise TorchDynamoException("the compiler misses Python.h\n\nmany more lines")


def test_a_failed_optional_compilation_is_logged_and_training_continues(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: fails_to_compile)

    def double(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": 2 * x}

    doubled = compilation.compiled(double, optional=True)
    for _ in range(2):
        assert [result["x"].item() for result in doubled([{"x": torch.tensor(i)} for i in (1, 2)])] == [2, 4]
    assert caplog.messages == ["not compiled: the compiler misses Python.h"]
    with pytest.raises(TorchDynamoException):
        compilation.compiled(double)([{"x": torch.tensor(1)}])


def failing_for_single_steps(error: Exception) -> Callable[..., GradientSteps]:
    """What stands in for `torch.compile`: its functions fail if they are called with a single step."""

    def compile(function: GradientSteps, **options: Any) -> GradientSteps:
        def call(arguments: Sequence[Mapping[str, Any]]) -> Sequence[dict[str, torch.Tensor]]:
            if len(arguments) == 1:
                raise error
            return function(arguments)

        return call

    return compile


@pytest.mark.parametrize("error", [TorchDynamoException, FailOnRecompileLimitHit])
def test_each_step_is_taken_once_if_a_later_compilation_fails(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", failing_for_single_steps(error("no more room")))
    steps = compilation.compiled(Sum().step, optional=True, per_launch=2)
    for first in (1, 6):
        results = steps([{"x": torch.ones(1), "with_result": True}] * 5)
        assert [result["total"].item() for result in results] == list(range(first, first + 5))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("per_launch", [1, pytest.param(4, marks=pytest.mark.slow)])
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
def test_compiled_steps_equal_plain_steps(
    name: str, is_discrete: bool, per_launch: int, device: torch.device
) -> None:
    space = discrete(num_actions=3) if is_discrete else spaces((3,), action_size=2)
    limit = "agent.critic_optimizer.gradient_threshold=0.5"
    plain, fast = (build_agent(make_config(*TINY, f"agent={name}", limit), space, device) for _ in "ab")
    fast.compile(partial(compilation.compiled, per_launch=per_launch))
    for seed in range(0, 50, 5):
        batches = [random_transitions(16, space, seed=seed + i).to(device) for i in range(5)]
        for expected, got in zip(plain.update(batches), fast.update(batches), strict=True):
            assert expected.keys() == got.keys()
            for tag, value in expected.items():
                torch.testing.assert_close(got[tag], value, rtol=2e-3, atol=1e-4)
    for tag, weights in plain.policy_state().items():
        torch.testing.assert_close(fast.policy_state()[tag], weights, rtol=2e-3, atol=1e-4)


def batch_for(part: LearnedFunction, data: Transitions) -> tuple[torch.Tensor, torch.Tensor]:
    """The same mini-batch for every member."""
    num_members = part.network.num_members
    inputs, targets = (rows.expand(num_members, *rows.shape) for rows in part.examples(data))
    return inputs, targets


def test_a_model_compiles_whole_mini_batches_only() -> None:
    space = spaces((3,), action_size=2)
    model = build_model(make_config(*TINY), space, CPU)
    called: list[int] = []

    def watched(step: GradientStep) -> GradientSteps:
        plain = compilation.one_by_one(step)

        def steps(arguments: Sequence[Mapping[str, Any]]) -> Sequence[dict[str, torch.Tensor]]:
            called.extend(each["inputs_MBI"].shape[1] for each in arguments)
            return plain(arguments)

        return steps

    model.compile(watched, 16)
    for part in model.learned.values():
        for size in (16, 7, 16):
            assert part.learn(*batch_for(part, random_transitions(size, space))).isfinite().all()
    assert called == [16, 16] * len(model.learned)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(
    "choices",
    [
        ("model/transition=gaussian", "model.transition.layer_decays=[1e-4,1e-3]"),
        pytest.param(("model/reward=deterministic", "model/is_done=learned"), marks=pytest.mark.slow),
    ],
)
def test_compiled_fits_equal_plain_fits(choices: tuple[str, ...], device: torch.device) -> None:
    space = spaces((3,), action_size=2)
    plain, fast = (build_model(make_config(*TINY, *choices), space, device) for _ in "ab")
    fast.compile(compilation.compiled, 16)
    for seed in range(50):
        data = random_transitions(7 if seed % 10 == 9 else 16, space, seed=seed).to(device)
        for name, part in plain.learned.items():
            batch = batch_for(part, data)
            if seed % 20 == 0:  # as at the start of a fit
                for each in (part, fast.learned[name]):
                    each.network.fit_normalizers(*part.examples(data))
            got = fast.learned[name].learn(*batch)
            torch.testing.assert_close(got, part.learn(*batch), rtol=2e-3, atol=1e-4)
    for name, part in plain.learned.items():
        weights = fast.learned[name].network.state_dict()
        for tag, value in part.network.state_dict().items():
            torch.testing.assert_close(weights[tag], value, rtol=2e-3, atol=1e-4)


class Scaled:
    """An object whose compiled method reads one of its attributes."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.fast = compilation.compiled(self.step)

    def step(self, x: torch.Tensor, is_negative: bool) -> dict[str, torch.Tensor]:
        return {"x": (-x if is_negative else x) * self.factor}


@pytest.mark.slow
def test_each_object_flag_and_shape_is_compiled_separately() -> None:
    double, triple = Scaled(2), Scaled(3)
    for size in (4, 5):
        ones = torch.ones(size)
        for _ in range(2):
            for scaled, is_negative, factor in (
                (double, False, 2),
                (triple, False, 3),
                (triple, True, -3),
                (double, True, -2),
            ):
                (result,) = scaled.fast([{"x": ones, "is_negative": is_negative}])
                assert torch.equal(result["x"], factor * ones)


class Sum:
    """An object whose method adds to a parameter, as a gradient step does."""

    def __init__(self) -> None:
        self.total = nn.Parameter(torch.zeros(1))

    def step(self, x: torch.Tensor, with_result: bool) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            self.total.add_(x)
        return {"total": self.total.detach().clone()} if with_result else {}


def test_steps_are_launched_together_and_taken_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched: list[int] = []
    compile = torch.compile

    def watched(function: GradientSteps, **options: Any) -> GradientSteps:
        accelerated = compile(function, **options)

        def call(arguments: Sequence[Mapping[str, Any]]) -> Sequence[dict[str, torch.Tensor]]:
            launched.append(len(arguments))
            return accelerated(arguments)

        return call

    monkeypatch.setattr(torch, "compile", watched)
    steps = compilation.compiled(Sum().step, per_launch=2)
    results = [
        [result["total"].item() if result else None for result in found]
        for found in (
            steps([{"x": torch.ones(1), "with_result": i % 2 == 0} for i in range(5)]),
            steps([{"x": torch.ones(1), "with_result": i > 0} for i in range(2)]),
            steps([{"x": torch.ones(1), "with_result": False}]),
        )
    ]
    assert results == [[1, None, 3, None, 5], [None, 7], [None]]
    assert launched == [2, 2, 1, 2, 1]


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "dqn"])
def test_an_agents_step_changes_only_parameters_in_place(name: str) -> None:
    # CUDA graphs are captured once, with the addresses of the tensors that they change.
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
        agent.update([random_transitions(16, space, seed=seed)])
    assert all(not torch.equal(old, new) for old, new in zip(before, tensors(), strict=True))
    agent.load_state_dict(agent.state_dict())
    assert [tensor.data_ptr() for tensor in tensors()] == places


def slowly_compiled(function: GradientSteps, **options: Any) -> GradientSteps:
    """Stands for torch.compile: waits for a child process, as for a compiler."""
    from torch._dynamo.callback import CallbackTrigger, callback_handler

    def call(arguments: Sequence[Mapping[str, Any]]) -> Sequence[dict[str, torch.Tensor]]:
        if len(arguments) == 1:  # the remainder, after steps that were taken
            with callback_handler.install_callbacks(CallbackTrigger.DYNAMO, "0"):
                subprocess.run(["sleep", "30"], check=True)
                raise AssertionError("the compilation was not interrupted")
        return function(arguments)

    return call


def test_a_stop_request_interrupts_a_compilation_and_the_update_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", slowly_compiled)
    agent = build_agent(make_config(*TINY, "agent=td3"), spaces(), CPU)
    agent.compile(partial(compilation.compiled, per_launch=2))
    stream = torch.Generator().manual_seed(1)
    before, drawn = copy.deepcopy(agent.state_dict()), stream.get_state()
    answers = iter([False, False, True])
    undoing = compilation.UndoingIfStopped(lambda: next(answers), is_compiled=True)
    handler = signal.getsignal(signal.SIGALRM)

    def update() -> None:
        with undoing(agent, stream):
            torch.rand(1, generator=stream)
            agent.update([random_transitions(16, spaces(), seed=i) for i in range(3)])

    with pytest.raises(Stopped):
        update()
    assert not compilation.descendants(), "what compiled has ended"
    assert torch.equal(stream.get_state(), drawn)
    for name, part in before.items():
        torch.testing.assert_close(agent.state_dict()[name], part, rtol=0, atol=0)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("is_asked_to_stop", [True, False])
def test_a_compiler_that_ends_by_the_same_signal_is_no_failure(
    is_asked_to_stop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches all processes of a terminal, the compiler included."""

    ended = RuntimeError("the compiler was ended by SIGINT")
    monkeypatch.setattr(torch, "compile", failing_for_single_steps(ended))
    agent = build_agent(make_config(*TINY, "agent=td3"), spaces(), CPU)
    agent.compile(partial(compilation.compiled, per_launch=2))
    before = copy.deepcopy(agent.state_dict())
    undoing = compilation.UndoingIfStopped(lambda: is_asked_to_stop, is_compiled=True)

    def update() -> None:
        with undoing(agent, torch.Generator()):
            agent.update([random_transitions(16, spaces(), seed=i) for i in range(3)])

    with pytest.raises(Stopped if is_asked_to_stop else RuntimeError):
        update()
    if is_asked_to_stop:
        for name, part in before.items():
            torch.testing.assert_close(agent.state_dict()[name], part, rtol=0, atol=0)


def compilers_of(process: int) -> set[int]:
    found = {child: Path(f"/proc/{child}/comm") for child in compilation.descendants(process)}
    return {child for child, path in found.items() if path.exists() and path.read_text() == "cc1plus\n"}


@pytest.mark.slow
@pytest.mark.parametrize(("option", "how"), [("mbpo=off", "signal"), ("mbpo.generate_every=2", "file")])
def test_a_stop_request_ends_what_compiles_and_the_run_resumes_exactly(
    option: str, how: str, tmp_path: Path
) -> None:
    """With a stop in the compilation of the agent's gradient step, and of the model's."""
    options = (*TINY, "agent=dqn", "env=cartpole", "compile=true", "threads=1", option)

    def start(path: Path) -> subprocess.Popen[bytes]:
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"cache_of_{path.name}")}
        command = [sys.executable, "-m", "mbpo_cli", *options, f"hydra.run.dir={path}"]
        return subprocess.Popen(command, env=os.environ | cache, stdout=subprocess.DEVNULL)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert start(whole).wait() == 0
    process = start(stopped)
    while not (compilers := compilers_of(process.pid)) and process.poll() is None:
        time.sleep(0.02)
    begin = time.monotonic()
    if how == "signal":
        process.terminate()
    else:
        (stopped / "stop").touch()
    assert process.wait() == 143
    seconds = time.monotonic() - begin
    print(f"{seconds:.2f} s")
    while any(Path(f"/proc/{compiler}").exists() for compiler in compilers):
        assert time.monotonic() - begin < 5, "the compiler goes on"
        time.sleep(0.02)
    (stopped / "stop").unlink(missing_ok=True)
    assert start(stopped).wait() == 0
    assert outcome(stopped) == outcome(whole)
    assert seconds < 2
