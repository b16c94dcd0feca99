"""Several files of the group `logger` can be chosen, or none; a mistake is one line."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbpo_cli.commands.check import check
from mbpo_cli.config.compose import composed, make_config
from mbpo_cli.config.stored import resumed_config
from mbpo_cli.config.typed import is_mapping, options_in
from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.directory import check_same
from mbpo_cli.storage.records import stored_config

OWN = "_target_: mbpo_cli.logs.logger.CsvTable\n"


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["tensorboard"]),
        (["logger=csv"], ["csv"]),
        (["logger=[]"], []),
        (["logger=[csv,tensorboard]"], ["csv", "tensorboard"]),
        (["logger=[wandb,mlflow,trackio]"], ["wandb", "mlflow", "trackio"]),
        (["experiment=smoke", "logger=[csv]"], ["csv"]),
        (["agent=dqn", "env=cartpole"], ["tensorboard"]),
    ],
)
def test_several_can_be_chosen_or_none(overrides: list[str], names: list[str]) -> None:
    assert list(make_config(*overrides).logger) == names


def test_an_experiment_chooses_them_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    values = {"defaults": [{"override /logger": ["csv", "wandb"]}], "logger": {"wandb": {"group": "a"}}}
    text = f"# @package _global_\n{yaml.safe_dump(values)}"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    overrides = (f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", "logger.wandb.project=b")
    config: Any = make_config(*overrides)
    assert list(config.logger) == ["csv", "wandb"]
    assert (config.logger["wandb"].group, config.logger["wandb"].project) == ("a", "b")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logger=null"], "logger=null: no such choice; write logger=[] to choose nothing; available: csv,"),
        (["logger=1"], "logger=1: no such choice; available: csv, mlflow, tensorboard, trackio, wandb"),
        (["logger=[[csv]]"], "logger=[[csv]]: no such choice; available: csv,"),
        (["logger=[wandbb]"], "logger=wandbb: no such choice; did you mean logger=wandb? available: csv,"),
        (["logger.wandb.group=a"], "logger.wandb.group=a: wandb is not chosen; logger=[tensorboard,wandb]"),
        (
            ["logger=[csv,wandb]", "logger.wandb.grup=a"],
            "logger.wandb.grup=a: no such option; did you mean log",
        ),
        (["logger=[wandb]", "logger.wandb.mode=x"], "logger.wandb.mode=x: must be online or offline or null"),
        (
            ["logger=[wandb]", "logger.wandb.max_waiting=0"],
            "logger.wandb.max_waiting=0: must be a whole number",
        ),
        (
            ["logger=[wandb]", "+logger.wandb.x=0"],
            "logger.wandb.x=0: no such option; known are _target_, drain",
        ),
        (["logger=[csv]", "logger.csv._target_=a.B"], "logger.csv._target_=a.B: No module named 'a'"),
        (["logger=[csv]", "logger.csv=3"], "logger.csv=3: must be a group of options, not a single value"),
    ],
)
def test_a_mistake_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(*overrides)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_file_without_its_place_is_told_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "logger").mkdir()
    (tmp_path / "logger" / "mine.yaml").write_text(OWN)
    with pytest.raises(ConfigError, match="let its file begin with # @package logger"):
        make_config(f"hydra.searchpath=[file://{tmp_path}]", "logger=[mine]")
    (tmp_path / "logger" / "mine.yaml").write_text(f"# @package logger.mine\n{OWN}")
    config = make_config(f"hydra.searchpath=[file://{tmp_path}]", "logger=[mine,tensorboard]")
    assert set(config.logger) == {"mine", "tensorboard"}


def test_their_options_are_options_like_others() -> None:
    config = make_config("logger=[tensorboard,wandb]")
    found = {key: value for key, _, _, value in options_in(config) if key.startswith("logger")}
    assert found == {
        "logger.tensorboard._target_": "mbpo_cli.logs.tensorboard.TensorBoard",
        "logger.wandb._target_": "mbpo_cli.logs.trackers.Wandb",
        "logger.wandb.project": "mbpo-cli",
        "logger.wandb.entity": None,
        "logger.wandb.group": None,
        "logger.wandb.mode": None,
        "logger.wandb.max_waiting": 1000,
        "logger.wandb.drain_seconds": 5.0,
    }
    values = asdict(config)
    assert not any(is_mapping(key, values) for key in ("logger", "logger.wandb", "logger.wandb.project"))


def stored(path: Path, *overrides: str) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(asdict(make_config(*overrides))))
    return path


@pytest.mark.parametrize("chosen", ["logger=[]", "logger=[csv]", "logger=[tensorboard,wandb]"])
def test_a_run_may_resume_with_other_loggers(chosen: str, tmp_path: Path) -> None:
    first, second = stored(tmp_path / "a"), stored(tmp_path / "b", chosen)
    check_same(first, stored_config(second))
    check_same(second, stored_config(first))
    group = composed(chosen).logger
    assert resumed_config(first, [("logger", dict(group))], []).logger == make_config(chosen).logger


def test_a_run_directory_names_only_sinks_of_this_package(tmp_path: Path) -> None:
    path = stored(tmp_path / "run", "logger=[csv,wandb,mlflow,trackio]")
    assert set(resumed_config(path, [], []).logger) == {"csv", "wandb", "mlflow", "trackio"}
    config = yaml.safe_load((path / "config.yaml").read_text())
    for target in ("my_lab.webhook.Webhook", "mbpo_cli.agents.sac.SAC", "mbpo_cli.logs.trackers.os"):
        config["logger"] = {"mine": {"_target_": target}}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(
            ConfigError, match=r"logger\.mine\._target_=.*outside the safe parts of mbpo_cli\.logs"
        ):
            resumed_config(path, [], [])


def test_the_check_before_a_run_accepts_them() -> None:
    check(make_config("logger=[tensorboard,csv]"))
