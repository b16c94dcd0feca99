"""`mbpo-evaluate`, and loading what runs have learned."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from mbpo_cli.commands import evaluate as evaluate_cli
from mbpo_cli.commands.arguments import running
from mbpo_cli.config.compose import make_config
from mbpo_cli.evaluation.evaluate import Outcome
from mbpo_cli.failures import SIGNALS, ConfigError, EnvironmentFailed, Interrupted, NoUsableCheckpoint
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.run import run
from mbpo_cli.trained.episodes import play_in_model
from mbpo_cli.trained.load import load
from mbpo_cli.trained.video import Film
from mbpo_cli.types import Transitions
from tests.conftest import TINY, gym_env


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("use") / "run"
    run(make_config(*TINY, "env=pendulum"), path)
    return path


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best checkpoint is not its newest."""
    path = tmp_path_factory.mktemp("use") / "point"
    run(make_config(*TINY, *gym_env("tests/PointMass-v0"), "trainer.num_env_steps=80", "seed=1"), path)
    return path


@pytest.fixture(scope="module")
def pole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with short episodes."""
    path = tmp_path_factory.mktemp("use") / "pole"
    run(make_config(*TINY, "env=cartpole", "agent=dqn"), path)
    return path


Command = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command, and return what it stored and printed."""

    def command(path: Path, *arguments: str) -> dict[str, Any]:
        output = tmp_path / "evaluation.json"
        evaluate_cli.main([str(path), "--output", str(output), *arguments])
        return {**json.loads(output.read_text()), "printed": capsys.readouterr().out}

    return command


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error message of the command for wrong arguments."""
    capsys.readouterr()  # the log of earlier training
    with pytest.raises(SystemExit) as ending:
        evaluate_cli.main([*map(str, arguments)])
    assert ending.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    # If another test has configured logging, warnings may come first.
    *warnings, line = said.err.splitlines()
    assert not any(warning.startswith("mbpo-evaluate: error") for warning in warnings)
    assert line.startswith("mbpo-evaluate: error: ")
    return line.removeprefix("mbpo-evaluate: error: ")


def test_the_last_evaluation_of_a_run_is_repeated_bit_for_bit(pendulum: Path, evaluated: Command) -> None:
    summary = json.loads((pendulum / "summary.json").read_text())
    found = evaluated(pendulum, "--episodes", "2")
    assert found["real"]["return_mean"] == summary["eval_return_mean"]
    assert (found["env_steps"], found["seed"], found["in_model"]) == (20, 0, None)
    assert [episode["length"] for episode in found["real"]["episodes"]] == [200, 200]
    assert f"{found['real']['episodes'][1]['return']:.1f}" in found["printed"]


def test_the_best_checkpoint_has_the_return_of_the_best_evaluation(point: Path, evaluated: Command) -> None:
    summary = json.loads((point / "summary.json").read_text())
    assert summary["best_eval_return_mean"] > summary["eval_return_mean"]
    best = evaluated(point, "--best", "--episodes", "2", "--trust", "tests")
    newest = evaluated(point, "--episodes", "2", "--trust", "tests")
    assert best["real"]["return_mean"] == summary["best_eval_return_mean"]
    assert newest["real"]["return_mean"] == summary["eval_return_mean"]
    assert best["env_steps"] < newest["env_steps"] == 80


@pytest.mark.parametrize("damage", ["removed", "damaged"])
def test_the_stored_policy_is_used_if_no_checkpoint_is_usable(
    damage: str, pendulum: Path, evaluated: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(pendulum, tmp_path / "copy")
    if damage == "removed":
        shutil.rmtree(copy / "checkpoints")
    else:
        for manifest in copy.glob("checkpoints/*/manifest.json"):
            manifest.write_text("{}")
    found = evaluated(copy, "--episodes", "2")
    assert found["source"] == "policy.pt"
    assert found["real"]["return_mean"] == evaluated(pendulum, "--episodes", "2")["real"]["return_mean"]
    with pytest.raises(ConfigError if damage == "removed" else NoUsableCheckpoint):
        load(copy, best=True)
    assert "only policy.pt is left" in refused(capsys, copy, "--in-model")


def test_a_policy_of_another_network_is_refused(pendulum: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pendulum, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["agent"]["hidden_sizes"] = [9]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="do not fit"):
        load(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ConfigError, match="do not fit"):
        load(copy)
    (copy / "policy.pt").write_bytes(b"no policy")
    with pytest.raises(NoUsableCheckpoint, match=r"policy\.pt: cannot be read"):
        load(copy)
    (copy / "policy.pt").unlink()
    with pytest.raises(ConfigError, match=r"saved neither a checkpoint nor policy\.pt yet"):
        load(copy)


def test_a_run_from_a_gpu_is_loaded_on_a_cpu(pendulum: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mbpo_cli.storage.checkpoint import Checkpoint, Checkpoints

    read = Checkpoints.read

    def on_gpu(self: Checkpoints, best: bool = False) -> Checkpoint | None:
        checkpoint = read(self, best)
        assert checkpoint is not None
        checkpoint.state["agent"]["generator"] = torch.zeros(16, dtype=torch.uint8)  # the size of CUDA's
        return checkpoint

    expected = load(pendulum).agent.act(torch.ones(1, 3))
    monkeypatch.setattr(Checkpoints, "read", on_gpu)
    assert torch.equal(load(pendulum).agent.act(torch.ones(1, 3)), expected)


def test_a_run_in_bfloat16_is_used_in_float32(pendulum: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pendulum, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**config, "precision": "bfloat16"}))
    obs = torch.randn(100, 3)
    assert torch.equal(load(copy).agent.act(obs), load(pendulum).agent.act(obs))
    assert load(copy).config.precision == "float32"


def test_runs_of_versions_that_lacked_an_option_are_read(pendulum: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pendulum, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    del config["trainer"]["num_score_evaluations"], config["compile"], config["precision"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert load(copy).config.trainer.num_env_steps == 20
    del config["agent"]["discount_factor"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"agent\.discount_factor: needs a value"):
        load(copy)
    config["agent"]["discount_factor"] = 0.9
    wrong: list[Any] = [5, None, [], {"num_env_steps": {}}]
    for broken in wrong:
        config["trainer"] = broken
        (copy / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ConfigError, match="trainer"):
            load(copy)


def test_keyword_arguments_of_the_environment_can_be_changed(
    pendulum: Path, evaluated: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, light = (evaluated(pendulum, "--episodes", "1", "--env-kwargs", f"{{g: {g}}}") for g in (10, 1))
    assert usual["real"] == evaluated(pendulum, "--episodes", "1")["real"] != light["real"]
    assert light["env_kwargs"]["g"] == 1
    assert "--env-kwargs {\"gg\": 5}: env.kwargs={'gg': 5}: not accepted by Pendulum" in refused(
        capsys, pendulum, "--env-kwargs", "{gg: 5}"
    )


def test_kwargs_that_change_the_spaces_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    run(make_config(*TINY, "env=hopper", "trainer.num_env_steps=6"), path)
    changed = "{exclude_current_positions_from_observation: false}"
    assert "changes the spaces, for which the policy was not trained" in refused(
        capsys, path, "--env-kwargs", changed
    )
    assert not (path / "evaluation.json").exists()


def test_infinite_bounds_are_stored_as_text(tmp_path: Path, evaluated: Command) -> None:
    path = tmp_path / "run"
    run(make_config(*TINY, "env=hopper", "trainer.num_env_steps=6"), path)
    found = evaluated(path, "--episodes", "1", "--env-kwargs", "{healthy_z_range: [0.5, .inf]}")
    assert found["env_kwargs"]["healthy_z_range"] == [0.5, "inf"]


def test_seeds_choose_the_episodes(pendulum: Path, evaluated: Command) -> None:
    first, again, other = (
        evaluated(pendulum, "--episodes", "3", "--seed", seed)["real"] for seed in ("5", "5", "6")
    )
    assert first == again != other
    assert len({episode["return"] for episode in first["episodes"]}) == 3


def test_the_model_plays_from_the_real_first_observations(pendulum: Path, evaluated: Command) -> None:
    found = evaluated(pendulum, "--episodes", "3", "--in-model")
    assert [episode["length"] for episode in found["in_model"]["episodes"]] == [200] * 3
    assert found["in_model"]["return_mean"] != found["real"]["return_mean"]
    assert "in model: return" in found["printed"]


class Counting(EnvironmentModel):
    """A model in which o' = o + 1 and r = o, which terminates at 3 and predicts NaN after 100."""

    def __init__(self) -> None:
        pass

    def step(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Transitions:
        next_obs = torch.where(obs >= 100, torch.nan, obs + 1)
        return Transitions(obs, action, obs[:, 0], next_obs, (next_obs[:, 0] == 3).float())


def test_episodes_in_the_model_end_at_termination_time_limit_or_nan(
    g: torch.Generator,
) -> None:
    real = [Outcome(torch.tensor([start]), 0.0, 4) for start in (0.0, 1.0, 10.0, 99.0)]

    def policy(obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        assert explore is None, "the policy is greedy"
        return obs

    limited = play_in_model(Counting(), policy, real, 5, g)
    assert [episode.length for episode in limited] == [3, 2, 5, 2]
    assert [episode.total_reward for episode in limited[:3]] == [0 + 1 + 2, 1 + 2, 10 + 11 + 12 + 13 + 14]
    assert limited[3].total_reward != limited[3].total_reward
    unlimited = play_in_model(Counting(), policy, real, None, g)
    assert [episode.length for episode in unlimited] == [3, 2, 4, 2], "as long as the real one"


def test_a_run_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(make_config(*TINY, "mbpo=off"), tmp_path / "run")
    assert "has no model" in refused(capsys, tmp_path / "run", "--in-model")


def frames_of(path: Path) -> tuple[set[bytes], int]:
    """The distinct frames of a film, and its length in milliseconds."""
    seen, milliseconds = set(), 0
    with Image.open(path) as film:
        assert film.size == (600, 400)
        for frame in range(getattr(film, "n_frames", 1)):
            film.seek(frame)
            seen.add(film.convert("RGB").tobytes())
            milliseconds += film.info["duration"]
    return seen, milliseconds


def test_a_film_plays_in_real_time(pole: Path, evaluated: Command, tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    found = evaluated(pole, "--episodes", "3", "--video", str(path), "--video-episodes", "2")
    lengths = [episode["length"] for episode in found["real"]["episodes"][:2]]
    # Every second step at 50 steps per second, and always the first and the last.
    expected = sum(1 + length // 2 + length % 2 for length in lengths)
    seen, milliseconds = frames_of(path)
    assert len(seen) > expected - 3, "the pole moves"
    assert milliseconds == 40 * expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation.json", "film.gif"]
    evaluated(pole, "--episodes", "2", "--video", str(path), "--steps-per-second", "10")
    assert frames_of(path)[1] == 100 * (1 + lengths[0]), "every step at 10 steps per second"
    unseen = evaluated(pole, "--episodes", "3")["real"]["episodes"]
    assert [episode["length"] for episode in unseen] == [e["length"] for e in found["real"]["episodes"]]


def test_a_film_as_mp4(pole: Path, tmp_path: Path, evaluated: Command) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")
    evaluated(pole, "--episodes", "1", "--video", str(tmp_path / "film.mp4"))
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"


def test_a_failed_episode_leaves_no_film(tmp_path: Path) -> None:
    def film() -> None:
        with Film(tmp_path / "film.gif", 30) as film:
            film.add(np.zeros((4, 4, 3), np.uint8))
            raise RuntimeError("fragile")

    with pytest.raises(RuntimeError, match="fragile"):
        film()
    assert list(tmp_path.iterdir()) == []
    assert [Film(tmp_path / name, 125).stride for name in ("a.gif", "a.mp4")] == [4, 3]


WRONG = [
    (["--episodes", "0"], "--episodes: 0: must be a whole number from 1 to 10,000"),
    (["--episods", "3"], "unrecognized arguments: --episods 3"),
    (["--seed", "x"], "--seed: x: must be a whole number"),
    (["--env-kwargs", "5"], "--env-kwargs: 5: must be a mapping"),
    (["--env-kwargs", "{a: [}"], "--env-kwargs: {a: [}: must be a mapping"),
    (["--video", "film.avi"], "--video film.avi: must end in .gif or .mp4"),
    (["--video", "/nowhere/film.gif"], "/nowhere is not a writable directory"),
    (["--output", "{run}/summary.json"], "summary.json: belongs to the run"),
    (["--output", "{run}/checkpoints/a.json"], "belongs to the run"),
    (["--output", "evaluation.txt"], "--output evaluation.txt: must end in .json"),
    (["--video", "a.gif", "--render", "human"], "not allowed with"),
    (["--render", "human"], "--render human: there is no screen"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    pendulum: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in evaluate_cli.SCREENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in pendulum.rglob("*")}
    said = refused(capsys, pendulum, *(argument.replace("{run}", str(pendulum)) for argument in arguments))
    assert message in said
    assert {path: path.stat().st_mtime_ns for path in pendulum.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


def test_no_run_and_an_environment_that_cannot_render(
    point: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, tmp_path).startswith(f"{tmp_path}: not a run directory")
    film = tmp_path / "film.gif"
    said = refused(capsys, point, "--trust", "tests", "--video", film)
    assert said.startswith("--video: tests/PointMass-v0 cannot render in mode rgb_array")
    assert not film.exists()


def test_missing_extras_are_named(
    pendulum: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    hidden = "imageio_ffmpeg"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == hidden else find(name))
    assert "pip install 'mbpo-cli[video]'" in refused(capsys, pendulum, "--video", tmp_path / "film.mp4")


def test_code_that_a_run_names_is_imported_only_if_trusted(
    pendulum: Path, evaluated: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    copy = shutil.copytree(pendulum, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["env"]["module"] = "somebody.code"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "somebody").mkdir()
    (tmp_path / "somebody" / "code.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert "--trust somebody lets it be imported" in refused(capsys, copy)
    assert "somebody" not in sys.modules
    assert evaluated(copy, "--trust", "somebody", "--episodes", "1")["env"] == "Pendulum-v1"
    assert "somebody.code" in sys.modules


def test_a_window_shows_all_episodes_in_turn(
    pole: Path, monkeypatch: pytest.MonkeyPatch, evaluated: Command
) -> None:
    from mbpo_cli.build import build_env
    from mbpo_cli.trained import video

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    made: list[str | None] = []

    def spy(config: Any, render_mode: str | None = None) -> Any:
        made.append(render_mode)
        return build_env(config, render_mode)

    monkeypatch.setattr(video, "build_env", spy)
    found = evaluated(pole, "--episodes", "2", "--render", "human")
    assert made.count("human") == 2, "each episode has an environment of its own"
    assert len(found["real"]["episodes"]) == 2


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (ConfigError("--seed x: is\nwrong"), 2, "error: --seed x: is wrong"),
        (EnvironmentFailed("broke"), 3, "error: broke"),
        (NoUsableCheckpoint("gone"), 5, "error: gone"),
        (OSError(28, "No space left on device"), 6, "error: [Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (Interrupted(signal.SIGTERM), 143, "error: interrupted"),
    ],
)
def test_exit_codes_are_those_of_training(
    error: BaseException, exit_code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ending:
        running("mbpo-evaluate", fail)
    assert ending.value.code == exit_code
    assert capsys.readouterr().err == f"mbpo-evaluate: {said}\n"


def test_help_does_not_import_torch() -> None:
    program = (
        "import sys\n"
        "from mbpo_cli.commands import evaluate, export, model\n"
        "for main in evaluate.main, export.main, model.main:\n"
        "    try: main(['--help'])\n"
        "    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "--in-model" in printed.stdout
    assert "--format" in printed.stdout
    assert "--horizon" in printed.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_a_command_wherever_it_is(number: signal.Signals, tmp_path: Path) -> None:
    def film() -> None:
        with Film(tmp_path / "film.gif", 30) as film:
            film.add(np.zeros((4, 4, 3), np.uint8))
            signal.raise_signal(number)
            raise AssertionError("the command goes on")

    handlers = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(SystemExit) as ending:
        running("mbpo-evaluate", film)
    assert ending.value.code == (130 if number == signal.SIGINT else 143)
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


def test_an_evaluation_without_a_time_limit_is_refused(
    pole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, pole, "--env-kwargs", "{max_episode_steps: -1}")
    assert said.startswith("--env-kwargs: episodes have no time limit (random episodes ended by termination")
    assert "add --env-kwargs '{max_episode_steps: 1000}'" in said
