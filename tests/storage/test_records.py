"""The configuration and the evaluations that a run directory holds."""

import json
from pathlib import Path

import pytest

from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.records import (
    MAX_CONFIG,
    VALUES_OF_OLDER_VERSIONS,
    evaluations,
    last_logged_step,
    leaves,
    stored_config,
)


def store(path: Path, text: str) -> Path:
    (path / "config.yaml").write_text(text)
    return path


def padded(size: int) -> str:
    """A configuration of so many characters."""
    return "seed: 1\n#".ljust(size - 1, "x") + "\n"


def nested(depth: int) -> str:
    return "seed: " + "[" * depth + "]" * depth


def test_a_configuration_may_be_large_and_deep_within_limits(tmp_path: Path) -> None:
    assert stored_config(store(tmp_path, padded(MAX_CONFIG)))["seed"] == 1
    assert "seed" in stored_config(store(tmp_path, nested(49)))
    assert stored_config(store(tmp_path, "seed: 1")) == {"seed": 1, **VALUES_OF_OLDER_VERSIONS}
    assert stored_config(store(tmp_path, "precision: bfloat16"))["precision"] == "bfloat16"


@pytest.mark.parametrize(
    "text", [padded(MAX_CONFIG + 1), nested(50), "a: &b [1]\nc: *b", "- 1", "", "a: [", "a: 2026-01-01"]
)
def test_other_files_are_not_read_as_a_configuration(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        stored_config(store(tmp_path, text))


def test_leaves_are_the_options_with_dotted_keys() -> None:
    tree = {"a": 1, "b": {"c": {"d": [2, {"e": 3}]}, "f": {}, 7: None}}
    assert dict(leaves(tree)) == {"a": 1, "b.c.d": [2, {"e": 3}], "b.f": {}, "b.7": None}


def test_evaluations_are_read_while_a_run_still_writes(tmp_path: Path) -> None:
    assert evaluations(tmp_path) == {}
    rows = [
        {"step": 5, "a": 1},
        {"step": 10, "eval/return_mean": -2.5},
        {"step": 20, "eval/return_mean": 3.0},
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n" + lines[1].replace("10", "30")[:-1])
    assert evaluations(tmp_path) == {10: -2.5, 20: 3.0}


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (None, -1),
        ("", -1),
        ('{"step": 3, "a": 1}\n', 3),
        ('{"step": 3}\n{"step": 5, "a": 1', 3),  # cut off
        ('{"step": 3}\n{"a": 1}\n[1]\nx\n', 3),
    ],
)
def test_the_last_logged_step_is_that_of_the_last_whole_line(
    text: str | None, step: int, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert last_logged_step(tmp_path) == step
