"""A first environment of one's own, in a file of the current directory: it runs, and its faults are found."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import pytest
import yaml

from mbpo_cli.config import rules
from mbpo_cli.config.compose import composed, make_config
from mbpo_cli.failures import place_of
from mbpo_cli.options import import_named
from tests.conftest import CONF, TINY, Said

TANK = """
import gymnasium as gym
import numpy as np


class Tank(gym.Env):
    def __init__(self, size=2.0):
        self.observation_space = gym.spaces.Box(0, 2, (2,), np.float32)
        self.action_space = gym.spaces.Box(0, 5, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.level = 1.0
        return self.observed(), {}

    def observed(self):
        return np.array([self.level, 1.0], np.float32)

    def step(self, action):
        self.level = float(np.clip(self.level + action[0] - 2.5, 0, 2))
        return self.observed(), -self.level, False, False, {}


class Four(Tank):
    def step(self, action):
        return super().step(action)[:4]


class Bare(Tank):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[:1]


class Faulty(Tank):
    def step(self, action):
        return self.flow(action)

    def flow(self, action):
        return [0.1][3]


class Unmade(Tank):
    def __init__(self):
        self.pump = None + 1


for kind in (Tank, Four, Bare, Faulty, Unmade):
    gym.register(f"{kind.__name__}Lab-v0", kind, max_episode_steps=20)
"""
BRIEF = (*TINY, "mbpo=off", "trainer.num_env_steps=10")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with the file tank_lab.py."""
    (tmp_path / "tank_lab.py").write_text(TANK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield tmp_path
    for known in (sys.modules, gym.registry):
        for name in [name for name in known if name.endswith(("_lab", "Lab-v0"))]:
            del known[name]


Answer = Callable[..., tuple[int, str]]


@pytest.fixture
def answer(folder: Path, mbpo_train: Said) -> Answer:
    """Run mbpo-train; return its exit code and what it says on standard error."""

    def said(*words: str) -> tuple[int, str]:
        code, _, errors = mbpo_train(*words)
        return code, errors

    return said


@pytest.mark.parametrize("choice", ["env.id=TankLab-v0 env.module=tank_lab", "env.id=tank_lab:TankLab-v0"])
def test_a_file_in_the_current_directory_is_found(choice: str, answer: Answer, folder: Path) -> None:
    assert answer("env=gym", *choice.split(), *BRIEF) == (0, "")
    (run,) = (folder / "outputs").glob("*/*")
    assert f"mbpo-evaluate {run} --trust tank_lab\n" in (run / "train.log").read_text()
    assert run.name.endswith(f"_sac_{choice.split()[0].removeprefix('env.id=').replace(':', '_')}_seed0")


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (
            "env=gym env.id=TankLab-v0",
            "`TankLab` doesn't exist; for one of your own add env.module=MODULE, which registers it",
        ),
        ("env=gym env.id=lab/Tank-v0", "Namespace lab not found"),
        ("env=gym env.id=lab/Tank-v0", "; for one of your own add env.module=MODULE, which registers it"),
        ("env=gym env.id=ThankLab-v0 env.module=tank_lab", "; env.module=tank_lab does not register it"),
        (
            "env=gym env.id=TankLab-v0 env.module=thank_lab",
            "env.module=thank_lab: there is no such module; it must lie in {} or in a folder of PYTHONPATH",
        ),
        (
            "env=gym env.id=thank_lab:TankLab-v0",
            "env.id=thank_lab:TankLab-v0: there is no such module; it must lie in {}",
        ),
        (
            "env=pendulum env.id=tank_lab:TankLab-v0",
            "model/reward=deterministic learns it, and env=gym env.id=tank_lab:TankLab-v0 assumes nothing",
        ),
        ("env=gym env.id=tank_lab:UnmadeLab-v0", " at tank_lab.py:44 in __init__"),
        (
            "env=gym env.id=tank_lab:TankLab-v0 env.kwargs={height: 3}",
            "env.kwargs={'height': 3}: not accepted by tank_lab:TankLab-v0",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_what_is_missing(choice: str, line: str, answer: Answer) -> None:
    words = choice.replace("height: 3", "height:3").split()
    code, said = answer(*words)
    assert code == 2
    assert said.count("\n") == 1
    assert line.replace("{}", str(Path.cwd())) in said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Faulty", "step 1 of the episode: IndexError: list index out of range at tank_lab.py:39 in flow, "),
        ("Faulty", "in flow, from tank_lab.py:36 in step"),
        ("Four", "(expected 5, got 4); a step must return observation, reward, terminated, truncated, info"),
        ("Bare", "a reset must return observation, info"),
    ],
)
def test_a_fault_is_found_in_ones_own_file(
    name: str,
    reason: str,
    answer: Answer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, said = answer("env=gym", f"env.id=tank_lab:{name}Lab-v0", *BRIEF)
    assert code == 3
    log = next(Path.cwd().glob("outputs/*/*/train.log")).read_text()
    assert reason in log
    assert "Traceback" not in log + said
    assert "Error executing job" not in said


def test_a_file_that_python_cannot_read_is_named(answer: Answer, folder: Path) -> None:
    (folder / "broken_lab.py").write_text("def step(:\n")
    code, said = answer("env=gym", "env.id=TankLab-v0", "env.module=broken_lab")
    assert (code, said.count("\n")) == (2, 1)
    assert "(broken_lab.py, line 1)" in said


def test_a_file_of_ones_own_names_only_what_it_has_to_say(folder: Path) -> None:
    (folder / "my_conf/env").mkdir(parents=True)
    (folder / "my_conf/env/tank.yaml").write_text("id: tank_lab:TankLab-v0\n")
    config = make_config(f"hydra.searchpath=[file://{folder}/my_conf]", "env=tank")
    assert (config.env.name, config.env.kwargs, config.env.wrappers) == ("tank_lab:TankLab-v0", None, None)


def test_the_rule_knows_an_environment_whose_id_names_a_file_of_the_current_directory(folder: Path) -> None:
    rules._facts.cache_clear()
    assert make_config("env=gym", "env.id=tank_lab:TankLab-v0").agent.hidden_sizes == [64, 64]


def test_no_shipped_file_repeats_what_need_not_be_said() -> None:
    usual = yaml.safe_load((CONF / "train.yaml").read_text())["env"]
    for path in (CONF / "env").glob("*.yaml"):
        own = yaml.safe_load(path.read_text()).get("env", {})
        assert not {key for key, value in own.items() if key in usual and value == usual[key]}, path


def test_a_configuration_that_is_shown_is_checked(answer: Answer, folder: Path) -> None:
    (folder / "my_conf/env").mkdir(parents=True)
    (folder / "my_conf/env/tank.yaml").write_text(
        "# @package _global_\ndefaults: [gym, _self_]\n"
        "env: {id: 'tank_lab:TankLab-v0', kwarg: {}}\nagent: {mini_batch_size: x}\n"
    )
    code, said = answer("--config-dir", "my_conf", "env=tank", "--cfg", "job")
    assert code == 2
    assert "agent.mini_batch_size=x: must be a whole number" in said
    assert "; also env.kwarg={}: no such option; did you mean env.kwargs?" in said
    assert answer("env=gym", "env.id=tank_lab:TankLab-v0", "--cfg", "job") == (0, "")


def test_the_current_directory_hides_no_other_module(folder: Path) -> None:
    (folder / "json.py").write_text("raise SystemExit('executed')")
    import_named("json.decoder")
    assert str(folder) not in sys.path
    with pytest.raises(ModuleNotFoundError, match="no_such_lab"):
        import_named("no_such_lab.part")
    assert str(folder) not in sys.path
    assert import_named("tank_lab").Tank.__name__ == "Tank"
    assert sys.path[-1] == str(folder)


def test_a_module_that_ones_own_file_needs_is_named(folder: Path) -> None:
    (folder / "needy_lab.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        import_named("needy_lab")


def test_an_error_outside_ones_own_code_has_no_place() -> None:
    with pytest.raises(gym.error.Error) as caught:
        gym.make("NoSuchLab-v0")
    assert "test_own_environment.py" in place_of(caught.value)
    assert place_of(caught.value.with_traceback(caught.tb.tb_next)) == ""


def test_what_ends_a_warm_start_too_late_is_named(
    folder: Path, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        answer("env=gym", "env.id=tank_lab:TankLab-v0", *BRIEF, "agent.num_warm_start_steps=1000")
    log = next(Path.cwd().glob("outputs/*/*/train.log")).read_text()
    assert "the first agent.num_warm_start_steps=1,000 actions are random" in log
    assert "the run has trainer.num_env_steps=10;" in log


def test_the_directory_of_a_run_is_named_by_its_environment() -> None:
    config = composed("env=gym", "env.id=my_lab/Tank-v0")
    pattern = str(composed().hydra.run.dir)
    assert pattern.endswith("_sac_pendulum_seed0")
    assert str(config.hydra.run.dir).endswith("_sac_my_lab_Tank-v0_seed0")
