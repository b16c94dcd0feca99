"""What a run directory accepts and stores."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mbpo_cli.failures import Busy, ConfigError
from mbpo_cli.storage.directory import RunDirectory, check_free, check_same, check_usable
from mbpo_cli.storage.records import VALUES_OF_OLDER_GROUPS as ADDED

CONFIG: dict[str, Any] = {
    "seed": 0,
    "threads": 1,
    "precision": "float32",
    "agent": {"name": "sac", "hidden_sizes": [8, 8], **ADDED["agent"]},
    "trainer": {"num_env_steps": 10, "diagnostics": False, **ADDED["trainer"]},
    "checkpoint": {"keep": 2, **ADDED["checkpoint"]},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *groups, name = key.split(".")
    tree = config
    for group in groups:
        tree = tree[group]
    tree[name] = value
    return config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The directory of a run that has ended."""
    path = tmp_path / "runs" / "first"
    with RunDirectory(path, CONFIG) as directory:
        assert directory.is_new
        directory.write_summary({"status": "completed"})
    return path


@pytest.mark.parametrize(
    "config",
    [CONFIG, changed("threads", 2), changed("trainer.num_env_steps", 20), changed("checkpoint.keep", 3)],
)
def test_a_run_is_resumed_with_what_does_not_change_results(path: Path, config: dict[str, Any]) -> None:
    assert (path / "summary.json").exists()
    check_usable(path, config)
    with RunDirectory(path, config) as directory:
        assert not directory.is_new
        assert not (path / "summary.json").exists(), "the run is open again"
        check_same(path, config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 1, "(seed: 0 -> 1)"),
        ("agent.name", "td3", "(agent.name: sac -> td3)"),
        ("agent.hidden_sizes", [8], "(agent.hidden_sizes: [8, 8] -> [8])"),
        ("agent.new", 1.5, "(agent.new: None -> 1.5)"),
    ],
)
def test_a_run_is_not_resumed_with_other_values(path: Path, key: str, value: Any, message: str) -> None:
    before = {file: file.read_bytes() for file in path.iterdir() if file.name != "run.lock"}
    for attempt in (check_same, check_usable, RunDirectory):
        with pytest.raises(ConfigError) as raised:
            attempt(path, changed(key, value))
        assert message in str(raised.value)
    assert {file: file.read_bytes() for file in path.iterdir() if file.name != "run.lock"} == before
    check_free(path)


def test_a_directory_is_one_processs_at_a_time(path: Path) -> None:
    with RunDirectory(path, CONFIG):
        with pytest.raises(Busy, match="in use by process"):
            check_free(path)
        with pytest.raises(Busy, match="in use by process"):
            check_usable(path, CONFIG)
    check_free(path)


def test_policy_and_summary_are_stored_with_all_that_can_change_a_result(path: Path) -> None:
    state = {"weights.0": torch.arange(6.0).reshape(2, 3), "biases.0": torch.zeros(3)}
    with RunDirectory(path, CONFIG) as directory:
        directory.save_policy(state)
        directory.write_summary({"status": "completed", "score": 1.5})
    stored = torch.load(path / "policy.pt", weights_only=True)
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) for name in state)
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["status"], summary["score"]) == ("completed", 1.5)
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["command"].startswith("mbpo-train")
