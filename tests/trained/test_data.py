"""Runs that begin with recorded data, alone or before steps of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mbpo_cli.build import build_env, build_trainer
from mbpo_cli.commands import evaluate as evaluate_cli
from mbpo_cli.commands.check import check
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import Config
from mbpo_cli.evaluation.diagnostics import joined
from mbpo_cli.failures import ConfigError, Interrupted, RunFailed
from mbpo_cli.logs.logger import Logger
from mbpo_cli.nn.seeding import episode_seeds
from mbpo_cli.run import run
from mbpo_cli.storage import data_sets
from mbpo_cli.trained import pretrained
from mbpo_cli.trained.episodes import play_recorded, recorded
from mbpo_cli.trained.load import load
from mbpo_cli.trainer import Trainer
from mbpo_cli.types import Transitions
from tests.commands.test_train import command
from tests.conftest import CONF, TINY, gym_env, metrics_of
from tests.envs.test_recorded import FAULTS
from tests.test_resume import outcome, stop_after

POINT = (*TINY, *gym_env("tests/PointMass-v0"), "agent.normalize_observations=true", "mbpo.generate_every=5")
OFFLINE = ("trainer.num_env_steps=0", "mbpo.first_updates=23")
TRUST = ("tests",)


def config(*overrides: str) -> Config:
    return make_config(*POINT, *overrides)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 40 steps of experience."""
    path = tmp_path_factory.mktemp("first") / "run"
    run(config("trainer.num_env_steps=40"), path)
    return path


@pytest.fixture(scope="module")
def recording(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recorded episodes of 20 steps."""
    path = tmp_path_factory.mktemp("recorded") / "data.npz"
    where = ["--output", str(path.with_suffix(".json")), "--record", str(path)]
    evaluate_cli.main([str(first), "--trust", "tests", "--episodes", "3", *where])
    return path


def transitions_in(path: Path) -> Transitions:
    return load(path, trust=TRUST).experience()


def equal(one: Transitions, other: Transitions) -> bool:
    return all(map(torch.equal, vars(one).values(), vars(other).values()))


@pytest.fixture(scope="module")
def begun() -> Iterator[Callable[[Config], Trainer]]:
    """Build a trainer and let it begin with its data."""
    with ExitStack() as stack:

        def begin(options: Config) -> Trainer:
            trainer = build_trainer(options, Logger(), stack)
            pretrained.begin(trainer, options, TRUST)
            return trainer

        yield begin


@pytest.mark.parametrize("suffix", data_sets.SUFFIXES)
@pytest.mark.parametrize("env", ["tests/PointMass-v0", "tests/Channels-v0", "CartPole-v1", "Pendulum-v1"])
def test_what_one_run_records_another_one_begins_with_to_the_bit(
    env: str, suffix: str, tmp_path: Path, begun: Callable[[Config], Trainer]
) -> None:
    agent = "agent=dqn" if env.startswith("Cart") else "agent=sac"
    overrides = (*TINY, agent, *gym_env(env), "trainer.num_env_steps=6")
    run(make_config(*overrides), tmp_path / "run")
    data = tmp_path / f"data{suffix}"
    where = ["--output", str(tmp_path / "returns.json"), "--record", str(data)]
    evaluate_cli.main([str(tmp_path / "run"), "--trust", "tests", "--episodes", "3", *where])

    trained = load(tmp_path / "run", trust=TRUST)
    seeds = episode_seeds(0, "evaluation", 3)
    _, episodes = play_recorded(lambda: build_env(trained.config), seeds, trained.agent.act)
    expected = joined(episodes)
    found = begun(make_config(*overrides, f"data={data}")).real_buffer.contents()
    for name in ("obs", "reward", "next_obs", "terminated"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    actions = trained.spaces.actions
    assert torch.equal(actions.to_env(found.action), actions.to_env(expected.action))
    torch.testing.assert_close(found.action, expected.action, rtol=0, atol=1e-7)
    assert int(found.terminated.sum()) == sum(episode.terminated for episode in episodes)
    returns = json.loads((tmp_path / "returns.json").read_text())["real"]["episodes"]
    assert [each["return"] for each in returns] == [sum(each.reward.tolist()) for each in episodes]
    # What is in the buffer gives the same file again.
    assert np.array_equal(actions.to_env(found.action).numpy(), recorded(episodes, actions)["actions"])


def test_the_experience_of_a_run_is_taken_as_it_is(first: Path, begun: Callable[[Config], Trainer]) -> None:
    trainer = begun(config(f"data={first}"))
    assert equal(trainer.real_buffer.contents(), transitions_in(first))
    best = begun(config(f"data={first}/checkpoints/best"))
    assert len(best.real_buffer) == load(first / "checkpoints" / "best", trust=TRUST).state["env_steps"]


def d4rl_file(path: Path) -> Path:
    """A file as D4RL has them: no next observations, and much else."""
    g = np.random.default_rng(0)
    position = [g.uniform(-1.5, 1.5)]
    action = g.uniform(-1, 1, size=(200, 1)).astype(np.float32)
    for push in action[:, 0]:
        position.append(np.clip(position[-1] + 0.3 * push, -2, 2))
    with h5py.File(path, "w") as file:
        file["observations"] = np.array(position[:-1], np.float32)[:, None]
        file["actions"], file["rewards"] = action, -(np.array(position[1:]) ** 2)
        file["terminals"] = np.zeros(200, bool)
        file["timeouts"] = np.arange(200) % 20 == 19
        file["infos/action_log_probs"] = np.zeros(200)
        file["metadata/algorithm"] = "SAC"
    return path


def test_a_file_of_d4rl_is_all_that_a_run_needs(tmp_path: Path) -> None:
    options = config(f"data={d4rl_file(tmp_path / 'd4rl.hdf5')}", *OFFLINE, "agent.mini_batch_size=8")
    run(options, tmp_path / "run")
    found = transitions_in(tmp_path / "run")
    assert len(found) == 190
    torch.testing.assert_close(found.next_obs, (found.obs + 0.3 * found.action).clamp(-2, 2))
    torch.testing.assert_close(found.reward, -found.next_obs[:, 0].square())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["env_steps"], summary["gradient_steps"]) == ("done", 0, 23)
    rows = metrics_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [0]
    assert {"model/transition_loss", "rollout/num_generated", "eval/return_mean"} <= rows[0].keys()
    assert summary["score"] == rows[0]["eval/return_mean"]


def test_training_goes_on_without_a_warm_start(recording: Path, tmp_path: Path) -> None:
    run(config(f"data={recording}", "trainer.log_every_steps=1", "mbpo.first_updates=10"), tmp_path / "run")
    rows = metrics_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(21))
    assert [row["train/gradient_steps"] for row in rows] == list(range(10, 31))
    assert [row["step"] for row in rows if "model/transition_loss" in row] == [0, 6, 11, 16]
    assert [row["step"] for row in rows if "eval/return_mean" in row] == [0, 10, 20]
    found = transitions_in(tmp_path / "run")
    assert len(found) == 60 + 20
    assert load(tmp_path / "run", trust=TRUST).state["agent"]["scaling"]["count"] == 60 + 20
    # The agent acts from the first step on, and a run without data draws its actions at random.
    run(config("trainer.num_env_steps=5"), tmp_path / "other")
    assert not torch.equal(found.action[60:65], transitions_in(tmp_path / "other").action)


def test_the_base_agent_can_begin_with_data_alone(recording: Path, tmp_path: Path) -> None:
    run(config(f"data={recording}", "mbpo=off", "trainer.log_every_steps=1"), tmp_path / "run")
    assert [row["train/gradient_steps"] for row in metrics_of(tmp_path / "run")] == list(range(21))


def test_the_agent_of_another_run_can_begin_with_data(recording: Path, first: Path, tmp_path: Path) -> None:
    options = (f"data={recording}", f"agent.from_run={first}", "mbpo.data_ratio=0.25", "mbpo.real_ratio=0.5")
    length = ("trainer.num_env_steps=3", "trainer.log_every_steps=1")
    run(config(*options, *length), tmp_path / "run", trust=TRUST)
    assert len(transitions_in(tmp_path / "run")) == 60 + 3
    # Of 16 transitions 8 are real, a quarter of them recorded.
    rows = metrics_of(tmp_path / "run")
    assert [row.get("mix/num_recorded") for row in rows] == [None, 2, 2, 2]
    assert [row.get("mix/num_real") for row in rows] == [None, 8, 8, 8]


def test_a_run_from_data_alone_can_be_extended_as_if_it_had_been_longer(
    recording: Path, tmp_path: Path
) -> None:
    options = (f"data={recording}", OFFLINE[1])
    run(config(*options, "trainer.num_env_steps=12"), tmp_path / "whole")
    run(config(*options, "trainer.num_env_steps=0"), tmp_path / "extended")
    before = {file: file.read_bytes() for file in (tmp_path / "extended").glob("checkpoints/*/*")}
    run(config(*options, "trainer.num_env_steps=0"), tmp_path / "extended")
    assert before == {file: file.read_bytes() for file in (tmp_path / "extended").glob("checkpoints/*/*")}
    run(config(*options, "trainer.num_env_steps=12"), tmp_path / "extended")
    assert outcome(tmp_path / "extended") == outcome(tmp_path / "whole")


STOPS = ((1, "fit"), (1, None), (2, None), (3, None), (30, "evaluate"), (9, None), (5, "fit"))


@pytest.mark.parametrize("length", ["trainer.num_env_steps=0", "trainer.num_env_steps=20"])
def test_a_stopped_run_resumes_exactly_without_its_data(
    length: str, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copy(recording, tmp_path / "data.npz"))
    ratio = ("mbpo.data_ratio=0.5", "mbpo.model_rollout_options.reward_penalty=0.3")
    options = config(f"data={data}", OFFLINE[1], length, *ratio, "checkpoint.every_steps=7")
    run(options, tmp_path / "whole")
    updates = []
    for patience, phase in STOPS:
        stop_after(patience, monkeypatch, phase)
        try:
            run(options, tmp_path / "stopped")
        except Interrupted:
            updates.append(json.loads((tmp_path / "stopped" / "summary.json").read_text())["gradient_steps"])
        monkeypatch.undo()
        data.write_bytes(b"no longer what it was")
    assert updates[:5] == [0, 0, 5, 15, 23], "a stop keeps the first updates so far"
    run(options, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_a_model_that_is_not_good_enough_for_data_alone_fails_the_run(
    recording: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunFailed, match="nothing was learned, as the model of the data was not good enough"):
        run(config(f"data={recording}", *OFFLINE, "mbpo.max_relative_error=1e-9"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


@pytest.fixture(scope="module")
def counting() -> Iterator[tuple[Trainer, Config]]:
    """A trainer in an environment with the spaces of the faults."""
    options = make_config(*TINY, *gym_env("tests/Counting-v0"), "data=any.npz")
    with ExitStack() as stack:
        yield build_trainer(options, Logger(), stack), options


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_nothing_is_loaded(
    fault: str, tmp_path: Path, counting: tuple[Trainer, Config]
) -> None:
    arrays, message = FAULTS[fault]
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    trainer, options = counting
    with pytest.raises(ConfigError) as error:
        pretrained.begin(trainer, replace(options, data=str(path)), TRUST)
    assert str(error.value).startswith(f"data={path}: {message}")
    assert "\n" not in str(error.value)
    assert len(trainer.real_buffer) == 0


def swap_flags(arrays: data_sets.Arrays) -> None:
    arrays["terminals"], arrays["timeouts"] = arrays["timeouts"], arrays["terminals"]


def other_rewards(arrays: data_sets.Arrays) -> None:
    arrays["rewards"] = arrays["rewards"] + 1


KNOWN = ("model/reward=known", "env.reward_function=tests.conftest.point_mass_reward")
ENDS = ("model/is_done=known", "env.is_done_function=tests.conftest.point_mass_is_done")
LIMIT = "env.wrappers=[{_target_: gymnasium.wrappers.TimeLimit, max_episode_steps: 20}]"


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (swap_flags, (LIMIT,), "data={}: terminals: all 3 are set after exactly 20 steps"),
        (swap_flags, ENDS, "data={}: model.is_done.function=tests.conftest.point_mass_is_done: in step "),
        (other_rewards, KNOWN, "data={}: model.reward.function=tests.conftest.point_mass_reward: in step 0"),
        (None, ("agent.experience_buffer_length=59",), "data={}: has 60 transitions; agent.experience_buff"),
        (None, gym_env("Pendulum-v1"), "data={}: observations: has shape (60, 1), but must have 3 numbers"),
        (None, gym_env("tests/Counting-v0"), "data={}: observations: has shape (60, 1), but must have 2"),
    ],
)
def test_data_of_another_environment_are_refused(
    change: Callable[[data_sets.Arrays], None] | None,
    overrides: tuple[str, ...],
    message: str,
    recording: Path,
    tmp_path: Path,
) -> None:
    arrays = data_sets.read(str(recording))
    if change is not None:
        change(arrays)
    path = tmp_path / "data.hdf5"
    data_sets.write(path, arrays)
    with pytest.raises(ConfigError) as error:
        check(config(f"data={path}", *overrides), trust=TRUST)
    assert str(error.value).startswith(message.format(path))


def test_a_known_function_may_differ_if_that_is_allowed(recording: Path, tmp_path: Path) -> None:
    arrays = data_sets.read(str(recording))
    other_rewards(arrays)
    data_sets.write(tmp_path / "data.npz", arrays)
    check(config(f"data={tmp_path / 'data.npz'}", *KNOWN, "model.allow_mismatch=true"), trust=TRUST)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npz", "data={}/missing.npz: there is no such file"),
        ("missing", "data={}/missing: no such directory"),
        ("notes.csv", "data={}/notes.csv: must be a run, a Minari data set, or end in .npz, .hdf5, .h5"),
        ("other", "data={}/other: its environment has other spaces: channels (2,) instead of (1,)"),
        ("fresh", "data={}/fresh: "),
    ],
)
def test_what_is_no_data_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.csv").touch()
    if name == "other":
        run(make_config(*TINY, *gym_env("tests/Counting-v0")), tmp_path / "other")
    if name == "fresh":
        run(config("trainer.num_env_steps=5"), tmp_path / "fresh")
        shutil.rmtree(tmp_path / "fresh" / "checkpoints")
    with pytest.raises(ConfigError) as error:
        check(config(f"data={tmp_path / name}"), trust=TRUST)
    assert str(error.value).startswith(message.format(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.num_env_steps=0",), "trainer.num_env_steps=0: needs data=... to learn from"),
        (("mbpo.data_ratio=0.5",), "mbpo.data_ratio=0.5: has no meaning without data"),
        (
            ("data=a.npz", "trainer.num_env_steps=0", "mbpo.first_updates=0"),
            "trainer.num_env_steps=0: needs mbpo.first_updates > 0",
        ),
        (("data=a.npz", *OFFLINE, "mbpo=off"), "trainer.num_env_steps=0: needs mbpo.first_updates > 0, and"),
        (
            ("data=a.npz", "agent.from_run=b", "agent.reset_experience_buffer_before_training=false"),
            "agent.reset_experience_buffer_before_training=false: brings experience of another run, and",
        ),
        (
            ("mbpo.model_rollout_options.reward_penalty=1", "mbpo.training_horizon=2"),
            "mbpo.model_rollout_options.reward_penalty=1: is for generated transitions",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(*overrides)
    assert str(error.value).startswith(message)


def test_a_mistake_ends_the_command_before_anything_is_written(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **FAULTS["nan"][0])  # type: ignore[arg-type]
    words = [*TINY, "env=pendulum", f"data={tmp_path / 'bad.npz'}", f"hydra.run.dir={tmp_path / 'run'}"]
    done = command(*words, cwd=CONF.parent)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"mbpo-train: error: data={tmp_path / 'bad.npz'}: observations: has shape")
    assert not (tmp_path / "run").exists()


def test_a_path_is_stored_whole_and_the_name_of_a_data_set_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config("data=a.npz").data == str(tmp_path / "a.npz")
    assert config("data=pendulum/recorded-v0").data == "pendulum/recorded-v0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--record", "a.csv"], "--record a.csv: must end in .npz or .hdf5 or .h5"),
        (["--record", "no/a.npz"], "--record no/a.npz: no is not a writable directory"),
        (["--record", "a.npz", "--video", "a.gif"], "--video: not allowed with argument --record"),
    ],
)
def test_a_wrong_place_for_a_recording_is_one_line(
    arguments: list[str],
    message: str,
    first: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        evaluate_cli.main([str(first), "--trust", "tests", *arguments])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith(f"mbpo-evaluate: error: {message}")
    assert not list(tmp_path.iterdir())
