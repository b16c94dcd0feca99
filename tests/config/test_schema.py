"""The JSON schema for editors is valid, up to date, and accepts what the program accepts."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mbpo_cli.commands.train import main
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.schema import schema_text
from mbpo_cli.config.typed import options_in
from tests.conftest import CONF

SCHEMA = json.loads((CONF / "schema.json").read_text())
MODELINE = re.compile(r"^# yaml-language-server: \$schema=(\S+?)(?:#/definitions/(\S+))?$", re.MULTILINE)
# Hydra's own files have Hydra's options.
FILES = [path for path in sorted(CONF.rglob("*.yaml")) if "hydra" not in path.relative_to(CONF).parts]


def mistakes(values: Any, group: str = "run") -> list[str]:
    """Return the messages of all mistakes in a file of a group."""
    schema = {"$ref": f"#/definitions/{group}", "definitions": SCHEMA["definitions"]}
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(values)]


def test_the_schema_is_valid() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_the_committed_schema_is_up_to_date(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mbpo-train", "--schema"])
    main()
    assert capsys.readouterr().out == (CONF / "schema.json").read_text(), (
        "mbpo-train --schema > conf/schema.json"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_names_its_schema_and_obeys_it(path: Path) -> None:
    text = path.read_text()
    modelines = MODELINE.findall("".join(line for line in text.splitlines(keepends=True)[:2]))
    assert len(modelines) == 1
    file, group = modelines[0]
    assert (path.parent / file).resolve() == CONF / "schema.json"
    is_whole = text.startswith("# @package _global_") or path == CONF / "train.yaml"
    assert group == ("" if is_whole else ".".join(path.relative_to(CONF).parent.parts))
    values = yaml.safe_load(text)
    if path.name in ("gym.yaml", "dmc.yaml"):
        values["env"]["id"] = "Pendulum-v1"  # the user has to name it
    assert mistakes(values, group or "run") == []


@pytest.mark.parametrize("agent", ["sac", "td3", "ddpg", "dqn"])
def test_a_stored_configuration_obeys_the_schema(agent: str) -> None:
    assert mistakes(asdict(make_config(f"agent={agent}"))) == []


def test_every_option_is_described() -> None:
    for key, _, meaning, _ in options_in(make_config(), groups=True):
        schema = SCHEMA["definitions"]["run"]
        for name in key.split("."):
            branches = [branch for branch in schema.get("anyOf", [schema]) if name in branch["properties"]]
            assert branches, key
            schema = branches[0]["properties"][name]
            if "$ref" in schema:
                schema = SCHEMA["definitions"][schema["$ref"].removeprefix("#/definitions/")]
        if not key.endswith("_target_"):
            assert schema["description"].startswith(meaning.text)


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("run", "seed: -1"),
        ("run", "seed: 1.5"),
        ("run", "agnt: {}"),
        ("run", "agent: {mini_batch_sise: 3}"),
        ("run", "agent: {mini_batch_size: 0}"),
        ("run", "threads: many"),
        ("run", "precision: float16"),
        ("run", "model: {transition: {hidden_sizes: []}}"),
        ("run", "model: {transition: {hidden_sizes: [64, 0]}}"),
        ("run", "model: {reward: {inputs: all}}"),
        ("agent", "_target_: somebody.Agent"),
        ("agent", "{_target_: mbpo_cli.agents.dqn.DQN, entropy_weight_options: {}}"),
        ("agent.exploration", "standard_deviation: -1"),
        ("mbpo", "real_ratio: 1.1"),
        ("env", "num_envs: '${env}s'"),
    ],
)
def test_the_schema_finds_mistakes(group: str, text: str) -> None:
    assert mistakes(yaml.safe_load(text), group)


def test_numbers_with_underscores_and_references_are_accepted() -> None:
    # Editors read YAML 1.2, where 10_000 is text.
    values = {"mini_batch_size": "${mbpo.mini_batch_size}", "experience_buffer_length": "10_000"}
    assert mistakes(values, "agent") == []


def test_a_folder_of_the_user_adds_components(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "mine.yaml").write_text("_target_: mbpo_cli.exploration.GaussianNoise\n")
    schema = json.loads(schema_text(str(tmp_path)))
    agents = schema["definitions"]["agent"]["anyOf"]
    targets = {agent["properties"]["_target_"]["const"] for agent in agents}
    assert {"mbpo_cli.exploration.GaussianNoise", "mbpo_cli.agents.sac.SAC"} <= targets
    assert len(agents) == len(SCHEMA["definitions"]["agent"]["anyOf"]) + 1
