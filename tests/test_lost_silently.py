"""What would be lost without a word is told or refused at the start."""

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mbpo_cli import build
from mbpo_cli.buffers import ReplayBuffer, num_bytes
from mbpo_cli.commands import check
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError, RunFailed
from mbpo_cli.logs.logger import Logger
from mbpo_cli.nn import machine
from mbpo_cli.rollouts import lost_experience
from mbpo_cli.run import run
from tests.conftest import TINY, gym_env, spaces

CPU = torch.device("cpu")
MBPO = make_config(*TINY, "mbpo.retained_generations=null").mbpo


@pytest.mark.parametrize(
    ("length", "num_env_steps", "changes", "rollout_changes", "needed"),
    [
        (1000, 100, {}, {"num_rollout": 1000}, None),
        (999, 100, {}, {"num_rollout": 1000}, "1,000"),
        (1999, 100, {}, {"num_rollout": 1000, "horizon": 2}, "2,000"),
        (4000, 100, {"retained_generations": 4}, {"num_rollout": 1000}, None),
        (3999, 100, {"retained_generations": 4}, {"num_rollout": 1000}, "4,000"),
        # Linear: 1 to 9 over epochs 0 to 8, so 3 from step 2,000 on, at which a run of 2,000 steps has ended.
        (2000, 2000, {}, {"num_rollout": 1000, "horizon_update_schedule": "linear"}, None),
        (2000, 2001, {}, {"num_rollout": 1000, "horizon_update_schedule": "linear"}, "3,000"),
        (9000, 10**6, {}, {"num_rollout": 1000, "horizon_update_schedule": "linear"}, None),
        # Piecewise: 2 after the second training, at step 20; episodes may be as short as a step.
        (
            1000,
            20,
            {"generate_every": 10},
            {"num_rollout": 1000, "horizon_update_schedule": "piecewise"},
            None,
        ),
        (
            1000,
            21,
            {"generate_every": 10},
            {"num_rollout": 1000, "horizon_update_schedule": "piecewise"},
            "2,000",
        ),
        (
            1000,
            12,
            {"generate_every": "episode"},
            {"num_rollout": 1000, "horizon_update_schedule": "piecewise"},
            "2,000",
        ),
    ],
)
def test_a_model_buffer_that_is_too_small_is_told(
    length: int,
    num_env_steps: int,
    changes: dict[str, Any],
    rollout_changes: dict[str, Any],
    needed: str | None,
) -> None:
    schedule = {
        "horizon": 1,
        "horizon_max": 9,
        "horizon_update_frequency": 1,
        "horizon_update_start_epoch": 0,
    }
    if rollout_changes.get("horizon_update_schedule") == "piecewise":
        schedule["horizon_update_start_epoch"] = 1
    rollouts = replace(
        MBPO.model_rollout_options, **{**schedule, "horizon_update_end_epoch": 8, **rollout_changes}
    )
    options = replace(
        MBPO,
        **{"generate_every": 1000, **changes},
        model_rollout_options=rollouts,
        model_experience_buffer_length=length,
    )
    lost = lost_experience(options, num_env_steps, num_warm_start_steps=10)
    if needed is None:
        assert lost is None
    else:
        assert lost is not None
        assert lost.startswith(f"mbpo.model_experience_buffer_length={length:,}: ")
        assert lost.endswith(f"need up to {needed}")
        assert "mbpo.model_rollout_options.num_rollout=1,000" in lost


def test_a_run_starts_with_the_line(caplog: pytest.LogCaptureFixture) -> None:
    small = ("mbpo.model_experience_buffer_length=9", "mbpo.retained_generations=null")
    config = make_config(*TINY, *gym_env("tests/PointMass-v0"), *small)
    with ExitStack() as stack:
        build.build_trainer(config, Logger(), stack)
    assert "mbpo.model_experience_buffer_length=9: does not hold a generation" in caplog.text


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("agent.experience_buffer_length", ("mbpo=off",)),
        ("agent.experience_buffer_length", ()),
        ("mbpo.model_experience_buffer_length", ()),
    ],
)
def test_buffers_larger_than_the_free_memory_are_refused(
    key: str, changes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*TINY, *gym_env("tests/PointMass-v0"), *changes, f"{key}=300_000_000")
    monkeypatch.setattr(check, "free_memory", lambda device: 10**9)
    size = num_bytes(300_000_000, build.build_env(config).spaces) / 1e9
    message = (
        rf"{key}=300,000,000: the replay buffers take {size:.0f}\.\d GB .* only 1\.0 GB of memory is free"
    )
    with pytest.raises(ConfigError, match=message):
        check.check(config)
    check.check(config, is_new=False)  # a run that has begun may go on
    monkeypatch.setattr(check, "free_memory", lambda device: 10**12)
    check.check(config)
    monkeypatch.setattr(check, "free_memory", lambda device: None)
    check.check(config)


def test_a_buffer_that_a_device_cannot_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> ReplayBuffer:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(build, "free_memory", lambda device: 2_000_000_000)
    key, device = "agent.experience_buffer_length", torch.device("cuda:1")
    config = make_config(f"{key}=1_000_000_000")
    with pytest.raises(
        RunFailed,
        match=re.escape(
            "agent.experience_buffer_length=1,000,000,000: takes 36.0 GB of the memory of cuda:1, "
            "but 2.0 GB is free; use a smaller buffer"
        ),
    ):
        build.build_buffer(config, key, spaces((3,)), device, make=full)


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_respects_the_limits_of_control_groups(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = machine.free_memory(CPU)
    assert unlimited is not None
    assert unlimited > 10**8
    _, limit, usage = machine.CGROUPS[2 - version]
    monkeypatch.setattr(machine, "CGROUPS", ((tmp_path, limit, usage),))
    prefix = "total_" if version == 1 else ""
    (tmp_path / limit).write_text("9000000\n")
    (tmp_path / usage).write_text("4000000\n")
    (tmp_path / "memory.stat").write_text(
        f"inactive_file 1\n{prefix}inactive_file 1000000\n" if prefix else "inactive_file 1000000\n"
    )
    assert machine.free_memory(CPU) == 6_000_000
    (tmp_path / limit).write_text("max\n")
    assert machine.free_memory(CPU) == pytest.approx(unlimited, rel=0.2)


def test_a_run_that_ended_within_a_step_of_its_environments_says_so_when_it_is_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train(num_env_steps: int, name: str) -> str:
        caplog.clear()
        changes = (
            f"trainer.num_env_steps={num_env_steps}",
            "trainer.evaluate_every_steps=100",
            "env.num_envs=4",
        )
        run(make_config(*TINY, "mbpo=off", *gym_env("tests/PointMass-v0"), *changes), tmp_path / name)
        return caplog.text

    told = "the run ended at step 10, in which not all of env.num_envs=4 took part"
    assert told not in train(10, "a")
    assert told not in train(10, "a"), "nothing is lost if it is no longer"
    assert told in train(12, "a")
