"""A run that was stopped or killed at any point resumes with bit-for-bit the same results."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbpo_cli.buffers import ReplayBuffer
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError, Diverged, Interrupted, RunFailed, StopOnSignal
from mbpo_cli.logs.stopwatch import Stopwatch
from mbpo_cli.run import Checkpointer, run
from mbpo_cli.storage.checkpoint import Checkpoints
from mbpo_cli.storage.directory import RunDirectory
from mbpo_cli.trainer import Trainer
from tests.conftest import TINY, gym_env, random_transitions, spaces

log = logging.getLogger(__name__)

KINDS = {
    "sac": ("trainer.diagnostics=true",),
    "sac_by_episode": (*gym_env("tests/PointMass-v0"), "mbpo.generate_every=episode"),
    "td3_noisy": ("agent=td3", "mbpo/model_rollout_options/noise_options=gaussian"),
    "ddpg_ou": ("agent=ddpg", "agent/exploration=ornstein_uhlenbeck", "env.num_envs=3"),
    "dqn": ("agent=dqn", *gym_env("tests/DiscretePointMass-v0"), "model/reward=gaussian"),
    "alone": ("mbpo=off", "agent.warm_start_hold_steps=3"),
    "small_buffers": ("agent.experience_buffer_length=16", "mbpo.model_experience_buffer_length=25"),
    "as_in_the_paper": (
        "mbpo.retained_generations=2",
        "mbpo.num_epoch_for_training_model=5",
        "model.training.patience=0",
        "model/reward=gaussian",
        "model.transition.layer_decays=[1e-4,1e-3]",
    ),
    "stopped_and_saved": (  # after 30 steps
        *gym_env("tests/PointMass-v0"),
        "env.kwargs={max_episode_steps: 5}",
        "trainer.num_eval_episodes=8",
        "trainer.stop_training_criteria=average_reward",
        "trainer.stop_training_value=-1000",
        "trainer.score_averaging_window_length=6",
        "checkpoint.save_agent_criteria=episode_count",
        "checkpoint.save_agent_value=2",
        "checkpoint.keep_saved=3",
    ),
    "looking_ahead": (
        *gym_env("tests/Channels-v0"),
        "env.num_envs=2",
        "agent=td3",
        "agent.num_steps_to_look_ahead=3",
        "agent.learning_frequency=3",
        "agent.critic_optimizer.algorithm=rmsprop",
        "agent.actor_optimizer.algorithm=sgdm",
        "agent.exploration.standard_deviation_units=action",
        "agent.exploration.standard_deviation=[0.1,0.9]",
        "agent.exploration.standard_deviation_decay_rate=0.1",
    ),
    "learning_by_episode": (
        "env.kwargs={max_episode_steps: 15}",
        "agent.learning_frequency=episode",
        "agent.num_gradient_steps_per_update=4",
        "agent.num_steps_to_look_ahead=2",
    ),
    "through_the_model": (
        "trainer.diagnostics=true",
        "algorithm=double_horizon",
        "mbpo.fit_every=10",
        "mbpo.first_updates=23",
        "mbpo.training_horizon=2",
        "mbpo.critic_share=0.5",
        "mbpo.real_ratio=0.1",
        "agent.num_gradient_steps_per_update=2",
        "model/transition=constant_noise",
        "model.transition.dropout=0.1",
        "model.transition.layer_decays=1e-3",
        "model.transition.decoupled_decay=true",
        "model.training.bootstrap=true",
        "model.training.significance=0.1",
        "model.training.restart_optimizer=true",
    ),
}
UNCERTAIN = (
    "mbpo.model_rollout_options.max_divergence=1.2",
    "mbpo.model_rollout_options.divergence_quantile=0.8",
    "mbpo.model_rollout_options.max_lost_information=3",
    "mbpo.model_rollout_options.horizon=4",
)
KINDS |= {
    "ending_where_uncertain": (*UNCERTAIN, "model/transition=gaussian"),
    "through_the_model_where_certain": (
        *UNCERTAIN,
        "algorithm=double_horizon",
        "mbpo.training_horizon=3",
        "model.transition.layer_decays=null",
    ),
}
BRIEF = (
    "mbpo.generate_every=5",
    "trainer.num_env_steps=40",
    "trainer.log_every_steps=4",
    "trainer.evaluate_every_steps=9",
    "checkpoint.every_steps=7",
)


def outcome(path: Path) -> dict[str, Any]:
    """Return everything that a run writes, except times."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    rows = [
        {tag: value for tag, value in json.loads(line).items() if not tag.startswith("time/")}
        for line in lines
    ]
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    shown = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("time/")
    }
    last = max((path / "checkpoints").iterdir())
    state = json.loads((last / "state.json").read_text())
    state.pop("stopwatch")
    manifest = json.loads((last / "manifest.json").read_text())
    experience = {
        name: torch.cat(
            [
                safetensors.torch.load_file(path / "experience" / part["file"]["name"])["rows"]
                for part in stored["files"]
            ]
        ).tolist()[-16:]
        for name, stored in manifest["experience"].items()
        if stored["files"]
    }
    return {
        "metrics": rows,
        "events": shown,
        "state": state,
        "tensors": digest(safetensors.torch.load_file(last / "tensors.safetensors")),
        "policy": digest(torch.load(path / "policy.pt", weights_only=True)),
        "experience": experience,
        "saved": manifest["saved"],
        "total_added": {name: stored["total_added"] for name, stored in manifest["experience"].items()},
    }


def digest(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: safetensors.torch.save({"": tensor}) for name, tensor in tensors.items()}


def stop_after(patience: int, monkeypatch: pytest.MonkeyPatch, phase: str | None = None) -> None:
    """Make runs stop when they have asked for a stop `patience` times, in a phase or between two."""
    checks = itertools.count()
    phases: list[str | None] = []  # outside the loop there are none
    in_phase = Stopwatch.phase

    @contextmanager
    def watched(self: Stopwatch, name: str) -> Iterator[None]:
        phases[:] = [name]
        with in_phase(self, name):
            yield
        phases[:] = [None]

    def requested(self: StopOnSignal) -> bool:
        return phases == [phase] and next(checks) >= patience

    monkeypatch.setattr(Stopwatch, "phase", watched)
    monkeypatch.setattr(StopOnSignal, "requested", property(requested))


def stop_at(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make runs stop after environment step `last`."""
    now = 0

    def save_if_due(self: Checkpointer, trainer: Trainer) -> None:
        nonlocal now
        now = trainer.env_steps

    monkeypatch.setattr(Checkpointer, "save_if_due", save_if_due)
    monkeypatch.setattr(StopOnSignal, "requested", property(lambda self: now >= last))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_resumes_with_the_results_of_an_uninterrupted_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*TINY, *BRIEF, *KINDS[kind])
    run(config, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    stops = 0
    for patience, phase in ((3, None), (30, "evaluate"), (7, None), (60, "evaluate"), (5, "fit"), (4, "fit")):
        stop_after(patience, monkeypatch, phase)
        try:
            run(config, tmp_path / "stopped")
        except Interrupted:
            stops += 1
        monkeypatch.undo()
    assert stops >= 3
    run(config, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == expected


def files(path: Path) -> dict[str, bytes]:
    """Return the contents of all files that training writes."""
    written = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in written if file.name != "summary.json"}


def test_a_finished_run_is_not_changed(tmp_path: Path) -> None:
    score = run(make_config(*TINY), tmp_path)
    before = files(tmp_path)
    assert run(make_config(*TINY), tmp_path) == score
    assert files(tmp_path) == before


def test_a_finished_run_can_be_extended(tmp_path: Path) -> None:
    run(make_config(*TINY), tmp_path)
    run(make_config(*TINY, "trainer.num_env_steps=30", "threads=1"), tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 30


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("agent.mini_batch_size=17", "agent.mini_batch_size: 16 -> 17"),
        ("precision=bfloat16", "precision: float32 -> bfloat16"),
    ],
)
def test_another_configuration_is_rejected_with_the_differences(
    other: str, difference: str, tmp_path: Path
) -> None:
    run(make_config(*TINY), tmp_path)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=rf"already holds a run with other values \({difference}"):
        run(make_config(*TINY, other), tmp_path)
    assert files(tmp_path) == before


def test_a_run_of_a_version_without_precision_can_be_resumed(tmp_path: Path) -> None:
    run(make_config(*TINY), tmp_path)
    path = tmp_path / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["precision"]
    path.write_text(yaml.safe_dump(values))
    run(make_config(*TINY, "trainer.num_env_steps=30"), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["env_steps"] == 30


def test_a_second_process_in_the_directory_is_rejected_with_the_name_of_the_first(tmp_path: Path) -> None:
    config = make_config(*TINY)
    busy = pytest.raises(RunFailed, match=f"in use by process {os.getpid()} on ")
    with RunDirectory(tmp_path, asdict(config)), busy as error:
        run(config, tmp_path)
    assert error.value.exit_code == 75


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the directory of a stopped run, and the outcome that it has when it is not stopped."""
    path, config = tmp_path_factory.mktemp("stopped"), make_config(*TINY, *BRIEF)
    run(config, path / "whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(20, monkeypatch)
        with pytest.raises(Interrupted):
            run(config, path / "run")
    return path / "run", outcome(path / "whole")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed"])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors", "experience"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(
    name: str,
    damage: str,
    stopped: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(stopped[0], tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    path = newest / name
    if name == "experience":
        path = max((tmp_path / "run" / "experience").glob("real-*"))
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        half = len(data) // 2
        flipped = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        path.write_bytes({"truncated": data[:half], "flipped": flipped, "emptied": b""}[damage])
    run(make_config(*TINY, *BRIEF), tmp_path / "run")
    assert f"checkpoint not used: {newest.name}: " in caplog.text
    assert outcome(tmp_path / "run") == stopped[1]


def test_incomplete_logs_are_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(*TINY, *BRIEF)
    stop_at(20, monkeypatch)
    with pytest.raises(Interrupted):
        run(config, tmp_path)
    monkeypatch.undo()
    (events,) = tmp_path.glob("*tfevents*")
    events.unlink()
    metrics = tmp_path / "metrics.jsonl"
    rest = metrics.read_bytes()[:-9]
    metrics.write_bytes(rest)
    run(config, tmp_path)
    assert f"{events}: has only 0 of " in caplog.text
    assert f"{metrics}: has only {len(rest)} of {len(rest) + 9} bytes; starting a new file" in caplog.text
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == rest
    assert min(json.loads(line)["step"] for line in metrics.read_text().splitlines()) > 20
    shown = EventAccumulator(str(tmp_path)).Reload().Scalars("eval/return_mean")
    assert min(event.step for event in shown) > 20


def test_a_run_without_a_usable_checkpoint_does_not_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*TINY, *BRIEF)
    stop_after(20, monkeypatch)
    with pytest.raises(Interrupted):
        run(config, tmp_path)
    monkeypatch.undo()
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    for path in (tmp_path / "checkpoints").glob("*/manifest.json"):
        path.write_text("{}")
    with pytest.raises(RunFailed) as error:
        run(config, tmp_path)
    assert error.value.exit_code == 5
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(RunFailed, match="its checkpoints are gone"):
        run(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for bad, words in ((torch.tensor([1.0, float("nan")]), "is not finite"), (float("inf"), "is inf")):
        with pytest.raises(Diverged, match=f"agent/weights {words}"):
            checkpoints.save(1, {"agent": {"weights": bad}}, {}, {})
    assert not list(tmp_path.glob("checkpoints/0*"))


def test_the_latest_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    buffer = ReplayBuffer(3, spaces())
    for step in range(1, 7):
        buffer.add(random_transitions(1, spaces()))
        checkpoints.save(step, {"step": step}, {"real": buffer}, {}, is_best=step == 2)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 5, 6]
    # The best one needs rows 0 and 1, the last two need the rows from 2 on.
    assert [path.name[5:17] for path in sorted((tmp_path / "experience").iterdir())] == [
        f"{start:012d}" for start in range(6)
    ]


# Parts of the state that do not affect the rest of a run.
UNSEEN = (
    "stopwatch",  # seconds
    "evaluation",  # reported if a finished run is started again; other runs make a new one
    "best_evaluation",  # reported in the summary
    "best_step",  # determines which checkpoint is kept
    "_last_episodes",  # determine when the run ends, if there is a criterion
    "_num_recorded",  # zero without recorded data, with which tests/trained/test_data.py resumes
)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all items of a state; step counts, which are shared by parameters, are one item."""
    if isinstance(tree, dict | list) and tree and path[-1:] != ("step_counts",):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for key, value in pairs for leaf in leaves(value, (*path, key))]
    return [path]


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sac", "dqn", "through_the_model"])
def test_every_item_of_the_state_affects_the_rest_of_the_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "sac": (
            *gym_env("tests/PointMass-v0"),
            "agent.policy_update_frequency=3",
            "mbpo/model_rollout_options/noise_options=gaussian",
            "mbpo.model_rollout_options.noise_options.standard_deviation_decay_rate=0.1",
        ),
        "dqn": (*KINDS["dqn"], "agent.target_update_frequency=3", "agent.exploration.epsilon_decay=0.05"),
        "through_the_model": (
            *KINDS["through_the_model"],
            *UNCERTAIN,
            *gym_env("tests/PointMass-v0"),
            "mbpo.max_relative_error=0.5",  # which the model of step 31 exceeds
        ),
    }[kind]
    unused, last_stop = ((), 33) if kind == "through_the_model" else (("guard", "uncertainty"), 38)
    config = make_config(
        *TINY,
        *BRIEF,
        *options,
        "agent.num_warm_start_steps=12",
        "agent.warm_start_hold_steps=4",
        "trainer.evaluate_every_steps=10",
        "mbpo.model_rollout_options.horizon=1",
        "mbpo.model_rollout_options.horizon_update_schedule=piecewise",
        "mbpo.model_rollout_options.horizon_update_frequency=2",
        "mbpo.model_rollout_options.horizon_max=5",
    )
    run(config, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    unseen: set[tuple[Any, ...]] | None = None
    restore = Trainer.load_state_dict
    for last in (10, 22, last_stop):  # within the warm start, after it, and after the last fit of the model
        stopped = tmp_path / f"stopped{last}"
        stop_at(last, monkeypatch)
        with pytest.raises(Interrupted):
            run(config, stopped)
        monkeypatch.undo()
        state = json.loads((max((stopped / "checkpoints").iterdir()) / "state.json").read_text())
        missed = set()
        for path in leaves(state):
            names = {path[0], str(path[-1]).rpartition(".")[2]}
            is_ignored = at(state, path) in ({}, []) or names.intersection((*unused, *UNSEEN))
            if is_ignored or (unseen is not None and path not in unseen):
                continue

            def lose(trainer: Trainer, state: dict[str, Any], path: tuple[Any, ...] = path) -> bool:
                try:
                    fresh = at(copy.deepcopy(trainer.state_dict()), path)
                except (KeyError, IndexError, TypeError):  # a fresh trainer has no such item
                    fresh = {"logger": torch.zeros(0), "collector": torch.zeros(0)}.get(path[0])
                at(state, path[:-1])[path[-1]] = fresh
                return restore(trainer, state)

            monkeypatch.setattr(Trainer, "load_state_dict", lose)
            again = tmp_path / "again"
            shutil.copytree(stopped, again)
            try:
                run(config, again)
                if outcome(again) == expected:
                    missed.add(path)
            except Exception:  # which also counts as noticed
                log.info("without %s the run fails", path)
            shutil.rmtree(again)
            monkeypatch.undo()
        unseen = missed if unseen is None else unseen & missed
    assert sorted(map(str, unseen or ())) == []
