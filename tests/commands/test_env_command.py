"""`mbpo-env`: what it finds and answers, and that the preset which it writes trains."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

from mbpo_cli.commands import env as env_cli
from mbpo_cli.commands import train as train_cli
from mbpo_cli.config import rules
from mbpo_cli.config.compose import make_config
from mbpo_cli.envs.environment import Environment
from mbpo_cli.envs.lint import Random, lint
from mbpo_cli.trained.first_model import PIECE, _pieces, of_fit
from tests.conftest import TINY, PointMassEnv, gym_env

SHIP = """
import gymnasium as gym
import numpy as np


class Ship(gym.Env):
    def __init__(self, size=1):
        self.observation_space = gym.spaces.Box(-2, 2, (size,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, self.observation_space.shape)
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.place = np.clip(self.place + 0.3 * action, -2, 2)
        return self.place.astype(np.float32), -float(self.place[0] ** 2), False, False, {}


class Tug(Ship):
    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Discrete(3)

    def step(self, action):
        return super().step(action - 1.0)


class Wreck(Ship):
    def __init__(self):
        self.hull = [][0]


class Blurred(Ship):
    def __init__(self):
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((8, 8, 3), np.uint8), {}


for kind in (Ship, Tug, Blurred, Wreck):
    gym.register(f"{kind.__name__}Lab-v0", kind, max_episode_steps=20)


def reward(obs, action, next_obs):
    return -next_obs[:, 0] ** 2


def wrong(obs, action, next_obs):
    return next_obs[:, 0] ** 2


def never(obs, action, next_obs):
    return 0 * obs[:, 0]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with the file ship_lab.py."""
    (tmp_path / "ship_lab.py").write_text(SHIP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    rules._facts.cache_clear()
    yield tmp_path
    rules._facts.cache_clear()
    sys.modules.pop("ship_lab", None)
    for name in [name for name in gym.registry if name.endswith("Lab-v0") or name == "Ship"]:
        del gym.registry[name]


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run mbpo-env; return its exit code and what it prints."""
    code = 0
    try:
        env_cli.main(list(words))
    except SystemExit as ending:
        code = int(str(ending.code))
    return code, *capsys.readouterr()


def test_a_preset_is_written_that_trains(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("ship_lab:ShipLab-v0", "env.kwargs={size: 2}", "--reward", "ship_lab.reward", "--seconds", "0")
    code, out, _ = answer(capsys, *chosen, "--write", "my_conf/env/ship.yaml")
    assert code == 0
    assert "ok       reward: ship_lab.reward gives what happened in 1,000 steps\n" in out
    written, train = out.splitlines()[-2:]
    assert written == "written to my_conf/env/ship.yaml"
    assert train == "train with: mbpo-train --config-dir my_conf env=ship agent=sac"
    text = (folder / "my_conf/env/ship.yaml").read_text()
    assert yaml.safe_load(text)["env"] == {
        "id": "ship_lab:ShipLab-v0",
        "name": "ship",
        "kwargs": {"size": 2},
        "reward_function": "ship_lab.reward",
    }
    found = make_config(f"hydra.searchpath=[file://{folder}/my_conf]", "env=ship")
    same = make_config(
        *gym_env("ship_lab:ShipLab-v0"), "trainer.num_env_steps=10_000", "env.kwargs={size: 2}"
    )
    assert (found.agent, found.model.transition, found.mbpo) == (same.agent, same.model.transition, same.mbpo)
    assert found.agent.hidden_sizes == [64, 64]  # it was made for what it tells, from the current directory
    for line in ("agent.num_warm_start_steps=1000", "mbpo.model_rollout_options.horizon=10"):
        assert f"  #   {line}\n" in text

    monkeypatch.setattr(sys, "argv", [*shlex.split(train.partition(": ")[2]), *TINY, "hydra.run.dir=run"])
    train_cli.main()
    assert json.loads((folder / "run/summary.json").read_text())["status"] == "done"


def test_discrete_actions_have_their_agent_and_findings_can_be_read_by_programs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = answer(
        capsys, "TugLab-v0", "env.module=ship_lab", "--is-done", "ship_lab.never", "--json", "--seconds", "0"
    )
    found = json.loads(out)
    assert code == 0
    assert found["train"] == (
        "mbpo-train env=gym env.id=TugLab-v0 env.module=ship_lab env.is_done_function=ship_lab.never "
        "model/is_done=known agent=dqn trainer.num_env_steps=10_000"
    )
    levels = [each["level"] for each in found["findings"]]
    assert levels == sorted(levels, key=["ok", "note", "warning", "error"].index)
    (is_done,) = (each for each in found["findings"] if each["about"] == "is_done")
    assert is_done["level"] == "note"
    assert is_done["text"].endswith("in 1,000 steps, none of them terminal; test it where episodes end")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "ship_lab:ShipLab-v0 --reward ship_lab.wrong",
            "error    reward: model.reward.function=ship_lab.wrong",
        ),
        (
            "ship_lab:Ship",
            'error    id: a class; add gymnasium.register("Ship-v0", Ship, max_episode_steps=1_0',
        ),
        (
            "ship_lab:WreckLab-v0",
            "error    cannot be made: env.id=ship_lab:WreckLab-v0: list index out of rang",
        ),
        (
            "ship_lab:BlurredLab-v0",
            "error    spaces: its observations are images (uint8 of shape (8, 8, 3)),",
        ),
    ],
)
def test_what_prevents_training_comes_last_and_no_preset_is_written(
    words: str, line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = ("env.kwargs={max_episode_steps: 20}",) if words.endswith(":Ship") else ()
    before = sorted(folder.iterdir())
    code, out, err = answer(
        capsys, *words.split(), *limited, "--seconds", "0", "--write", "my_conf/env/ship.yaml"
    )
    assert (code, err) == (1, "")
    assert out.splitlines()[-1].startswith(line)
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("NoShip-v0", "env.id=NoShip-v0: Environment `NoShip` doesn't exist; for one of your own add env.mo"),
        ("no_ship:Ship-v0", "env.id=no_ship:Ship-v0: there is no such module; it must lie in {}"),
        ("ship_lab:NoShip-v0", "env.id=ship_lab:NoShip-v0: Environment `NoShip` doesn't exist"),
        ("SHIP env.kwargs={height:3}", "env.kwargs={'height': 3}: not accepted by ship_lab:ShipLab-v0"),
        ("env.id=SHIP", "env.id=ship_lab:ShipLab-v0: must be an id, such as my_lab.tank:Tank-v0"),
        ("SHIP env.sise=3", "env.sise=3: no such option"),
        (
            "SHIP --seconds 0 agent=dqn",
            "agent=dqn: must be an option of the environment, as 'env.kwargs={size: 3}'",
        ),
        ("SHIP --reward ship_lab.profit", "env.reward_function=ship_lab.profit: module 'ship_lab' has no"),
        ("SHIP --reward torch.cat", "model.reward.function=torch.cat: does not fit ship_lab:ShipLab-v0"),
        ("SHIP --seconds x", "--seconds: x: must be a whole number from 0 to 3,600; see mbpo-env --help"),
        ("SHIP --seconds 0 --picture p.png", "--picture p.png: shows a first model; --seconds must not be 0"),
        ("SHIP --picture p.jpg", "--picture p.jpg: must end in .png"),
        ("SHIP --write ship.yaml", "--write ship.yaml: must be as my_conf/env/NAME.yaml"),
        ("SHIP --write env/a.b.yaml", "--write env/a.b.yaml: must be as my_conf/env/NAME.yaml"),
        ("SHIP --write env/hopper.yaml", "--write env/hopper.yaml: this program has env=hopper"),
        ("SHIP --write env/old.yaml", "--write env/old.yaml: exists; choose another name, or remove it"),
        ("SHIP --write /proc/x/env/a.yaml", "--write /proc/x/env/a.yaml: /proc is not a writable directory"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    words: str, line: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "env").mkdir()
    (folder / "env/old.yaml").write_text("id: mine\n")
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != "/proc")  # root may write everywhere
    code, out, err = answer(capsys, *words.replace("SHIP", "ship_lab:ShipLab-v0").split())
    assert (code, out) == (2, "")
    (said,) = err.splitlines()
    assert said.startswith(f"mbpo-env: error: {line.replace('{}', str(folder))}")
    assert {path.name for path in folder.rglob("*") if "__pycache__" not in str(path)} == {
        *("ship_lab.py", "env", "old.yaml")
    }


@pytest.mark.slow
def test_a_first_model_of_a_simple_environment_is_good_and_can_be_looked_at(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = answer(capsys, "ship_lab:ShipLab-v0", "--seconds", "20", "--picture", "p.png", "--json")
    found = json.loads(out)
    assert code == 0
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")
    (model,) = (each for each in found["findings"] if each["about"] == "model")
    assert model["level"] == "ok"
    assert model["text"].startswith("fitted to 800 steps in ")
    assert model["text"].endswith(" after 10; a run would use it")
    assert found["model"]["error_by_element"][0] < 0.3
    assert len(found["model"]["error_by_steps_ahead"]) == 10


def test_a_fit_that_fails_or_has_no_time_says_so() -> None:
    config = make_config(*gym_env("tests/PointMass-v0"))
    env = Environment(PointMassEnv())
    _, played = lint(env, lambda: Environment(PointMassEnv()), 0, 1, False)
    found = of_fit(config, env.spaces, played, 0.001)
    assert found == (("note", "model", "not fitted within 0.001 s; raise --seconds"), {}, None)
    huge = [
        Random(start, [(action, step._replace(reward=1e30 * step.reward)) for action, step in steps])
        for start, steps in played
    ]
    finding, errors, picture = of_fit(config, env.spaces, huge, 60)
    assert (finding.level, errors, picture) == ("warning", {}, None)
    assert "is not finite" in finding.text
    few = [Random(played[0].start, played[0].steps[:9])]
    assert of_fit(config, env.spaces, few, 60)[0].text == "there are too few steps for one"


def test_long_episodes_are_cut_and_no_step_is_lost() -> None:
    env = Environment(gym.make("Pendulum-v1", max_episode_steps=PIECE + 20))
    _, played = lint(env, lambda: Environment(gym.make("Pendulum-v1")), 0, 1, False)
    pieces = _pieces(played)
    assert [len(piece) for piece in pieces[:4]] == [PIECE, 20, PIECE, 20]
    assert sum(map(len, pieces)) == 1_000
    assert torch.equal(pieces[0].obs[-1], pieces[1].obs[0])
    assert torch.equal(pieces[1].obs[-1], played[0].steps[-1][1].obs)
    np.testing.assert_allclose(pieces[1].reward, [step.reward for _, step in played[0].steps[PIECE:]])


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from mbpo_cli.commands.env import _parser; _parser().format_help(); "
        "assert not {'torch', 'gymnasium', 'hydra', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
