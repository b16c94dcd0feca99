"""A run of version 0.1.0 can be resumed, evaluated and exported, with the numbers that 0.1.0 gave."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mbpo_cli.storage.records import stored_config
from tests.conftest import metrics_of

RUN = Path(__file__).with_name("run_of_0_1")
EXPECTED = json.loads(Path(__file__).with_name("run_of_0_1_expected.json").read_text())

# Matrix libraries choose code that fits the processor, with different rounding, unless this is set.
SAME_ON_EVERY_PROCESSOR = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def run_module(module: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, **SAME_ON_EVERY_PROCESSOR},
    )


def test_it_resumes(old_run: Path) -> None:
    run_module("mbpo_cli", f"resume={old_run}", "trainer.num_env_steps=80")
    rows = metrics_of(old_run)
    resumed = [without_times(row) for row in rows if row["step"] > 40]
    assert resumed == EXPECTED["metrics_after_resuming"]


def test_it_resumes_with_other_loggers(old_run: Path) -> None:
    run_module("mbpo_cli", f"resume={old_run}", "logger=[csv]", "trainer.num_env_steps=45")
    assert (old_run / "metrics.csv").read_text().startswith("step,tag,value\n41,")
    assert yaml.safe_load((old_run / "config.yaml").read_text())["logger"] == {
        "csv": {"_target_": "mbpo_cli.logs.logger.CsvTable"}
    }


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    # What 0.1.0 did not log.
    later = {"model/relative_error", "model/relative_reward_error", "model/missed_reward"}
    return {tag: value for tag, value in row.items() if not (tag.startswith("time/") or tag in later)}


def test_it_is_evaluated(old_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation.json"
    run_module("mbpo_cli.commands.evaluate", str(old_run), "--episodes", "3", "--output", str(output))
    assert json.loads(output.read_text())["real"]["episodes"] == EXPECTED["evaluation"]


def test_it_is_exported(old_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "policy.pt2"
    run_module("mbpo_cli.commands.export", str(old_run), "--output", str(output))
    program = (
        "import json, sys, torch\n"
        "policy = torch.export.load(sys.argv[1]).module()\n"
        "print(json.dumps(policy(torch.tensor(json.loads(sys.argv[2]))).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(output), json.dumps(EXPECTED["obs"])],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **SAME_ON_EVERY_PROCESSOR},
    )
    assert torch.equal(torch.tensor(json.loads(done.stdout)), torch.tensor(EXPECTED["exported_actions"]))


def test_its_known_functions_get_the_environments_arguments_and_end_no_run(old_run: Path) -> None:
    path = old_run / "config.yaml"
    path.write_text(path.read_text().replace("  kwargs: null\n", "  kwargs: {length: 2}\n"))
    model = stored_config(old_run)["model"]
    assert model["allow_mismatch"]
    assert model["reward"]["kwargs"] == model["is_done"]["kwargs"] == {"length": 2}
    assert "kwargs" not in model["transition"]


def test_its_learned_is_done_function_predicts_ends_as_before(old_run: Path) -> None:
    path = old_run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["is_done"] = {"_target_": "mbpo_cli.models.is_done.LearnedIsDone"}
    path.write_text(yaml.safe_dump(config))
    model = stored_config(old_run)["model"]
    assert model["is_done"]["max_false_ends"] is None
    assert all("max_false_ends" not in model[part] for part in ("transition", "reward"))


def test_noise_of_older_runs_is_in_units_of_the_scaled_action(old_run: Path) -> None:
    path = old_run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    noise = {"standard_deviation": 0.3, "standard_deviation_decay_rate": 0.0, "standard_deviation_min": 0.1}
    config["agent"]["exploration"] = noise
    config["mbpo"]["model_rollout_options"]["noise_options"] = dict(noise)  # no alias in YAML
    path.write_text(yaml.safe_dump(config))
    stored = stored_config(old_run)
    for each in (stored["agent"]["exploration"], stored["mbpo"]["model_rollout_options"]["noise_options"]):
        assert each == {**noise, "standard_deviation_units": "scaled"}


def test_all_its_optimizers_are_adam_with_one_limit_for_a_network(old_run: Path) -> None:
    config = stored_config(old_run)
    optimizers = [
        config["agent"]["actor_optimizer"],
        config["agent"]["critic_optimizer"],
        config["agent"]["entropy_weight_options"],
        config["model"]["transition"]["optimizer"],
    ]
    for options in optimizers:
        assert options["algorithm"] == "adam"
        assert options["gradient_threshold_method"] == "global_l2norm"


def test_it_began_without_data(old_run: Path) -> None:
    config = stored_config(old_run)
    assert (config["data"], config["mbpo"]["data_ratio"]) == (None, None)
    assert config["mbpo"]["model_rollout_options"]["reward_penalty"] == 0
