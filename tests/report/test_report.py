"""The report reads runs in any state, and names a winner only if that is certain."""

from __future__ import annotations

import base64
import csv
import fcntl
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mbpo_cli.commands.report import main, report
from mbpo_cli.failures import ConfigError
from mbpo_cli.report import reference, statistics, table, verdict
from mbpo_cli.report.groups import Group, grouped, telling_keys
from mbpo_cli.report.runs import Run, find, read
from mbpo_cli.report.sections import sections
from mbpo_cli.storage.records import stored_config


def write_run(
    path: Path,
    returns: Sequence[float] | Mapping[int, float] = (),
    status: str | None = "done",
    summary: Mapping[str, Any] | None = None,
    rest: str = "",
    **options: Any,
) -> Path:
    """Write a run; options are those of config.yaml, with __ for a dot.

    Args:
        path: Its directory.
        returns: Evaluations by step, or 100 steps apart.
        status: As in summary.json; None for a run without that file.
        summary: Further values of summary.json.
        rest: What follows the evaluations in metrics.jsonl.
        options: Values of options.
    """
    path.mkdir(parents=True)
    if not isinstance(returns, Mapping):
        returns = {100 * (i + 1): value for i, value in enumerate(returns)}
    values = {"agent__name": "sac", "env__name": "pendulum", "env__id": "Pendulum-v1", "seed": 0, **options}
    config: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split("__")
        tree = config
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[name] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rows: list[dict[str, float]] = [{"step": 50, "agent/entropy": 1.0}]
    rows += [{"step": step, "eval/return_mean": value} for step, value in returns.items()]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + rest)
    (path / "train.log").write_text("a log\n")
    if status is not None:
        closed = {"status": status, "env_steps": max(returns, default=0), "wall_seconds": 60.0}
        closed |= summary or {}
        (path / "summary.json").write_text(json.dumps(closed))
    return path


def run_in(path: Path) -> Run:
    run = read(path)
    assert run is not None
    return run


def groups_in(folder: Path) -> list[Group]:
    return grouped(map(run_in, find([folder])))


def two_agents(folder: Path, sac: Sequence[float], td3: Sequence[float], **options: Any) -> None:
    for agent, finals in (("sac", sac), ("td3", td3)):
        for seed, final in enumerate(finals):
            name = f"{agent}_{options.get('env__name', 'pendulum')}_{seed}"
            write_run(folder / name, (-1000.0, final), seed=seed, agent__name=agent, **options)


def records(output: Path) -> list[dict[str, str]]:
    with (output / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Statistics


def test_interquartile_mean_leaves_the_outer_quarters_out() -> None:
    estimate = statistics.interquartile_mean((-1e9, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1e9))
    assert estimate.value == 3.5
    assert estimate.low is not None
    assert estimate.low < 3.5


def test_interval_covers_the_mean_about_as_often_as_its_confidence() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        estimate = statistics.interquartile_mean(tuple(rng.normal(5.0, 2.0, 30)))
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 5.0 <= estimate.high
    assert 85 <= hits <= 99


def test_the_same_runs_give_the_same_interval() -> None:
    first = statistics.difference((1.0, 2.0, 4.0), (0.0, 3.0, 1.0))
    assert first == statistics.difference((1.0, 2.0, 4.0), (0.0, 3.0, 1.0))
    assert first.value == pytest.approx(7 / 3 - 4 / 3)


def test_one_seed_has_no_interval() -> None:
    assert statistics.interquartile_mean((3.0,)) == statistics.Estimate(3.0, None, None)
    assert statistics.probability_of_improvement([((3.0,), (1.0, 2.0))]) == statistics.Estimate(1.0)


def test_probability_of_improvement_counts_ties_half() -> None:
    # Of nine pairs, (2,1) (3,1) (3,2) are won, and (1,1) (2,2) are ties; the other four are lost.
    assert statistics.probability_of_improvement([((1, 2, 3), (1, 2, 4))]).value == pytest.approx(4 / 9)
    same = statistics.probability_of_improvement([((5, 5, 5), (5, 5, 5))])
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)


def test_probability_of_improvement_over_environments_is_the_mean() -> None:
    won, lost = ((5.0, 6.0, 7.0), (1.0, 2.0, 3.0)), ((0.0, 0.1), (1.0, 2.0, 3.0))
    both = statistics.probability_of_improvement([won, won, won, lost])
    # Neither environment overlaps, and nothing is resampled across environments.
    assert (both.value, both.low, both.high) == (0.75, 0.75, 0.75)


def test_steps_to_a_threshold() -> None:
    fast, slow, never = {100: 1.0, 200: 9.0, 300: 2.0}, {100: 1.0, 200: 2.0, 300: 5.0}, {100: 0.0, 200: 4.9}
    assert statistics.median_steps([fast, slow, never], 5.0) == (300.0, 2)
    assert statistics.median_steps([fast, never, never], 5.0) == (math.inf, 1)
    assert statistics.median_steps([fast, slow], 5.0) == (250.0, 2)


def test_mean_curve_extends_to_the_last_step_of_any_seed() -> None:
    curve = statistics.mean_curve([{100: 0.0, 200: 2.0, 300: 8.0}, {100: 2.0, 200: 4.0}, {150: 6.0}, {}])
    assert curve.steps.tolist() == [100, 150, 200, 300]
    assert curve.mean.tolist() == [1.0, (1 + 3 + 6) / 3, 3.0, 8.0]
    assert (curve.low[0], curve.high[0]) == (0.0, 2.0)
    assert np.isnan(curve.low[3])
    assert len(statistics.mean_curve([]).steps) == 0


# Runs


def test_a_finished_run(tmp_path: Path) -> None:
    run = run_in(write_run(tmp_path / "run", (1.0, 2.0), summary={"score": 1.5}, seed=7))
    assert (run.status, run.agent, run.env, run.seed) == ("done", "sac", "pendulum", "7")
    assert run.returns == {100: 1.0, 200: 2.0}
    assert (run.score, run.env_steps, run.wall_seconds) == (1.5, 200, 60.0)


def test_without_a_score_the_last_evaluation_is_the_final_return(tmp_path: Path) -> None:
    assert run_in(write_run(tmp_path / "run", (1.0, 2.0))).score == 2.0


def test_a_run_is_running_while_its_lock_is_held_and_killed_afterwards(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", (1.0,), status=None, rest='{"step": 200, "eval/return_me')
    with (path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_in(path).status == "running"
    run = run_in(path)
    assert (run.status, run.score, run.env_steps, run.wall_seconds) == ("killed", 1.0, 100, None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"{"),
        ("summary.json", b"[1]"),
        ("summary.json", b"[" * 100_000),
        ("config.yaml", b"a: [\xff"),
        ("config.yaml", b"[" * 50_000 + b"]" * 50_000),
        ("config.yaml", b"a: &a [1]\nb: [*a, *a]"),
        ("metrics.jsonl", b'{"step": "x", "eval/return_mean": 1}\nnull\n["eval/return_mean"]\n'),
        ("metrics.jsonl", b'{"eval/return_mean": 1}\n' + b'{"step": 1e999, "eval/return_mean": 1}\n'),
    ],
)
def test_a_broken_file_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes
) -> None:
    path = write_run(tmp_path / "run", (1.0,), summary={"agent": "sac", "env": "pendulum"})
    (path / name).write_bytes(content)
    assert run_in(path).env == "pendulum"
    assert len(caplog.messages) == 1
    assert name in caplog.messages[0]


def test_values_that_are_not_finite_numbers_are_left_out(tmp_path: Path) -> None:
    rest = '{"step": 200, "eval/return_mean": NaN}\n{"step": 300, "eval/return_mean": true}\n'
    run = run_in(
        write_run(tmp_path / "run", (1.0,), summary={"score": math.inf, "env_steps": None}, rest=rest)
    )
    assert (run.score, run.returns, run.env_steps) == (1.0, {100: 1.0}, 300)


def test_a_directory_without_agent_and_environment_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert read(tmp_path) is None
    assert "left out" in caplog.text


def test_runs_are_found_at_any_depth_once_and_not_within_runs(tmp_path: Path) -> None:
    inner = write_run(tmp_path / "a" / "b" / "run")
    (inner / "checkpoints").mkdir()
    (inner / "checkpoints" / "config.yaml").touch()
    assert find([tmp_path, inner, tmp_path / "a"]) == [inner]
    assert find([inner]) == [inner]


def test_a_configuration_that_exhausts_the_stack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{a: " * 40_000)
    with pytest.raises(ConfigError, match="not written by this program"):
        stored_config(tmp_path)


# Groups


def test_groups_ignore_options_that_do_not_affect_the_result(tmp_path: Path) -> None:
    for seed in range(3):
        harmless: dict[str, Any] = {"threads": seed, "trainer__num_env_steps": seed}
        write_run(tmp_path / f"{seed}", (1.0,), seed=seed, mbpo__real_ratio=0.2, **harmless)
    alone: dict[str, Any] = {"mbpo__real_ratio": 0.2, "mbpo__use_model": False}
    write_run(tmp_path / "alone", (1.0,), trainer__num_env_steps=3, **alone)
    write_run(tmp_path / "td3", (1.0,), agent__name="td3")
    labels = {group.label: len(group.runs) for group in groups_in(tmp_path)}
    assert labels == {
        "sac mbpo.use_model=(absent)": 3,
        "sac mbpo.use_model=false": 1,
        "td3": 1,
    }


def test_label_uses_the_fewest_keys_that_distinguish_configurations() -> None:
    same = {"p": "1", "q": "1", "r": "1", "s": "1", "mbpo.use_model": "true", "t": "9"}
    other = {"p": "2", "q": "2", "r": "2", "s": "3", "mbpo.use_model": "false", "t": "9"}
    third = {**other, "s": "4"}
    assert telling_keys([same, other]) == ["mbpo.use_model"]
    assert telling_keys([same, other, third]) == ["s"]
    assert telling_keys([{"p": "1", "q": "1"}, {"p": "2", "q": "2"}]) == ["p", "q"]


@pytest.mark.parametrize(
    ("mbpo", "transition", "model"),
    [
        ({"use_model": True}, {"distribution": "gaussian", "num_networks": 7}, "gaussian x 7"),
        ({"use_model": False}, {"distribution": "gaussian", "num_networks": 7}, "none"),
        ({"real_ratio": 1.0}, {"distribution": "gaussian", "num_networks": 7}, "none"),
        ({}, {"_target_": "mine.Own", "num_networks": 2}, "Own x 2"),
    ],
)
def test_description_of_the_model(
    tmp_path: Path, mbpo: Mapping[str, Any], transition: Mapping[str, Any], model: str
) -> None:
    write_run(tmp_path / "run", mbpo=mbpo, model={"transition": transition})
    (group,) = groups_in(tmp_path)
    assert group.model == model


def test_finished_runs_count_and_each_seed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path / "0", (1.0, 2.0), seed=0)
    write_run(tmp_path / "0_shorter", (5.0,), seed=0)
    write_run(tmp_path / "1", (9.0,), seed=1, status="failed", summary={"error": "Diverged: x"})
    write_run(tmp_path / "2", (9.0,), seed=2, status=None)
    write_run(tmp_path / "3", (3.0, 4.0), seed=3)
    (group,) = groups_in(tmp_path)
    assert sorted(group.scores) == [2.0, 4.0]
    row = table.row(group, None)
    assert (row["failed"], row["unfinished"], row["of_finished_runs"]) == (1, 1, True)
    counts = f"{tmp_path / '0'} with 200 steps counts, {tmp_path / '0_shorter'} not"
    assert f"sac on pendulum: seed 0 was run more than once: {counts}" in caplog.text


def test_of_two_runs_of_a_seed_the_one_of_the_usual_length_counts(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / str(seed), (1.0, float(seed)), seed=seed)
    write_run(tmp_path / "longer", (1.0, 2.0, 77.0), seed=1)
    write_run(tmp_path / "shorter", (55.0,), seed=2)
    (group,) = groups_in(tmp_path)
    assert sorted(group.scores) == [0.0, 1.0, 2.0]
    for seed in (0, 2, 3):
        write_run(tmp_path / f"longer_{seed}", (1.0, 2.0, 10.0 + seed), seed=seed)
    (group,) = groups_in(tmp_path)
    assert sorted(group.scores) == [10.0, 12.0, 13.0, 77.0]


def test_all_runs_count_if_none_has_finished(tmp_path: Path) -> None:
    write_run(tmp_path / "0", (1.0,), seed=0, status="interrupted")
    write_run(tmp_path / "1", (3.0,), seed=1, status=None)
    write_run(tmp_path / "2", (), seed=2, status=None)
    (group,) = groups_in(tmp_path)
    assert sorted(group.scores) == [1.0, 3.0]
    assert not table.row(group, None)["of_finished_runs"]


# Table and thresholds


@pytest.mark.parametrize(
    ("env_id", "chosen", "value", "source"),
    [
        ("CartPole-v1", None, 475.0, "Gymnasium"),
        ("CartPole-v1", 100.0, 100.0, "--threshold"),
        ("no/such:thing-v0", None, -1000.0 + 0.95 * 900.0, "95 %"),
    ],
)
def test_threshold(tmp_path: Path, env_id: str, chosen: float | None, value: float, source: str) -> None:
    two_agents(tmp_path, (-100.0, -100.0), (-300.0, -300.0), env__id=env_id)
    groups = groups_in(tmp_path)
    curves = [statistics.mean_curve([run.returns for run in group.runs]) for group in groups]
    threshold = table.threshold_of(groups, curves, chosen)
    assert threshold is not None
    assert threshold.value == pytest.approx(value)
    assert threshold.source.startswith(source)


def test_csv_has_every_group_in_full_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_agents(tmp_path / "runs", (-100.0, -110.0, -120.5), (-300.0,))
    report([tmp_path / "runs"], tmp_path / "out", threshold=-115)
    sac, td3 = records(tmp_path / "out")
    assert (sac["agent"], sac["seeds"], sac["steps_max"], sac["wall_seconds"]) == ("sac", "3", "200", "60.0")
    assert float(sac["return_mean"]) == pytest.approx(-330.5 / 3)
    assert float(sac["return_std"]) == pytest.approx(np.std([-100.0, -110.0, -120.5], ddof=1))
    low, iqm, high = (float(sac[f"return_iqm{end}"]) for end in ("_low", "", "_high"))
    assert -120.5 <= low < iqm < high <= -100.0
    assert (float(sac["steps_to_threshold"]), sac["seeds_at_threshold"]) == (200.0, "2")
    assert (td3["return_std"], td3["return_iqm_low"], td3["steps_to_threshold"]) == ("", "", "inf")
    line = next(line for line in capsys.readouterr().out.splitlines() if " td3 " in line)
    assert re.search(r"-300  +-300  +not reached", line)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((3123.4, 12.0), ("3,123", "12")),
        ((12.34, -0.04), ("12.3", "0.0")),
        ((0.5, None), ("0.50", "-")),
    ],
)
def test_numbers_share_their_decimals(values: tuple[float | None, ...], texts: tuple[str, ...]) -> None:
    assert tuple(text.replace("-0.0", "0.0") for text in table.numbers(*values)) == texts


# Verdicts


def verdict_of(folder: Path) -> verdict.Verdict:
    groups = sorted(groups_in(folder), key=lambda group: -sum(group.scores))
    pairs = [verdict.compare(groups[0], other) for other in groups[1:]]
    rows = [table.row(group, table.Threshold(-200.0, "here")) for group in groups]
    return verdict.verdict(rows, pairs)


@pytest.mark.parametrize(
    ("sac", "td3", "kind", "headline"),
    [
        ((-100, -110, -120, -130), (-300, -310, -320, -330), "won", "sac is better than td3 by 200"),
        ((-100, -300, -105, -290), (-110, -310, -300, -100), "open", "Too close to call: sac leads by "),
        ((-100, -110), (-300, -310, -320), "open", "Too few seeds: sac leads by "),
        ((0,) * 34 + (100,) * 16, (1,) * 50, "open", "The measures disagree: sac leads by "),
    ],
)
def test_verdict(
    tmp_path: Path, sac: Sequence[float], td3: Sequence[float], kind: str, headline: str
) -> None:
    two_agents(tmp_path, sac, td3)
    said = verdict_of(tmp_path)
    assert said.kind == kind
    assert said.headline.startswith(headline)


def test_a_verdict_has_the_difference_its_certainty_and_the_steps_to_the_threshold(tmp_path: Path) -> None:
    two_agents(tmp_path, (-100, -110, -120, -130), (-300, -310, -320, -330))
    said = verdict_of(tmp_path).sentence
    assert said.startswith("Score (IQM): -115, against -315 for td3 (95 % interval of the difference: ")
    assert "a run of sac beats a run of td3: 100 % [100, 100]. Seeds: 4 and 4." in said
    assert said.endswith("Median steps to a return of -200: 200 and not reached.")


def test_a_verdict_has_notes_on_unfinished_failed_and_shorter_runs(tmp_path: Path) -> None:
    two_agents(tmp_path, (-100, -110, -120), ())
    for seed in range(3):
        write_run(tmp_path / f"td3_{seed}", (-300,), seed=seed, agent__name="td3", status=None)
    write_run(tmp_path / "bad", (), seed=9, status="failed")
    notes = " ".join(verdict_of(tmp_path).notes)
    assert "no run of td3 has finished" in notes
    assert "1 of sac" in notes
    assert "100 to 200 steps" in notes


def test_agents_are_compared_over_the_environments_that_they_share(tmp_path: Path) -> None:
    for env in ("pendulum", "hopper"):
        two_agents(tmp_path, (5, 6, 7), (1, 2, 3), env__name=env)
    write_run(tmp_path / "only", (9,), env__name="ant")
    (pair,) = verdict.compare_over_environments(groups_in(tmp_path))
    assert (pair.where, pair.winner, pair.gain) == (("hopper", "pendulum"), "sac", None)
    assert pair.probability.value == 1.0


# All figures


def test_figures_are_those_of_version_0_1(tmp_path: Path) -> None:
    """figures.json has small runs (finished, failed, interrupted, killed, and one without evaluations).

    Its expected values are those that the report of version 0.1.0 computed from them.
    """
    stored = json.loads((Path(__file__).parent / "figures.json").read_text())
    for run in stored["runs"]:
        returns = {int(step): value for step, value in run["returns"].items()}
        options = {key.replace(".", "__"): value for key, value in run["options"].items()}
        summary = run["summary"] or {}
        write_run(tmp_path / run["name"], returns, summary.get("status"), summary, **options)
    groups = groups_in(tmp_path)
    found = sections(groups, {}, None)
    assert [section.env for section in found] == list(stored["expected"])
    for section, expected in zip(found, stored["expected"].values(), strict=True):
        assert [group.variant for group in section.groups] == expected["variants"]
        assert [value for row in section.rows for value in row.values()] == [
            approximately(value) for row in expected["rows"] for value in row.values()
        ]
        assert [list(row) for row in section.rows] == [list(row) for row in expected["rows"]]
        assert section.verdict.kind == expected["kind"]
        pairs = [
            [p.ours, p.theirs, *p.seeds, *limits(p.gain), *limits(p.probability), p.winner]
            for p in section.comparisons
        ]
        assert pairs == [
            [ours, theirs, *seeds, *map(approximately, (*gain, *probability)), winner]
            for ours, theirs, *seeds, gain, probability, winner in expected["pairs"]
        ]
        for group, curve in zip(section.groups, expected["curves"], strict=True):
            mean_curve = statistics.mean_curve([run.returns for run in group.runs])
            for name, values in curve.items():
                actual = getattr(mean_curve, name)
                np.testing.assert_allclose(actual, np.array(values, np.float64), rtol=1e-12)
    (over,) = verdict.compare_over_environments(groups)
    *names_and_seeds, probability, winner = stored["over_environments"][0]
    assert [*over.where, over.ours, over.theirs, *over.seeds, over.winner] == [*names_and_seeds, winner]
    assert limits(over.probability) == list(map(approximately, probability))


def limits(estimate: statistics.Estimate | None) -> list[float | None]:
    assert estimate is not None
    return [estimate.value, estimate.low, estimate.high]


def approximately(value: Any) -> Any:
    """Return a value that equals all that differ from it only by rounding."""
    return pytest.approx(value, rel=1e-12) if isinstance(value, float) else value


# Reference


def test_reference_is_drawn_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "run", (1.0, 2.0), env__name="hopper", env__id="Hopper-v5")
    published = tmp_path / "published.csv"
    report([tmp_path / "runs"], tmp_path / "without")
    published.write_text(
        "env,env_steps,return_mean,return_std,num_seeds\nHopper,150,7,1,5\nHopper,900,9,1,5\n"
    )
    report([tmp_path / "runs"], tmp_path / "with", published)
    assert "Reference at 150 steps: 7.00 ± 1.00 (5 seeds" in capsys.readouterr().out
    assert (tmp_path / "with/hopper.png").read_bytes() != (tmp_path / "without/hopper.png").read_bytes()


def test_names_match_loosely(tmp_path: Path) -> None:
    curve = reference.Reference((1.0,), (1.0,), (0.0,), 5)
    curves = {reference.plain("HalfCheetah"): curve}
    for name in ("half_cheetah", "HalfCheetah-v5", "gym/HalfCheetah-v2"):
        assert reference.matching(curves, ["x", name]) is curve
    assert reference.matching(curves, ["cheetah", "HalfCheetah5"]) is None


# The command


def failure(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_wrong_argument_is_reported_in_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = write_run(tmp_path / "run", (1.0,)), tmp_path / "out"
    (empty := tmp_path / "empty").mkdir()
    (file := tmp_path / "file").write_text("env,env_steps\n")
    output = ("--output", out)
    assert failure(capsys, run, tmp_path / "none", *output).endswith("none: not a directory")
    assert failure(capsys, run, empty, *output).endswith("empty: holds no run")
    assert "return_mean" in failure(capsys, run, "--reference", file, *output)
    assert "cannot be read" in failure(capsys, run, "--reference", tmp_path / "no.csv", *output)
    assert "not a directory" in failure(capsys, run, "--output", file)
    file.write_text("env,env_steps,return_mean,return_std,num_seeds\nHopper,1,two,3,4\n")
    assert "two" in failure(capsys, run, "--reference", file, *output)
    assert not out.exists()


HOSTILE = "<script>alert(1)</script>$\\frac'\"\x1b[31m/../../x"


def test_hostile_names_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate((HOSTILE, "sac")):
        names: dict[str, Any] = {"agent__name": name, "env__name": HOSTILE, "env__id": HOSTILE}
        write_run(tmp_path / "runs" / f"<b>&{seed}", (1.0,), **names)
    write_run(tmp_path / "runs" / "bad", status="failed", summary={"error": HOSTILE}, env__name=HOSTILE)
    report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page + capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert not list(tmp_path.glob("*.png"))


FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "=1,2\n=3")


def test_no_cell_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    for seed, name in enumerate(FORMULAS):
        write_run(tmp_path / "runs" / str(seed), (-1.0,), agent__name=name, env__name="=A1", model__note=name)
    report([tmp_path / "runs"], tmp_path / "out")
    rows = records(tmp_path / "out")
    assert len(rows) == len(FORMULAS)
    for row in rows:
        assert row["return_mean"] == "-1.0"
        assert not [row[key] for key in ("env", "agent", "model") if row[key].startswith(tuple("=+-@\t\r"))]


def test_links_of_the_page_stay_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("javascript:alert(1)", "%2e%2e", '"onclick="x', "http:", "a&b;c"):
        write_run(tmp_path / name, (1.0,))
    monkeypatch.chdir(tmp_path)
    report([Path(".")], Path("."))
    page = (tmp_path / "index.html").read_text()
    targets = re.findall(r'href="([^"]*)"', page)
    assert not [target for target in targets if re.match(r"(?!http://localhost:6006$)[\w+.-]+:", target)]
    assert '"onclick=' not in page


def test_the_report_is_not_written_through_links(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", (1.0,))
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("mine")
    names = ("index.html", "report.csv", "pendulum.png")
    for name in (*names, *(f"{name}.tmp" for name in names)):
        (tmp_path / "out" / name).symlink_to("../mine")
    report([tmp_path / "runs"], tmp_path / "out")
    assert (tmp_path / "mine").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == sorted(names)
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_symlink()]


def test_numbers_of_any_size_can_be_read(tmp_path: Path) -> None:
    lines = [
        '{"step": 1%s, "eval/return_mean": 1.0}' % ("0" * 400),
        '{"step": 1e308, "eval/return_mean": 1.0}',
        '{"step": -5, "eval/return_mean": 1.0}',
        '{"step": 5, "eval/return_mean": 1.7e308}\n{"step": 6, "eval/return_mean": -1.7e308}',
        '{"step": 7, "eval/return_mean": 1.0}',
    ]
    for seed, line in enumerate(lines):
        summary = {"score": 1.7e308, "env_steps": 10**400, "wall_seconds": -1e308}
        path = write_run(tmp_path / "runs" / str(seed), summary=summary, seed=seed)
        (path / "metrics.jsonl").write_text(line + "\n")
    report([tmp_path / "runs"], tmp_path / "out")
    (row,) = records(tmp_path / "out")
    assert (row["seeds"], row["return_mean"], row["steps_max"]) == ("1", "1.0", "7")


def test_directories_are_searched_to_a_depth_that_python_can_walk(tmp_path: Path) -> None:
    path = write_run(tmp_path.joinpath("run", *["a"] * 40))
    write_run(tmp_path.joinpath("other", *["a"] * 60))
    assert find([tmp_path]) == [path]


def test_the_page_is_self_contained_and_links_to_logs(tmp_path: Path) -> None:
    two_agents(tmp_path / "runs", (-1, -2, -3), (-4, -5, -6))
    write_run(tmp_path / "runs" / "bad #1", status="failed", summary={"error": "Diverged: Q is 1e9"}, seed=5)
    report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    (image,) = [base64.b64decode(s.partition(",")[2]) for s in sources if s.startswith("data:image/png")]
    assert image == (tmp_path / "out" / "pendulum.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    rest = {s for s in sources if not s.startswith(("data:", "#", "http://localhost:6006", "../runs/"))}
    assert not rest
    assert "../runs/sac_pendulum_0/train.log" in sources
    assert "../runs/bad%20%231/train.log" in sources
    assert "Diverged: Q is 1e9" in page
    assert f"tensorboard --logdir {tmp_path / 'runs'}" in page


def test_page_of_runs_without_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    early = {"status": "failed", "error": "x", "agent": "sac", "env": "ant", "seed": 0, "env_steps": 0}
    (tmp_path / "runs" / "summary.json").write_text(json.dumps(early))
    report([tmp_path / "runs"], tmp_path / "out")
    assert "It has not been evaluated yet." in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "report.csv"]
    (only,) = records(tmp_path / "out")
    assert (only["failed"], only["seeds"], only["return_mean"]) == ("1", "0", "")


def test_the_report_starts_without_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "run", (1.0,))
    code = (
        "import sys; from mbpo_cli.commands.report import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), "--output", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "out" / "index.html").exists()
