"""Whole runs: the files they write, how they end, and their reproducibility."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import Busy, RunFailed
from mbpo_cli.run import run
from mbpo_cli.storage.directory import RunDirectory
from mbpo_cli.trainer import PHASES
from tests.conftest import EXAMINED, RUN_FILES, TINY, gym_env

Train = Callable[..., dict[str, Any]]


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in rows]


def same_policy(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(a["policy"][name], b["policy"][name]) for name in a["policy"])


def test_a_run_writes_all_its_files(train_in: Train) -> None:
    result = train_in(*EXAMINED, "mbpo.generate_every=5")
    names = sorted(path.name for path in result["path"].iterdir())
    assert [name for name in names if "tfevents" not in name] == sorted(RUN_FILES)
    assert sum("tfevents" in name for name in names) == 1
    summary = result["summary"]
    expected = {
        "status": "done",
        "error": None,
        "exit_code": None,
        "agent": "sac",
        "env": "pendulum",
        "seed": 0,
        "env_steps": 20,
        "episodes": 0,
        "gradient_steps": 15,
        "eval_episodes": 2,
    }
    assert {key: summary[key] for key in expected} == expected
    evaluations = [row["eval/return_mean"] for row in result["metrics"] if "eval/return_mean" in row]
    assert summary["eval_return_mean"] == evaluations[-1]
    assert summary["score"] == result["score"] == sum(evaluations) / 2
    assert summary["best_eval_return_mean"] >= summary["eval_return_mean"]
    assert summary["eval_return_std"] >= 0
    assert summary["wall_seconds"] > 0
    assert list(summary["phase_seconds"]) == list(PHASES)
    assert {"torch", "gymnasium", "hydra-core", "python", "mbpo-cli"} <= set(summary["versions"])
    assert summary["command"].startswith("mbpo-train")
    config = yaml.safe_load((result["path"] / "config.yaml").read_text())
    assert config["trainer"]["num_env_steps"] == 20
    assert config["mbpo"]["mini_batch_size"] == 16, "resolved"


def test_all_important_scalars_are_logged(train_in: Train) -> None:
    rows = train_in(*TINY, *gym_env("tests/Counting-v0"), "model/reward=gaussian", "mbpo.generate_every=5")[
        "metrics"
    ]
    tags = {tag for row in rows for tag in row}
    assert tags >= {
        "step",
        "train/episode_return",
        "train/episode_length",
        "eval/return_mean",
        "eval/return_std",
        "agent/critic_loss",
        "agent/actor_loss",
        "agent/entropy_weight",
        "model/transition_loss",
        "model/reward_loss",
        "model/is_done_loss",
        "model/holdout_error_member_0",
        "model/holdout_error_member_2",
        "rollout/horizon",
        "rollout/num_generated",
        "buffer/real_size",
        "buffer/model_size",
        "mix/num_real",
        "mix/num_generated",
        "mix/real_share",
        "time/env_steps_per_second",
        *(f"time/{phase}_seconds" for phase in ("env", "fit", "generate", "update", "evaluate")),
    }
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)), "one object per logged step"


def test_tensorboard_shows_the_same_scalars(train_in: Train) -> None:
    result = train_in(*TINY, "mbpo.generate_every=5")
    events = EventAccumulator(str(result["path"]), size_guidance={"scalars": 0}).Reload()
    shown = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    logged = {(tag, row["step"]): row[tag] for row in result["metrics"] for tag in row if tag != "step"}
    assert shown.keys() == logged.keys()
    assert all(np.float32(logged[key]) == np.float32(value) for key, value in shown.items())


def test_hyperparameters_and_first_plots_are_in_the_event_file(train_in: Train) -> None:
    path = train_in(*TINY, "mbpo.generate_every=5")["path"]
    events = EventAccumulator(str(path)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hyperparameters = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hyperparameters["mbpo.real_ratio"].number_value == 0.2
    assert hyperparameters["agent.name"].string_value == "sac"
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    charts = layout_pb2.Layout.FromString(layout).category[0].chart
    shown = {tag.strip("^$") for chart in charts for tag in chart.multiline.tag}
    assert len(charts) == 6
    # Pendulum's reward and is-done functions are known, and no episode ends within 20 steps.
    absent = {"train/episode_return", "model/reward_loss", "model/is_done_loss"}
    assert shown - absent <= set(events.Tags()["scalars"])
    assert {child.name for child in path.iterdir() if child.is_dir()} == {"checkpoints", "experience"}


def test_a_run_repeats_bit_for_bit_with_its_seed_and_differs_with_another(train_in: Train) -> None:
    options = (*TINY, "mbpo.generate_every=5", "trainer.num_env_steps=30")
    first = train_in(*options, name="first")
    # Other random numbers drawn in the process change nothing.
    torch.manual_seed(123)
    torch.rand(7)
    np.random.seed(5)  # noqa: NPY002
    again = train_in(*options, name="again")
    other = train_in(*options, "seed=1", name="other")
    assert without_time(first["metrics"]) == without_time(again["metrics"])
    assert same_policy(first, again)
    assert without_time(first["metrics"]) != without_time(other["metrics"])
    assert not same_policy(first, other)


def test_a_run_leaves_the_global_random_state_unchanged(train_in: Train) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train_in(*TINY, "mbpo.generate_every=5")
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_does_not_affect_training(train_in: Train) -> None:
    often = train_in(*EXAMINED, "trainer.evaluate_every_steps=3", name="often")
    rarely = train_in(*TINY, "trainer.evaluate_every_steps=20", "trainer.num_eval_episodes=1", name="rarely")
    assert same_policy(often, rarely)

    def training(result: dict[str, Any]) -> list[dict[str, Any]]:
        rows = [
            {t: v for t, v in row.items() if not t.startswith(("time/", "eval/", "diagnose/"))}
            for row in result["metrics"]
        ]
        return [row for row in rows if len(row) > 1]

    assert training(often) == training(rarely)


@pytest.mark.parametrize(
    "choices",
    [
        ("model.transition.optimizer.learn_rate=0",),
        ("model.transition.num_networks=1", "model.transition.num_elites=null"),
        ("model.transition.predict_difference=false", "model.training.num_mini_batches=all"),
        ("model.training.holdout_ratio=0", "model.transition.num_elites=null"),
        ("mbpo/model_rollout_options/noise_options=gaussian",),
        ("mbpo.model_rollout_options.horizon=4", "mbpo.real_ratio=0"),
        ("mbpo.generate_every=episode", "agent.num_gradient_steps_per_update=3"),
        (
            "agent.actor_optimizer.gradient_threshold=1",
            "agent.entropy_weight_options.gradient_threshold=1",
            "model.transition.optimizer.gradient_threshold=1",
        ),
        ("mbpo=off",),
        gym_env("tests/Channels-v0"),
        (*gym_env("tests/Counting-v0"), "env.kwargs={terminates: true}"),
        (*gym_env("MountainCarContinuous-v0"), "env.kwargs={goal_velocity: 0.1}"),
    ],
)
def test_runs_with_various_options_succeed(choices: tuple[str, ...], train_in: Train) -> None:
    result = train_in(*TINY, "mbpo.generate_every=5", *choices)
    assert result["summary"]["status"] == "done"
    assert np.isfinite(result["score"])


def test_only_one_of_many_simultaneous_locks_succeeds(tmp_path: Path) -> None:
    barrier, won = threading.Barrier(16), []

    def lock() -> None:
        barrier.wait()
        with contextlib.suppress(Busy):
            won.append(RunDirectory(tmp_path / "run", {"a": 1}))

    threads = [threading.Thread(target=lock) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_ctrl_c_ends_with_a_summary_and_a_policy(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(make_config(*TINY, "compile=false", "trainer.num_env_steps=1_000_000"), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 0 < summary["env_steps"] < 1_000_000
    assert (tmp_path / "policy.pt").exists()
    assert signal.getsignal(signal.SIGINT) is handler, "the handler was restored"


def test_a_failure_is_in_the_summary_and_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = (*TINY, *gym_env("tests/Counting-v0"), "env.kwargs={episode_steps: null}")
    with pytest.raises(RunFailed):
        run(
            make_config(
                *options, "model/reward=known", "env.reward_function=math.sqrt", "mbpo.generate_every=5"
            ),
            tmp_path,
        )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["error"].startswith("TypeError")
    assert summary["env_steps"] == 5
    assert "Traceback" in caplog.text


def test_a_saved_policy_can_be_loaded(train_in: Train) -> None:
    from mbpo_cli.build import build_agent, build_env

    result = train_in(*TINY)
    config = make_config(*TINY)
    agent = build_agent(config, build_env(config).spaces, torch.device("cpu"))
    agent.actor.load_state_dict(result["policy"])  # type: ignore[attr-defined]
    assert set(agent.policy_state()) == set(result["policy"])
