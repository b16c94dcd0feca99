"""The benchmark of fresh seeds keeps what has ended, resumes the rest, and counts failures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import Interrupted
from scripts import seeds, seeds_page
from scripts.seeds_page import Ended, Row

GOAL = Row("goal", ("env=pendulum",), 600, 100, 4, -200, (200, 400, 600), -250)
PAIR = Row("pair", ("env=gym", "env.id=Pendulum-v1"), 600, 100, 5)
REPORTING = "this is for reporting: "


def ended(seed: int, *returns: float, variant: str = "on", **changes: Any) -> Ended:
    """Return a run that was evaluated every 100 steps."""
    points = {100 * (index + 1): value for index, value in enumerate(returns)}
    run = Ended(variant, seed, "a", "done", None, None, 600, 10.0 + seed, returns[-1], points, None)
    return replace(run, **changes)


DIVERGED: dict[str, Any] = {"status": "failed", "exit_code": 4, "error": "Q is 1e9 | too large"}


def cells(table: str) -> list[str]:
    """Return the cells of the only row of a table."""
    return [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]


def test_shares_have_wilsons_interval() -> None:
    # Newcombe 1998, table I: 15 of 148 and 0 of 20.
    found = seeds_page.share(15, 148)
    assert (found.value, found.low, found.high) == pytest.approx((15 / 148, 0.0624, 0.1605), abs=5e-5)
    found = seeds_page.share(0, 20)
    assert (found.low, found.high) == pytest.approx((0, 0.1611), abs=5e-5)


def test_a_row_counts_who_got_there_stayed_failed_and_diverged() -> None:
    runs = [
        ended(0, -900, -190, -150, -150),  # at 200
        ended(1, -900, -190, -251, -150),  # fell again
        ended(2, -900, -300, -190, -240),  # at 300; not at the end, but above the floor
        ended(3, -1_500, **DIVERGED),
        ended(4, -900, -190, **DIVERGED | {"exit_code": 1}),  # it failed after it got there
    ]
    row = cells(seeds_page.of_shares({GOAL: runs}))
    assert row[:2] == ["`env=pendulum trainer.num_env_steps=600`", "-200 within 600"]
    assert row[2:] == ["5", "4, 80 % [38, 96]", "2", "200", "1 of 4 below -250", "2 (1)", "12 s"]
    assert cells(seeds_page.of_steps({GOAL: runs}))[2:] == [
        "60 % [23, 88]",
        "80 % [38, 96]",
        "80 % [38, 96]",
    ]
    page = seeds_page.page({GOAL: runs})
    assert "- goal, seed 3, at 600 steps, exit code 4: `Q is 1e9 | too large`\n" in page


def test_rows_that_are_not_measured_are_said_to_be() -> None:
    page = seeds_page.page({GOAL: [], PAIR: [ended(0, 1.0)]})
    assert page.count("| not measured |") == 2
    assert "Failed runs" not in page
    assert cells(seeds_page.of_shares({replace(GOAL, floor=None): [ended(0, -900)]}))[5:7] == [
        "not reached",
        "-",
    ]


def test_with_and_without_the_model() -> None:
    on = [ended(seed, -400, -100 - seed) for seed in range(5)]
    off = [ended(seed, -600, -300 - seed, variant="off") for seed in range(4)]
    off.append(ended(4, -600, -50, variant="off", **DIVERGED))
    row = cells(seeds_page.of_model({PAIR: [*on, *off]}))
    assert row[1:4] == ["5 and 5", "-102 (-104 to -100)", "-302 (failed to -300)"]
    assert row[4:6] == ["100 % [100, 100]", "with the model is better"]
    assert row[6:] == ["-251 (-252 to -250)", "-451 (failed to -450)", "0 and 1 (1)", "12 s and 12 s"]
    # A run without an evaluation is no better than one that failed.
    assert ended(0, 1.0, score=None).final == ended(0, 1.0, score=None).area == -math.inf


def test_the_readme_shows_the_first_rows() -> None:
    text = f"# Title\n\n{seeds_page.BEGIN}\nold\n{seeds_page.END}\n\nrest\n"
    results = {replace(GOAL, name=str(i)): [ended(0, -100)] if i else [] for i in range(9)}
    found = seeds_page.with_first_rows(text, results)
    assert found.count("`env=pendulum ") == seeds_page.NUM_ROWS_OF_README
    assert "old" not in found
    assert found.endswith(f"{seeds_page.END}\n\nrest\n")
    assert seeds_page.with_first_rows(found, results) == found
    assert f"{seeds_page.BEGIN}\n{seeds_page.END}" in seeds_page.with_first_rows(found, {GOAL: []})


def test_page_and_readme_are_those_of_the_stored_numbers() -> None:
    results = {row: seeds.stored(seeds.OWN.file(row)) for row in seeds.ROWS}
    assert seeds.OWN.page.read_text() == seeds_page.page(results)
    readme = seeds.README.read_text()
    assert seeds_page.with_first_rows(readme, results) == readme
    runs = [run for runs in results.values() for run in runs]
    assert all(run.seed >= seeds.FIRST_SEED for run in runs), REPORTING


def test_every_row_is_evaluated_when_its_share_is_given() -> None:
    assert len({row.name for row in seeds.ROWS}) == len(seeds.ROWS)
    for row in seeds.ROWS:
        evaluated = range(row.evaluate_every, row.num_env_steps + 1, row.evaluate_every)
        assert {*row.steps, row.num_env_steps} <= set(evaluated), row.name


@pytest.mark.parametrize(("name", "variant"), [("inverted_pendulum", "on"), ("gym_dict", "off")])
def test_a_row_can_be_composed(name: str, variant: str) -> None:
    (row,) = (row for row in seeds.ROWS if row.name == name)
    config = make_config(*seeds.overrides(row, variant))
    trainer = config.trainer
    length = trainer.num_env_steps, trainer.evaluate_every_steps, trainer.num_eval_episodes
    assert length == (row.num_env_steps, row.evaluate_every, 20)
    assert (config.threads, config.device, config.mbpo.use_model) == (1, "cpu", variant == "on")


Runs = list[list[str]]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Replace training: each seed ends as `outcome` says, and the commands are returned."""
    monkeypatch.chdir(tmp_path)
    given: Runs = []

    def run_commands(
        commands: Sequence[list[str]],
        slots: Sequence[dict[str, str]],
        on_end: Callable[[int, str | None], None],
    ) -> None:
        for index, command in enumerate(commands):
            words = dict(word.split("=", 1) for word in command[3:])
            given.append(command)
            write_run(Path(words["hydra.run.dir"].strip("'")), int(words["seed"]))
            on_end(index, None)

    monkeypatch.setattr(seeds, "run_commands", run_commands)
    monkeypatch.setattr(seeds, "digest", lambda row, variant: "now")
    return given


SUMMARIES: dict[int, dict[str, Any] | None] = {
    1000: {"status": "done", "exit_code": None, "error": None},
    1001: DIVERGED,
    1002: {"status": "interrupted", "exit_code": None, "error": None},
    1003: {"status": "failed", "exit_code": 6, "error": "disk full"},
    1004: None,  # killed
}


def write_run(path: Path, seed: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "eval/return_mean": -100.0 - step} for step in (100, 200)]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    summary = SUMMARIES[seed]
    if summary is not None:
        numbers = {"env_steps": 200, "wall_seconds": 3.21, "score": -300.0}
        (path / "summary.json").write_text(json.dumps(summary | numbers))


def call(*words: str) -> int:
    return seeds.main(["--folder", "trial", "--first-seed", "1000", "--env", "pendulum", *words])


def seeds_in(commands: Runs) -> list[int]:
    found = [int(word[5:]) for command in commands for word in command if word.startswith("seed=")]
    commands.clear()
    return found


def test_what_has_ended_is_kept_and_the_rest_is_resumed(
    commands: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(*words: str) -> int:
        monkeypatch.chdir(tmp_path)
        return call(*words)

    assert again("--seeds", "5") == 1
    assert seeds_in(commands) == [1000, 1001, 1002, 1003, 1004]
    out = capsys.readouterr().out
    assert "2 of 5: pendulum seed 1001: failed after 3 s: Q is 1e9" in out
    assert "3 of 5: pendulum seed 1002: not finished" in out
    numbers = tmp_path / "trial" / "seeds" / "pendulum.jsonl"
    assert [run.seed for run in seeds.stored(numbers)] == [1000, 1001]
    assert seeds.stored(numbers)[0].returns == {100: -200, 200: -300}
    page = (tmp_path / "trial" / "seeds.md").read_text()
    assert "| 2 | 2, 100 % [34, 100] | 0 | 100 | - | 1 (1) | 3 s |" in page
    # The next call resumes the others, in the same directories.
    assert again("--seeds", "5") == 1
    assert seeds_in(commands) == [1002, 1003, 1004]
    # Also if the numbers were lost; without training, only they count.
    numbers.unlink()
    assert again("--table-only") == 0
    assert "not measured" in (tmp_path / "trial" / "seeds.md").read_text()
    assert again("--seeds", "2") == 0
    assert seeds_in(commands) == []
    assert (tmp_path / "trial" / "seeds.md").read_text() == page
    # Failed runs are trained again only on request, and from the start.
    (failed,) = (tmp_path / "trial" / "runs").glob("pendulum/on-*/1001")
    (failed / "old").touch()
    assert again("--seeds", "2", "--again") == 0
    assert seeds_in(commands) == [1001]
    assert not (failed / "old").exists()


def test_rows_with_other_options_are_measured_again(commands: Runs, tmp_path: Path) -> None:
    numbers = tmp_path / "seeds" / "pendulum.jsonl"
    seeds.store(numbers, [ended(1000, -1.0, options="before"), ended(1001, -1.0, options="before")])
    assert seeds.main(f"--folder {tmp_path} --env pendulum --first-seed 1000 --seeds 1".split()) == 0
    (run,) = seeds.stored(numbers)
    assert (run.seed, run.score) == (1000, -300)


def test_a_row_measured_by_several_commits_is_named(
    commands: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--folder {tmp_path} --env pendulum td3_pendulum --table-only".split()
    for name, commit in (("pendulum", "b" * 40), ("td3_pendulum", None)):
        runs = [ended(1000, -1.0, commit=commit), ended(1001, -1.0, commit="a" * 40)]
        seeds.store(tmp_path / "seeds" / f"{name}.jsonl", runs if commit else runs[1:])
    assert seeds.main(words) == 0
    out = capsys.readouterr().out
    assert f"\npendulum: its runs are of several commits: {'a' * 10}, {'b' * 10}\n" in out
    assert "td3_pendulum: " not in out


def test_the_digest_changes_with_what_changes_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {"mbpo.use_model": True, "agent.discount_factor": 0.99, "model.noise": 1, "threads": 1}

    def digest(**changes: Any) -> str:
        config = usual | {key.replace("__", "."): value for key, value in changes.items()}
        monkeypatch.setattr(seeds, "configuration", lambda overrides: config)
        return seeds.digest(GOAL, "on")

    assert digest() == digest(threads=2) == digest(compile=False)
    different = digest(), digest(agent__discount_factor=0.9), digest(model__noise=2), digest(agent__new=0)
    assert len({*different, digest(trainer__num_eval_episodes=3)}) == 5
    # Options of the model matter only with the model.
    assert digest(mbpo__use_model=False) == digest(mbpo__use_model=False, model__noise=2)


def test_a_signal_leaves_page_and_exit_code(
    commands: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*_: Any) -> None:
        raise Interrupted(None)

    monkeypatch.setattr(seeds, "run_commands", stopped)
    assert call("--seeds", "2") == 143
    assert "not measured" in (tmp_path / "trial" / "seeds.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--env Pendulum", "--env Pendulum: no such row; known are pendulum, pendulum_long, "),
        ("--first-seed 1000", "--first-seed 1000: seeds below 2000 need a --folder"),
        ("--steps 60", "--steps and --overrides need a --folder"),
        ("--overrides mbpo=off", "--steps and --overrides need a --folder"),
        ("--seeds 0", "--seeds 0: must be 1 or more"),
        ("--jobs -1 --folder trial", "--jobs -1: must be 1 or more"),
    ],
)
def test_mistakes(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        seeds.main(words.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("agent.critic_optimizer.learn_rate=10", "learn_rate=10: must be a number from 0 to 1"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_wrong_override_costs_one_line_and_writes_nothing(
    override: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--folder", "trial", "--env", "pendulum", "--overrides", override]
    assert seeds.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_trials_change_rows() -> None:
    words = ["--folder", "trial", "--env", "dqn*", "--steps", "800", "--overrides", "mbpo=off"]
    _, (row,) = seeds.arguments(words)
    assert (row.num_env_steps, row.evaluate_every, row.steps) == (800, 100, (600,))
    assert seeds.overrides(row, "on")[-1] == "mbpo=off"
    _, rows = seeds.arguments(["--rows", "gym_*", "acrobot"])
    assert [row.name for row in rows][:2] == ["acrobot", "gym_pendulum"]
    assert len(rows) == 9
    assert seeds.changed(row, 60, ()).steps == (60,)
