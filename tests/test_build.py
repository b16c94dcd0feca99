from __future__ import annotations

import os
from contextlib import ExitStack

import pytest
import torch

from mbpo_cli.build import build_trainer, num_threads
from mbpo_cli.config.compose import make_config
from mbpo_cli.logs.logger import Logger
from mbpo_cli.nn.networks import BatchedMLP

SMALL = ("agent.hidden_sizes=[64,64]", "model.transition.hidden_sizes=[64]", "model/reward=known")
WIDE = "agent.hidden_sizes=[256,256]"


@pytest.mark.parametrize(
    ("overrides", "in_sweep", "num_cores", "expected"),
    [
        ((WIDE,), False, 1, 1),
        ((WIDE,), False, 2, 1),
        ((WIDE,), False, 6, 3),
        ((WIDE,), False, 64, 4),
        ((WIDE,), True, 64, 1),
        (SMALL, False, 64, 1),
        ((*SMALL, "model.transition.hidden_sizes=[200]"), False, 64, 4),
        ((*SMALL, "threads=7"), True, 2, 7),
    ],
)
def test_automatic_threads_leave_half_of_the_cores_free(
    overrides: tuple[str, ...],
    in_sweep: bool,
    num_cores: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(num_cores)), raising=False)
    assert num_threads(make_config(*overrides), in_sweep) == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("instructions", ["avx2", "avx512_bf16"])
def test_precision_reaches_all_networks_with_a_warning_where_it_is_slower(
    precision: str, instructions: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True})
    config = make_config(*SMALL, f"precision={precision}", "model/is_done=learned")
    with ExitStack() as stack:
        trainer = build_trainer(config, Logger([]), stack)
        assert trainer.model_based is not None
        parts = [trainer.agent, *(part.network for part in trainer.model_based.model.learned.values())]
        networks = [
            module
            for part in parts
            for value in (part, *vars(part).values())
            if isinstance(value, torch.nn.Module)
            for module in value.modules()
            if isinstance(module, BatchedMLP)
        ]
    assert len(networks) >= 5, "actor, critics, target critics, transition, is-done"
    assert {network.product_dtype for network in networks} == {getattr(torch, precision)}
    warnings = [message for message in caplog.messages if "no instructions" in message]
    assert len(warnings) == (precision == "bfloat16" and instructions == "avx2")
