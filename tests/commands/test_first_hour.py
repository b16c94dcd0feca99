"""What a person types in the first hour: each mistake is answered with what was typed and what to type."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import mbpo_cli
from mbpo_cli.commands import train as cli
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.suggest import ALIASES
from mbpo_cli.config.typed import options_in, typed
from mbpo_cli.failures import ConfigError
from mbpo_cli.storage import records
from tests.conftest import Refusal


@pytest.mark.parametrize(
    ("words", "line"),
    [
        # Options as flags.
        ("--agent sac", "unrecognized arguments: --agent; options have no dashes: write agent=sac"),
        ("--env=hopper seed=1", "--env=hopper; options have no dashes: write env=hopper"),
        ("--num-env-steps 3", "options have no dashes: write num_env_steps=3"),
        ("--cofig-dir x", "--cofig-dir; did you mean --config-dir?"),
        ("seed=1 -m agent=sac", "agent=sac; flags such as -m come before all options or after them"),
        # Spaces, quotes and brackets.
        ("agent sac", "agent sac: cannot be read; write agent=sac"),
        ("seed = 3", "seed = 3: cannot be read; write seed=3"),
        ("env=cartpole seed= 3", "seed= 3: cannot be read; write seed=3"),
        ("env.kwargs={g: 5} seed=3", "env.kwargs={g: 5}: cannot be read; write 'env.kwargs={g: 5}'"),
        ("agent.hidden_sizes=[64, 64]", "write 'agent.hidden_sizes=[64, 64]'"),
        ("agent.hidden_sizes=[64 64]", "write 'agent.hidden_sizes=[64,64]'"),
        ("agent.hidden_sizes=(64,64)", "write 'agent.hidden_sizes=[64,64]'"),
        ("env.kwargs={'g': 5}", "write 'env.kwargs={g: 5}'"),
        ("env.kwargs={g=5, l=2}", "write 'env.kwargs={g: 5, l: 2}'"),
        ("-m seed=range(0, 5)", "write 'seed=range(0, 5)'"),
        ("agent.hidden_sizes=64 64", "64: needs a key and a value, as in seed=1"),
        ("seed==3", "seed==3: cannot be read; write seed=3"),
        ("env:cartpole", "env:cartpole: cannot be read; write env=cartpole"),
        ("trainer/default", "trainer/default: needs a key and a value"),
        # Numbers.
        (
            "mbpo.real_ratio=20%",
            "in the mini-batch: ceil(M R) of M; with 1 no model is built); did you mean 0.2?",
        ),
        ("trainer.num_env_steps=300k", "did you mean 300000?"),
        ("agent.discount_factor=0,99", "or decimals with a point"),
        ("trainer.num_env_steps=10,000", "or thousands without commas"),
        (
            "agent.critic_optimizer.learn_rate=1e-3x",
            "agent.critic_optimizer.learn_rate=1e-3x: must be a number from 0 to 1",
        ),
        # Groups and options in each other's place.
        ("model=gaussian", "did you mean model/reward=gaussian or model/transition=gaussian?"),
        (
            "model.transition=gaussian",
            "with a slash, model/transition=...; did you mean model/transition=gaus",
        ),
        ("agent.exploration=ou", "did you mean agent/exploration=ornstein_uhlenbeck?"),
        ("mbpo/real_ratio=0.3", "mbpo/real_ratio=0.3: no such group; did you mean mbpo.real_ratio?"),
        ("agent=sac agent/exploration=gaussian", "agent/exploration=gaussian: agent=sac has no such part"),
        ("agent/nothing=3", "no such group; known are "),
        ("train=1", "train=1: no such option or group; the nearest group is trainer, available: default"),
        ("mbpo=true", "mbpo=true: no such choice; did you mean mbpo=on?"),
        ("env=tank", "your own: --config-dir FOLDER, for FOLDER/env/tank.yaml"),
        (
            "env=Acrobot-v1",
            "for any environment of Gymnasium: env=gym env.id=Acrobot-v1;",
        ),
        # Names of other programs.
        ("steps=300", "steps=300: no such option; did you mean trainer.num_env_steps?"),
        ("agent.gamma=0.9", "did you mean agent.discount_factor?"),
        ("lr=1", "did you mean agent.actor_optimizer.learn_rate or agent.critic_optimizer.learn_rate or"),
        ("episodes=10", "did you mean trainer.max_episodes?"),
        ("agent.dropout=0.1", "did you mean agent.critics.dropout?"),
        # Runs.
        ("resume=outputs/nope", "resume=outputs/nope: no such directory"),
        ("resume=/etc", "resume=/etc: not a run directory, as it has no config.yaml"),
    ],
)
def test_a_mistake_is_answered_with_what_to_type(words: str, line: str, refused: Refusal) -> None:
    assert line in refused(*words.split(" "))


def test_a_word_in_quotes_that_cannot_be_read_is_mended_too(refused: Refusal) -> None:
    assert "write 'env.kwargs={g: 5}'" in refused('env.kwargs={"g": 5}')


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config("seed=x", "threads=0", "agent.discount_factor=2", "mbpo.real_ratio=3", "device=3")
    first, second, third, others = str(caught.value).split("; also ")
    assert first.startswith("seed=x: must be a whole number")
    assert second.startswith("device=3: must be printable text")
    assert third.startswith("threads=0: must be")
    assert others == "wrong: agent.discount_factor, mbpo.real_ratio"


def test_an_option_and_one_that_takes_its_value_are_one_mistake() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config("agent.critic_optimizer.learn_rate=7")
    assert str(caught.value).count("learn_rate") == 1
    with pytest.raises(ConfigError, match=r"^mbpo\.real_ratio=0\.2: must be a .*; threads takes"):
        make_config("threads=${mbpo.real_ratio}")


def test_names_of_other_programs_stand_for_options_that_exist() -> None:
    keys = {key for key, _, _, _ in options_in(make_config())}
    ends = {key.rpartition(".")[2] for key in keys}
    assert set(ALIASES.values()) <= keys | ends
    assert not set(ALIASES) & ends


def test_a_folder_of_runs_leads_to_the_newest(tmp_path: Path, refused: Refusal) -> None:
    folder = tmp_path.parent / f"{tmp_path.name}-runs"
    for time, name in enumerate(("day/second", "day/first")):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").write_text("")
        os.utime(folder / name / "config.yaml", (100 - time, 100 - time))
    assert refused(f"resume={folder}").endswith(f"it holds 2 runs, the newest is {folder / 'day/second'}")


@pytest.mark.parametrize("place", ["config.yaml", "checkpoints", "checkpoints/2000"])
def test_a_part_of_a_run_leads_to_the_run(place: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "checkpoints").mkdir()
    assert records.no_run(tmp_path / place) == f"not a run directory; did you mean {tmp_path}?"


def test_the_version_is_that_of_this_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mbpo-train", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out == f"mbpo-train {mbpo_cli.__version__}\n"


def test_what_is_wrong_in_nested_groups_is_collected() -> None:
    values: dict[str, Any] = {
        "seed": -1,
        "agent": {"_target_": "mbpo_cli.agents.sac.SAC", "name": 3},
        "env": 5,
    }
    with pytest.raises(ConfigError) as caught:
        typed(values)
    reasons = caught.value.reasons  # type: ignore[attr-defined]
    assert {"seed", "agent.name", "agent.hidden_sizes", "env", "model"} <= {
        reason.partition(":")[0].partition("=")[0] for reason in reasons
    }
