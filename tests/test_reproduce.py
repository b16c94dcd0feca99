"""The pages of published tasks have the results of all runs, unfinished ones included."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mbpo_cli.config.compose import make_config
from scripts import reproduce

PAPER = reproduce.STUDIES["paper"]
DOUBLE_HORIZON = reproduce.STUDIES["double_horizon"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reproduce, "FOLDER", tmp_path / "docs")
    monkeypatch.setattr(reproduce, "RUNS", tmp_path / "runs")
    return tmp_path


def write_run(
    folders: Path, name: str, returns: dict[int, float], rest: str = "", precision: str = "float32"
) -> None:
    name = name if "/" in name else f"paper/{name}"
    directory = folders / "runs" / name
    directory.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, "eval/return_mean": value}) for step, value in returns.items()]
    (directory / "config.yaml").write_text(f"precision: {precision}")
    (directory / "metrics.jsonl").write_text(
        '{"step": 1, "agent/entropy": 1.0}\n' + "\n".join([*lines, rest])
    )


def test_table_and_curves(folders: Path) -> None:
    write_run(folders, "hopper_seed0", {10_000: 200.0, 20_000: 3_100.0, 30_000: 2_000.0})
    write_run(
        folders,
        "hopper_bfloat16_seed1",
        {10_000: 300.0, 20_000: 900.0},
        rest='{"step": 30000, "eval/ret',
        precision="bfloat16",
    )
    page = reproduce.page(PAPER)
    row = "bfloat16, float32 | 2 | 20,000 | 20,000 | 3,100, 900 | 442 ± 229 | 3,000"
    row = f"{row} | not yet | not yet | 75,000 |  |"
    assert f"| `experiment=paper/hopper` | {row}" in page
    assert (folders / "docs" / "paper" / "hopper.png").stat().st_size > 10_000
    assert len((folders / "docs" / "paper" / "hopper.csv").read_text().splitlines()) == 1 + 5
    # Stored curves stay when the runs have been deleted or started again.
    write_run(folders, "hopper_seed0", {10_000: 1.0})
    assert reproduce.page(PAPER) == page


def test_one_seed_that_reaches_the_threshold(folders: Path) -> None:
    write_run(folders, "inverted_pendulum_seed3", {250: 100.0, 500: 1_000.0, 750: 1_000.0})
    row = "| `experiment=paper/inverted_pendulum` | float32 | 1 | 750 | 750 | 1,000 |  | 1,000 | 500 | 500 |"
    assert row in reproduce.page(PAPER)


@pytest.mark.parametrize(
    ("returns", "step"),
    [
        ((100.0, 3_000.0, 2_700.0), 2),
        ((100.0, 3_000.0, 2_699.0), None),  # it fell again
        ((3_100.0, 600.0, 3_100.0, 3_200.0), 3),
        ((100.0, 3_100.0), None),  # what comes next is unknown
        ((2_999.0, 2_999.0), None),
    ],
)
def test_a_threshold_is_reached_if_the_next_evaluation_is_close_to_it(
    returns: tuple[float, ...], step: int | None
) -> None:
    found = reproduce.first(dict(enumerate(returns, 1)), 3_000)
    assert found == (step or sys.maxsize)


def test_seeds_are_compared_at_the_last_published_step_that_all_reached(folders: Path) -> None:
    for seed, value in enumerate((100.0, 200.0, 600.0)):
        write_run(folders, f"hopper_seed{seed}", {20_000: value, 21_000: 5.0, 22_000 + seed: 7.0})
    # Student's t for three values is 4.303, and the standard error of these is 152.75.
    row = "float32 | 3 | 22,000 | 20,000 | 300 ± 657 | 442 ± 229 | 3,000 | not yet | not yet | 75,000 |  |"
    page = reproduce.page(PAPER)
    assert f"| `experiment=paper/hopper` | {row}" in page
    assert "| Hopper | seed 0 | seed 1 | seed 2 | mean | published |" in page
    assert "\n| 20,000 | 100 | 200 | 600 | 300 | 442 ± 229 |\n" in page


def test_published_means_are_compared_with_means_over_the_same_steps(folders: Path) -> None:
    returns = {5_000: -50.0, 6_000: 10.0, 8_000: 20.0, 10_000: 60.0, 20_000: 100.0, 25_000: 300.0}
    write_run(folders, "hopper_seed0", returns)
    page = reproduce.page(PAPER)
    assert "\n| 5,000 | -50 | -50 | 11 ± 0 |\n" in page
    assert "\n| 10,000 | 30 | 30 | 227 ± 135 |\n" in page
    assert "\n| 25,000 | 200 | 200 | 521 ± 248 |\n" in page
    assert "| float32 | 1 | 25,000 | 25,000 | 200 | 521 ± 248 |" in page


def test_evaluations_of_stopped_runs_are_on_the_page(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Sequence[str]] = []

    def stopped(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        seed = len(commands) - 1
        write_run(folders, f"hopper_bfloat16_seed{seed}", {10_000: 200.0}, precision="bfloat16")
        return subprocess.CompletedProcess(command, 143 * seed)

    monkeypatch.setattr(subprocess, "run", stopped)
    arguments = "--tasks hopper --seeds 0 1 --steps 40000 --precision bfloat16"
    monkeypatch.setattr("sys.argv", ["reproduce.py", *arguments.split()])
    assert reproduce.main() == 143
    assert "| bfloat16 | 2 | 10,000 |" in (folders / "docs" / "paper" / "README.md").read_text()
    for seed, command in enumerate(commands):
        *overrides, directory = command[3:]
        config = make_config(*overrides)
        assert (config.env.name, config.seed, config.trainer.num_env_steps) == ("hopper", seed, 40_000)
        assert (config.precision, config.threads) == ("bfloat16", 1)
        assert directory == f"hydra.run.dir={folders}/runs/paper/hopper_bfloat16_seed{seed}"


def test_single_evaluations_are_compared_with_single_evaluations(folders: Path) -> None:
    for seed, value in enumerate((100.0, 4_000.0, 3_100.0)):
        write_run(
            folders, f"double_horizon/hopper_seed{seed}", {10_000: 1.0, 19_000: value, 20_000: value + 1}
        )
    # Student's t for three values is 4.303, and the standard error of these is 1,179.
    spent = {"step": 19_000, "time/update_seconds": 1_800.0, "time/fit_seconds": 5_400.0}
    write_run(
        folders,
        "double_horizon/hopper_seed1",
        {10_000: 1.0, 19_000: 4_000.0, 20_000: 4_001.0},
        rest=json.dumps(spent) + "\n",
    )
    page = reproduce.page(DOUBLE_HORIZON)
    row = "float32 | 3 | 20,000 | 20,000 | 2,401 ± 5,073 | 2,101 ± 1,102 | 3,000"
    row = f"{row} | 19,000 | not yet | 30,000 | 2.0 |"
    assert f"| `experiment=double_horizon/hopper` | {row}" in page
    assert "\n| 10,000 | 1 | 1 | 1 | 1 | 595 ± 347 |\n" in page
    assert reproduce.page(DOUBLE_HORIZON) == page  # from the stored curves, too


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ({15_000: 2_000}, None),  # not long enough
        ({15_000: 2_000, 20_000: 2_500, 21_000: 0}, True),
        ({15_000: 1_999, 20_000: 3_000}, False),
    ],
)
def test_a_curve_holds_if_it_stays_above_two_thirds(later: dict[int, float], expected: bool | None) -> None:
    returns = {5_000: 100.0, 10_000: 3_000.0, **later}
    assert reproduce.held(returns, 3_000) is expected
    assert reproduce.held(returns, 3_001) is None, "never reached"


@pytest.mark.parametrize("task", [name for name, task in DOUBLE_HORIZON.tasks.items() if not task.overrides])
def test_presets_of_the_double_horizon(task: str) -> None:
    config = make_config(f"experiment=double_horizon/{task}")
    horizon = 9 if task == "hopper" else 5
    assert (config.env.name, config.agent.name, config.mbpo.training_horizon) == (task, "sac", horizon)
    assert (vars(config.agent)["critics"].number, vars(config.model.transition)["num_networks"]) == (5, 8)


@pytest.mark.parametrize("num_env_steps", [10_000, 100_000])
def test_they_take_as_many_random_steps_in_runs_of_every_length(num_env_steps: int) -> None:
    for task in DOUBLE_HORIZON.tasks:
        config = make_config(*DOUBLE_HORIZON.command(task), f"trainer.num_env_steps={num_env_steps}")
        assert config.agent.num_warm_start_steps == 2_500


def test_variants_for_comparison() -> None:
    rollouts = make_config(*DOUBLE_HORIZON.command("hopper_uncertainty")).mbpo.model_rollout_options
    assert (rollouts.max_divergence, rollouts.divergence_quantile) == (30, 0.9)
    plain, alone = (
        make_config(*DOUBLE_HORIZON.command(f"dmc_cheetah_run_{name}")) for name in ("mbpo", "alone")
    )
    assert plain.mbpo.use_model
    assert not alone.mbpo.use_model
    assert plain.mbpo.training_horizon == 0
    other = make_config(*DOUBLE_HORIZON.command("dmc_cheetah_run_mbpo_next_obs"))
    assert not vars(other.model.transition)["predict_difference"]


def test_the_agent_alone_has_critics_as_many_and_twenty_updates_per_step() -> None:
    config = make_config(*DOUBLE_HORIZON.command("hopper_alone"))
    critics = vars(config.agent)["critics"]
    assert (config.env.name, config.mbpo.use_model, config.mbpo.training_horizon) == ("hopper", False, 0)
    assert (critics.number, critics.layer_norm, critics.dropout) == (5, True, 0.01)
    assert config.agent.num_gradient_steps_per_update == 20


def test_an_unknown_task_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["reproduce.py", "--tasks", "hoper"])
    with pytest.raises(SystemExit):
        reproduce.main()
    assert "--tasks hoper: paper has inverted_pendulum, hopper, " in capsys.readouterr().err
