"""A configuration that is printed for a person is the same YAML, with a comment at each option."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from mbpo_cli.config.comments import commented, schema_for
from mbpo_cli.config.compose import composed
from mbpo_cli.config.typed import options_in
from mbpo_cli.config.values import typed_config
from tests.terminal import shown_on_terminal, without_colors

NUMBER = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}, {"$ref": "#/definitions/r"}]}
SIZES = {"type": "array", "items": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}]}}
PART = {"properties": {"_target_": {"const": "a.Part"}, "on": {"description": "whether", "type": "boolean"}}}
OTHER = {"properties": {"_target_": {"const": "a.Other"}, "on": {"description": "what else"}}}
SCHEMA: dict[str, Any] = {
    "$ref": "#/definitions/run",
    "definitions": {
        "r": {"type": "string"},
        "run": {
            "properties": {
                "rate": {"description": "how fast (MATLAB: Rate)", **NUMBER},
                "sizes": {"description": "units", "anyOf": [SIZES]},
                "kind": {"description": "which", "anyOf": [{"enum": ["a", "b"]}]},
                "part": {"$ref": "#/definitions/part"},
            }
        },
        "part": {
            "description": "a part",
            "anyOf": [{"description": "Part one.", **PART}, {"description": "Another.", **OTHER}],
        },
    },
}
PLAIN = """\
rate: 0.5
sizes:
- 3
kind: a
part:
  _target_: a.Part
  'on': true
  unknown_to_the_schema: 1
"""
EXPECTED = """\
rate: 0.5               # how fast; a number > 0 or null
sizes:                  # units; a list [each a whole number
                        # from 1 to 9]
- 3
kind: a                 # which; a or b
part:                   # a part
  _target_: a.Part      # Part one.
  'on': true            # whether
  unknown_to_the_schema: 1
"""


def test_comments_are_wrapped_beside_the_options() -> None:
    assert commented(PLAIN, SCHEMA, "", 60, is_colored=False) == EXPECTED


def test_keys_and_comments_have_colors() -> None:
    first = commented(PLAIN, SCHEMA, "", 60, is_colored=True).splitlines()[0]
    comment = "# how fast; a number > 0 or null"
    assert first == f"\x1b[36mrate\x1b[0m: 0.5               \x1b[2m{comment}\x1b[0m"


def test_a_package_and_a_component_that_is_not_known() -> None:
    assert commented("'on': true\n", SCHEMA, "part", 60, is_colored=False).endswith("# what else\n")
    assert commented("on_: 1\n_target_: mine.Part\n", SCHEMA, "part", 60, is_colored=False) == (
        "on_: 1\n_target_: mine.Part\n"
    )
    assert commented("0.5\n", SCHEMA, "rate", 60, is_colored=False) == "0.5\n"
    assert commented("a: b: c\n", SCHEMA, "", 60, is_colored=False) == "a: b: c\n"


@pytest.mark.parametrize("value", ["x" * 300, "many words " * 30, "a # b", "a\nb\n", "'\"", "on", "", {}, []])
def test_values_of_any_form_are_read_back(value: Any) -> None:
    values = {"rate": value, "kind": value, "sizes": [value]}
    plain = OmegaConf.to_yaml(OmegaConf.create(values))
    text = without_colors(commented(plain, SCHEMA, "", 60, is_colored=True))
    assert yaml.safe_load(text) == values


@pytest.mark.parametrize("choices", ["agent=sac", "agent=dqn env=cartpole", "agent=ddpg experiment=smoke"])
def test_every_option_has_its_meaning_and_range(choices: str) -> None:
    config = composed(*choices.split())
    options = typed_config(config)
    plain = OmegaConf.to_yaml(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    text = commented(plain, schema_for(plain, None), "", 10_000, is_colored=False)
    assert yaml.safe_load(text) == yaml.safe_load(plain)
    lines = iter(text.splitlines())
    written = [line for line in lines if "# " in line]
    for key, _, meaning, _ in options_in(options, groups=True):
        named = [line for line in written if line.strip().startswith(f"{key.rpartition('.')[2]}:")]
        if key.endswith("_target_"):
            assert named
        else:
            assert any(meaning.text in line and meaning.range in line for line in named), key


def test_a_terminal_gets_comments_and_a_pipe_plain_yaml(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mbpo_cli", "--cfg", "job"]
    code, text = shown_on_terminal(command, tmp_path, columns=100)
    assert code == 0
    assert "\x1b[36mreal_ratio\x1b[0m: 0.2" in text
    assert "fraction of real transitions" in text
    assert max(map(len, without_colors(text).splitlines())) <= 100
    _, colorless = shown_on_terminal([*command, "-p", "agent.critics"], tmp_path, NO_COLOR="1")
    assert "# critics, trained side by side" in colorless
    assert "\x1b" not in colorless
    piped, code = tmp_path / "piped", 0
    code, rest = shown_on_terminal(["sh", "-c", f"{' '.join(command)} > {piped}"], tmp_path)
    assert (code, rest) == (0, "")
    assert "#" not in piped.read_text()
    assert "\x1b" not in piped.read_text()
    assert yaml.safe_load(piped.read_text()) == yaml.safe_load(without_colors(text))


OWN = """\
from dataclasses import dataclass
from mbpo_cli.options import Component, option

class Bold:
    \"\"\"Bold noise.\"\"\"

    @dataclass
    class Options(Component):
        boldness: float = option("how bold", low=0)
"""


def test_components_of_the_users_folder_have_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_noise.py").write_text(OWN)
    folder = tmp_path / "my_conf" / "agent" / "exploration"
    folder.mkdir(parents=True)
    text = "_target_: own_noise.Bold\nboldness: 2.0\n"
    (folder / "bold.yaml").write_text(text)
    schema = schema_for(text, str(tmp_path / "my_conf"))
    shown = commented(text, schema, "agent.exploration", 100, is_colored=False).splitlines()
    assert [" ".join(line.split()) for line in shown] == [
        "_target_: own_noise.Bold # Bold noise.",
        "boldness: 2.0 # how bold; a number >= 0",
    ]
    (folder / "bold.yaml").write_text("_target_: [\n")
    assert (
        commented(text, schema_for(text, str(tmp_path / "my_conf")), "agent.exploration", 100, False) == text
    )
