"""The parts of the GPU check, each a function of device, folder and size that returns what it found.

A part raises if the program is wrong, and returns figures otherwise. `scripts/gpu_check.py` runs them. Checks
that need a GPU (waiting, memory) are left out on a CPU.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.floor import Product, fit_products, forward, update_products
from mbpo_cli import rollouts
from mbpo_cli.buffers import ReplayBuffer, mix
from mbpo_cli.build import build_agent, build_model, build_trainer
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import Config
from mbpo_cli.failures import one_line
from mbpo_cli.logs.logger import Logger
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.nn.compilation import SEVERAL, compiled
from mbpo_cli.run import run
from mbpo_cli.types import Agent, ContinuousActions, DiscreteActions, SpaceSpec, Transitions
from scripts.compare_checkouts import TASKS

Found = dict[str, Any]

CONTINUOUS = SpaceSpec((11,), ContinuousActions((-1.0,) * 3, (1.0,) * 3))  # Hopper's sizes
DISCRETE = SpaceSpec((4,), DiscreteActions(2))
TINY = (
    "agent.hidden_sizes=[16,16]",
    "agent.mini_batch_size=32",
    "model.transition.hidden_sizes=[16]",
    "model.transition.num_networks=3",
    "model.training.num_mini_batches=2",
    "mbpo.num_epoch_for_training_model=1",
    "mbpo.model_rollout_options.num_rollout=20",
)
# What rounding in another order explains after a few updates, relative to the largest number of a tensor.
TOLERANCE = 1e-3


def agents(device: str, folder: Path, tiny: bool) -> Found:
    """Train every agent with the model; return the seconds that each took."""
    seconds = {}
    for name, task in TASKS.items():
        start = time.monotonic()
        run(make_config(*task, *_short(device, tiny)), folder / "runs" / name)
        seconds[f"{name}, seconds"] = round(time.monotonic() - start, 1)
    return _about(device) | seconds


def equal(device: str, folder: Path, tiny: bool) -> Found:
    """Compare updates, fits and rollouts with those of a CPU; return the largest relative differences."""
    found = {}
    for name in TASKS:
        spaces, config = _spaces_and_config(name, tiny)
        here, there = (build_agent(config, spaces, torch.device(where)) for where in ("cpu", device))
        there.load_state_dict(_on_cpu(here.state_dict()) | _streams(there))
        batches = [_random_batch(64, spaces, seed) for seed in range(4 if tiny else 10)]
        for batch in batches:
            here.num_updates += 1  # type: ignore[attr-defined]
            arguments = here.arguments(batch)  # type: ignore[attr-defined]
            here._step(**arguments)  # type: ignore[attr-defined]
            there._step(**_moved(arguments, device))  # type: ignore[attr-defined]
        found[f"{name}: updates"] = _difference(here.state_dict(), there.state_dict())
    found |= _equal_models(device, tiny)
    wrong = {what: value for what, value in found.items() if value > TOLERANCE}
    if wrong:
        raise AssertionError(f"beyond rounding: {wrong}")
    return found


def _equal_models(device: str, tiny: bool) -> dict[str, float]:
    """Compare five gradient steps of every learned function, and one step of rollouts without randomness."""
    choices = ("model/transition=deterministic", "model/is_done=learned", "model.transition.num_elites=1")
    config = make_config("env=gym", "env.id=Pendulum-v1", *(TINY if tiny else ()), *choices)
    data = _random_batch(256, CONTINUOUS, 0)
    places = torch.device("cpu"), torch.device(device)
    models = [build_model(config, CONTINUOUS, place) for place in places]
    agents = [build_agent(config, CONTINUOUS, place) for place in places]
    models[1].load_state_dict(_on_cpu(models[0].state_dict()))
    agents[1].load_state_dict(_on_cpu(agents[0].state_dict()) | _streams(agents[1]))
    predicted: list[Transitions] = []
    for place, model, agent in zip(places, models, agents, strict=True):
        stream = torch.Generator(place).manual_seed(0)
        rollouts.generate(model, agent.act, data.obs.to(place), 1, predicted.append, stream)
        for part in model.learned.values():
            inputs, targets = part.examples(data.to(place))
            part.network.fit_normalizers(inputs, targets)
            members = part.network.num_members, -1, -1
            for _ in range(5):
                part.learn(inputs.expand(members), targets.expand(members))
    names = ("action", "reward", "next_obs")
    return {
        "fits": _difference(*(model.state_dict() for model in models)),
        "rollouts": max(_relative(*(getattr(each, name) for each in predicted)) for name in names),
    }


def compiled_steps(device: str, tiny: bool) -> Iterator[tuple[str, Agent, Agent, list[Transitions]]]:
    """Yield name, plain agent, compiled agent and mini-batches of every agent, from equal states."""
    for name in list(TASKS)[: 1 if tiny else None]:
        spaces, config = _spaces_and_config(name, tiny)
        plain, fast = (build_agent(config, spaces, torch.device(device)) for _ in range(2))
        fast.compile(partial(compiled, per_launch=SEVERAL))
        yield (
            name,
            plain,
            fast,
            [_random_batch(64, spaces, seed).to(torch.device(device)) for seed in range(8)],
        )


def compiled_updates(device: str, folder: Path, tiny: bool) -> Found:
    """Compare compiled with plain updates; check that neither waits for the device nor gathers memory."""
    found: Found = {}
    for name, plain, fast, batches in compiled_steps(device, tiny):
        start = time.monotonic()
        fast.update(batches)
        found[f"{name}: compilation, seconds"] = round(time.monotonic() - start, 1)
        plain.update(batches)
        found[f"{name}: difference"] = _difference(_on_cpu(plain.state_dict()), fast.state_dict())
        if device == "cpu":
            continue
        for kind, agent in (("plain", plain), ("compiled", fast)):
            agent.update(batches)
            with _without_waiting():
                agent.update(batches)
            before = torch.cuda.memory_allocated()
            for _ in range(20):
                agent.update(batches)
            found[f"{name}: bytes gathered, {kind}"] = torch.cuda.memory_allocated() - before
            if found[f"{name}: bytes gathered, {kind}"] > 1_000_000:
                raise AssertionError(f"{name}, {kind}: memory grows")
    found["graphs not captured"] = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    wrong = {what: value for what, value in found.items() if "difference" in what and value > TOLERANCE}
    if wrong:
        raise AssertionError(f"beyond rounding: {wrong}")
    return found


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Raise where something waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def resumed(device: str, folder: Path, tiny: bool) -> Found:
    """Kill a run after its first checkpoint, resume it, and compare with a run that was not killed."""
    overrides = (*TASKS["sac"], *_short(device, tiny), "checkpoint.every_steps=20")
    whole, killed = folder / "runs" / "whole", folder / "runs" / "killed"
    for path in (whole, killed):
        shutil.rmtree(path, ignore_errors=True)
    _command(*overrides, f"hydra.run.dir={whole}")
    process = subprocess.Popen(_line(*overrides, f"hydra.run.dir={killed}"))
    while not list((killed / "checkpoints").glob("0*")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.5)
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    _command(f"resume={killed}")
    if (first := _metrics(whole)) != (second := _metrics(killed)):
        step = next(a["step"] for a, b in zip(first, second, strict=False) if a != b)
        raise AssertionError(f"the resumed run logs other numbers from step {step:.0f} on")
    return {"numbers compared": sum(map(len, first)), "killed while it ran": was_running}


def times(device: str, folder: Path, tiny: bool) -> Found:
    """Measure updates, fit steps and rollouts at Hopper's sizes, and steps of `experiment=paper/hopper`."""
    found = _about(device)
    where = torch.device(device)
    hidden, model_hidden = ((16, 16), (16, 16)) if tiny else ((256, 256), (200, 200, 200, 200))
    starts, repeats = (100, 2) if tiny else (100_000, 20)
    for precision in ("float32", "tf32", "bfloat16"):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        config = make_config(
            *("env=gym", "env.id=Pendulum-v1", f"agent.hidden_sizes={list(hidden)}"),
            *("model.transition.num_networks=7", "model.transition.num_elites=5", "model/is_done=never"),
            f"model.transition.hidden_sizes={list(model_hidden)}",
            f"precision={'bfloat16' if precision == 'bfloat16' else 'float32'}",
        )
        buffer = ReplayBuffer(20_000, CONTINUOUS, where)
        buffer.add(_random_batch(20_000, CONTINUOUS, 0).to(where))
        stream = torch.Generator(where).manual_seed(0)
        for is_compiled in (False, True)[: 1 if tiny else 2]:
            kind = f"{precision}{', compiled' if is_compiled else ''}"
            agent, model = build_agent(config, CONTINUOUS, where), build_model(config, CONTINUOUS, where)
            try:
                found |= _step_times(kind, is_compiled, agent, model, buffer, stream, repeats)
            except Exception as error:  # other figures are worth having without compiled ones
                if not is_compiled:
                    raise
                found[f"update, {kind}"] = f"failed: {one_line(error)[:200]}"
        agent, model = build_agent(config, CONTINUOUS, where), build_model(config, CONTINUOUS, where)
        sink = ReplayBuffer(starts, CONTINUOUS, where)
        obs = _random_batch(starts, CONTINUOUS, 0).obs.to(where)
        work = partial(rollouts.generate, model, agent.act, obs, 1, sink.add, stream)
        found[f"rollouts of {starts:,}, {precision}, ms"] = _milliseconds(work, where, 5)
    torch.set_float32_matmul_precision("highest")
    critic, actor = update_products("sac", 11, 3, hidden, 256)
    sizes = (14, *model_hidden, 22)
    limits = {"update": critic + actor, "fit step": fit_products(7, 256, sizes)}
    limits[f"rollouts of {starts:,}"] = [
        *forward(1, starts, (11, *hidden, 6)),
        *forward(5, starts // 5, sizes),
    ]
    for what, products in limits.items():
        found[f"{what}, its matrix products, float32, ms"] = _milliseconds(
            _products(products, where), where, 20
        )
    return found | _real_steps(device, tiny)


def _step_times(
    kind: str,
    is_compiled: bool,
    agent: Agent,
    model: EnvironmentModel,
    buffer: ReplayBuffer,
    stream: torch.Generator,
    repeats: int,
) -> Found:
    """Return the milliseconds of an update of the agent and of a gradient step of the ensemble."""
    if is_compiled:
        agent.compile(partial(compiled, per_launch=SEVERAL))
        model.compile(compiled, 256)
    batches = mix(buffer, buffer, 256, 0.05, 20, stream)[0]
    part = model.learned["transition"]
    inputs, targets = (values.view(7, 256, -1) for values in part.examples(buffer.sample(7 * 256, stream)))
    return {
        f"update, {kind}, ms": _milliseconds(partial(agent.update, batches), stream.device, repeats) / 20,
        f"fit step, {kind}, ms": _milliseconds(partial(part.learn, inputs, targets), stream.device, repeats),
    }


def _real_steps(device: str, tiny: bool) -> Found:
    """Return the milliseconds per real step by phase; a step has 20 updates, every 250th fit and rollouts."""
    task = (*TASKS["sac"], *TINY) if tiny else ("experiment=paper/hopper",)
    warm, steps = (10, 4) if tiny else (5_000, 250)
    endless = ("trainer.num_env_steps=1_000_000", "trainer.evaluate_every_steps=1_000_000", "compile=false")
    ends = warm + steps
    config = make_config(*task, f"device={device}", *endless, f"agent.num_warm_start_steps={warm}")
    with ExitStack() as stack:
        trainer = build_trainer(config, Logger([]), stack, lambda: trainer.env_steps >= ends)
        trainer.train()
        seconds = trainer.stopwatch.seconds
    phases = ("update", "fit", "generate")
    return {f"real step, {phase}, ms": 1000 * seconds[phase] / steps for phase in phases}


def sweep(device: str, folder: Path, tiny: bool) -> Found:
    """Run four jobs side by side on the device."""
    path = folder / "runs" / "sweep"
    shutil.rmtree(path, ignore_errors=True)
    start = time.monotonic()
    short = (*TASKS["sac"], *_short(device, tiny), "hydra.launcher.n_jobs=4", f"hydra.sweep.dir={path}")
    _command("-m", "seed=0,1,2,3", *short)
    summaries = [json.loads(each.read_text()) for each in path.glob("*/summary.json")]
    if [summary["status"] for summary in summaries] != ["done"] * 4:
        raise AssertionError(f"{len(summaries)} jobs have a summary, and not all are done")
    alone = [summary["wall_seconds"] for summary in summaries]
    return {"four jobs, seconds": time.monotonic() - start, "median job, seconds": statistics.median(alone)}


def used(device: str, folder: Path, tiny: bool) -> Found:
    """Evaluate, export and resume on a CPU what was trained on the device."""
    path = folder / "runs" / "used"
    shutil.rmtree(path, ignore_errors=True)
    overrides = (*TASKS["sac"], *_short(device, tiny))
    run(make_config(*overrides), path)
    exported = str(folder / "policy.pt2")
    for module, *options in (("evaluate", "--episodes", "2"), ("export", "--output", exported)):
        command = [sys.executable, "-m", f"mbpo_cli.commands.{module}", str(path), *options]
        subprocess.run(command, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    more = 2 * int(make_config(*overrides).trainer.num_env_steps)
    _command(f"resume={path}", "device=cpu", f"trainer.num_env_steps={more}", CUDA_VISIBLE_DEVICES="")
    return {"steps of the resumed run": json.loads((path / "summary.json").read_text())["env_steps"]}


def _short(device: str, tiny: bool) -> tuple[str, ...]:
    steps, warm = (40, 10) if tiny else (200, 100)
    return (
        *(TINY if tiny else ()),
        *(f"device={device}", "compile=false", "trainer.num_eval_episodes=2"),
        *(f"trainer.num_env_steps={steps}", f"agent.num_warm_start_steps={warm}", "mbpo.generate_every=50"),
        *(f"trainer.evaluate_every_steps={steps // 2}", "trainer.log_every_steps=10"),
    )


def _spaces_and_config(name: str, tiny: bool) -> tuple[SpaceSpec, Config]:
    spaces = DISCRETE if name in ("dqn", "sac_discrete") else CONTINUOUS
    return spaces, make_config(*TASKS[name], *(TINY if tiny else ("agent.hidden_sizes=[256,256]",)))


def _random_batch(count: int, spaces: SpaceSpec, seed: int) -> Transitions:
    stream = torch.Generator().manual_seed(seed)
    obs, change = torch.randn(2, count, spaces.obs_size, generator=stream)
    action = torch.stack([spaces.actions.sample(stream) for _ in range(min(count, 256))])
    action = action.repeat(count // len(action) + 1, 1)[:count]
    return Transitions(obs, action, obs[:, 0], obs + 0.1 * change, (obs[:, 1] > 1.5).float())


def _about(device: str) -> Found:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return {"device": name, "torch": torch.__version__}


def _milliseconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median time of a piece of work, after it has run once."""
    taken = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _products(products: Sequence[Product], device: torch.device) -> Callable[[], None]:
    operands = [
        (torch.randn(n, rows, inner, device=device), torch.randn(n, inner, columns, device=device))
        for n, rows, inner, columns in products
    ]

    def work() -> None:
        for left, right in operands:
            torch.bmm(left, right)

    return work


def _moved(tree: Any, device: torch.device | str) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, Transitions):
        return tree.to(torch.device(device))
    return {name: _moved(value, device) for name, value in tree.items()} if isinstance(tree, dict) else tree


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    moved: dict[str, Any] = _moved(copy.deepcopy(state), "cpu")
    return moved


def _streams(agent: Agent) -> dict[str, Any]:
    """Return the states of an agent's random streams, which only fit their own kind of device."""
    return {name: value for name, value in agent.state_dict().items() if name == "generator"}


def _difference(ours: Any, theirs: Any) -> float:
    """Return the largest relative difference between two states, random streams aside."""
    if isinstance(ours, Tensor):
        return _relative(ours, theirs)
    if isinstance(ours, dict):
        return max((_difference(ours[key], theirs[key]) for key in ours if key != "generator"), default=0.0)
    return 0.0


def _relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    if ours.numel() == 0:
        return 0.0
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-3))


def _metrics(path: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in rows]


def _line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mbpo_cli", *arguments]


def _command(*arguments: str, **variables: str) -> None:
    subprocess.run(_line(*arguments), check=True, env=os.environ | variables)
