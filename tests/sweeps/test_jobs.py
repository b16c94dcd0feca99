"""Jobs of a sweep: their names and directories, and what counts as their result."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbpo_cli.commands import train as cli
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.files import lock, unlock
from mbpo_cli.storage.records import LOCK, config_digest
from mbpo_cli.sweeps.jobs import (
    MAX_NAME,
    MAX_REASON,
    Job,
    check_directories,
    check_equal,
    closing_table,
    folded,
    name_of,
    names_of,
)
from tests.conftest import TINY

CONFIG = make_config(*TINY)


def job_in(path: Path, seed: int = 0, **trainer: Any) -> Job:
    config = replace(CONFIG, seed=seed, trainer=replace(CONFIG.trainer, **trainer))
    return Job(path.name, (f"seed={seed}",), path, config)


def finish(job: Job, score: Any = 1.5, **changes: Any) -> None:
    """Leave in its directory what a finished run leaves."""
    job.path.mkdir(parents=True, exist_ok=True)
    (job.path / "config.yaml").write_text(yaml.safe_dump(asdict(job.config), sort_keys=False))
    summary = {
        "status": "done",
        "error": None,
        "agent": job.config.agent.name,
        "env": job.config.env.name,
        "seed": job.config.seed,
        "env_steps": job.config.trainer.num_env_steps,
        "score": score,
        "wall_seconds": 3.0,
        "config": config_digest(job.path),
    }
    (job.path / "summary.json").write_text(json.dumps(summary | changes))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["agent=sac", "seed=0"], "agent=sac,seed=0"),
        (["experiment=paper/hopper", "seed=range(0,3)"], "experiment=paper_hopper,seed=range_0,3"),
        (["agent.hidden_sizes=[64,64]"], "agent.hidden_sizes=_64,64"),
        (["env.kwargs={g: 9.8}"], "env.kwargs=_g_9.8"),
        (["../../x='y'"], ".._.._x=_y"),
        ([], "default"),
    ],
)
def test_overrides_become_the_name_of_a_directory(overrides: list[str], expected: str) -> None:
    assert name_of(overrides) == expected


@pytest.mark.parametrize("letter", ["x", "\u0416", "\u6f22", "\U00010400"])
def test_long_names_are_cut_and_stay_unique(letter: str) -> None:
    names = {name_of([f"key={letter * 300}{end}"]) for end in "ab"}
    assert len(names) == 2
    assert max(len(name.encode()) for name in names) < MAX_NAME + 10


@pytest.mark.parametrize(
    "values",
    [
        ("a/b", "a_b", "a b", "a//b"),
        ("{a: 1}", "{a,1}", "[a: 1]"),
        ("Hopper", "hopper", "HOPPER"),
        ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9"), "caf_", "CAF\u00c9"),
        ("\ufb01t", "fit", "FIT"),
        ("1K", "1\u212a", "1k"),
        ("stra\u00dfe", "strasse"),
        ("x", "x_", "_x", "'x'"),
        ("x" * 300 + "/", "x" * 300 + "_", "X" * 300),
        ("\u6f22" * 90 + "a", "\u6f22" * 90 + "A"),
        ("\udcff", "\udcfe"),
    ],
)
def test_names_differ_on_every_file_system(values: tuple[str, ...]) -> None:
    jobs = [["env=gym", f"env.id={value}"] for value in values]
    names = names_of(jobs)
    assert len({folded(name) for name in names}) == len(values)
    assert names_of(jobs[::-1]) == names[::-1]
    assert all(len(name.encode()) < 200 for name in names)


def test_names_that_differ_are_left_alone() -> None:
    assert names_of([["a=1", "seed=0"], ["a=1", "seed=1"]]) == ["seed=0", "seed=1"]
    assert names_of([["a=1", "seed=0"]]) == ["a=1,seed=0"]


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ("s/a", "s/a", "the same directory: {}/s/a"),
        ("s/a", "s/b/../a", "the same directory: "),
        ("s/a", "link/a", "the same directory: "),
        ("s/a", "s/a/b", "directories one inside the other: {0}/s/a and {0}/s/a/b"),
        ("s/b/c/d", "s/b", "directories one inside the other: "),
        ("s/a", "link", "directories one inside the other: "),
        ("s", "s/../s/a", "directories one inside the other: "),
        ("s/a", "s/A", "directories that some file systems do not distinguish: {0}/s/a and {0}/s/A"),
        ("s/caf\u00e9", unicodedata.normalize("NFD", "s/caf\u00e9"), "directories that some file systems"),
        ("s/A/b", "s/a", "directories one inside the other: "),
    ],
)
def test_two_jobs_in_one_directory_are_refused(first: str, second: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("s")
    jobs = [job_in(tmp_path / name, seed) for seed, name in enumerate((first, "s/between", second))]
    with pytest.raises(ConfigError) as caught:
        check_directories(jobs, "hydra.sweep.subdir=${x}")
    line = str(caught.value)
    assert line.startswith("hydra.sweep.subdir=${x}: ")
    assert "job 0 (seed=0)" in line
    assert "job 2 (seed=2)" in line
    assert problem.format(tmp_path) in line


def test_other_directories_are_not_refused(tmp_path: Path) -> None:
    names = ("a", "a-", "a.b", "aa", "b/a", "ab/c", "../a")
    check_directories([job_in(tmp_path / "s" / name) for name in names], "hydra.sweep.dir=s")


def test_two_equal_jobs_are_refused() -> None:
    first = Job("a", ("agent=sac", "seed=0"), Path("a"), CONFIG)
    small = replace(CONFIG, agent=replace(CONFIG.agent, name="small"))
    second = Job("b", ("agent=small", "seed=0", "hydra.sweep.subdir='b'"), Path("b"), small)
    with pytest.raises(ConfigError) as caught:
        check_equal([first, second])
    assert str(caught.value) == (
        "job 0 (agent=sac) and job 1 (agent=small) have the same configuration; leave one out"
    )
    with pytest.raises(ConfigError, match=r"job 1 \(seed=1\) and job 2 \(seed=1\)"):
        check_equal([job_in(Path("x"), seed) for seed in (0, 1, 1)])
    different = [job_in(Path("x"), num_env_steps=steps) for steps in (10, 30)]
    check_equal([job_in(Path("x"), seed) for seed in (0, 1)] + different)


def sweep_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[object, list[Path]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mbpo-train", "-m", *TINY, *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["seed=0,1", "hydra.sweep.dir=s", "hydra.sweep.subdir=${agent.name}"],
            "hydra.sweep.subdir=${agent.name}: job 0 (seed=0) and job 1 (seed=1) have the same directory: s/",
        ),
        (
            ["seed=0,1", "hydra.sweep.dir='s${seed}/../s'", "hydra.sweep.subdir=x"],
            "hydra.sweep.subdir=x: job 0 (seed=0) and job 1 (seed=1) have the same directory: ",
        ),
        (
            ["hydra/sweeper=optuna", "agent.discount_factor=0.9,0.99", "hydra.sweep.subdir=x"],
            "hydra.sweep.subdir: a search names its directories itself; leave it out",
        ),
        (
            ["agent.name=a,b", "seed=0,0", "hydra.sweep.dir=s"],
            "job 0 (agent.hidden_sizes=[8] ",
        ),
    ],
)
def test_a_sweep_whose_jobs_are_not_distinct_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert sweep_here(tmp_path, monkeypatch, *arguments) == (2, [])
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"mbpo-train: error: {message}")
    assert output.err.count("\n") == 1


def copied(job: Job, **changes: Any) -> None:
    """The summary of a run whose options differ where no summary tells."""
    finish(job)
    other = replace(job.config, agent=replace(job.config.agent, discount_factor=0.5))
    config = yaml.safe_dump(asdict(other), sort_keys=False)
    digest_of_other = (job.path / "config.yaml").read_text()
    (job.path / "config.yaml").write_text(config)
    digest = config_digest(job.path)
    (job.path / "config.yaml").write_text(digest_of_other)
    finish(job, config=digest, **changes)


def with_config(**trainer: Any) -> Callable[[Job], None]:
    """A finished run with another length or other evaluations."""

    def write(job: Job) -> None:
        finish(replace(job, config=replace(job.config, trainer=replace(job.config.trainer, **trainer))))
        digest = config_digest(job.path)
        summary = json.loads((job.path / "summary.json").read_text())
        (job.path / "summary.json").write_text(json.dumps({**summary, "env_steps": 20, "config": digest}))

    return write


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def with_summary(text: bytes) -> Callable[[Job], None]:
    def write(job: Job) -> None:
        finish(job)
        (job.path / "summary.json").write_bytes(text)

    return write


def instead_of_file(name: str, make: Callable[[Path], Any]) -> Callable[[Job], None]:
    def write(job: Job) -> None:
        finish(job)
        (job.path / name).rename(job.path.parent / "moved")
        make(job.path / name)

    return write


ANOTHER = "failed: its summary is of another run"
UNFINISHED = "not finished"


@pytest.mark.parametrize(
    ("leave", "how"),
    [
        (lambda job: finish(job, seed=1), ANOTHER),
        (lambda job: finish(job, agent="td3"), ANOTHER),
        (lambda job: finish(job, env="hopper"), ANOTHER),
        (copied, ANOTHER),
        (with_config(num_env_steps=21), ANOTHER),
        (with_config(num_env_steps=10), ANOTHER),
        (with_config(num_eval_episodes=9), ANOTHER),
        (with_config(num_score_evaluations=9), ANOTHER),
        (instead_of_file("config.yaml", lambda path: None), ANOTHER),
        (instead_of_file("config.yaml", lambda path: path.write_text("{")), ANOTHER),
        (instead_of_file("config.yaml", Path.mkdir), ANOTHER),
        (instead_of_file("config.yaml", os.mkfifo), ANOTHER),
        (lambda job: finish(job, env_steps=19), "not finished: 19 of 20 steps"),
        (lambda job: finish(job, env_steps=40), "not finished: 40 of 20 steps"),
        (lambda job: finish(job, env_steps="20"), "not finished: 20 of 20 steps"),
        (lambda job: finish(job, env_steps=None), "not finished: None of 20 steps"),
        (lambda job: finish(job, None), "failed: the score in its summary is null"),
        (lambda job: finish(job, float("nan")), "failed: the score in its summary is NaN"),
        (lambda job: finish(job, float("inf")), "failed: the score in its summary is Infinity"),
        (lambda job: finish(job, "1.5"), 'failed: the score in its summary is "1.5"'),
        (lambda job: finish(job, True), "failed: the score in its summary is true"),
        (lambda job: finish(job, [1.5]), "failed: the score in its summary is [1.5]"),
        (lambda job: finish(job, 10**400), f"failed: the score in its summary is {10**400}"),
        (lambda job: finish(job, status="failed", error="a\nb"), "failed: a b"),
        (lambda job: finish(job, status="failed", error="a" * 10**5), "failed: aaa"),
        (lambda job: finish(job, status="interrupted"), "interrupted"),
        (lambda job: finish(job, status=["done"]), UNFINISHED),
        (with_summary(b""), UNFINISHED),
        (with_summary(b"{"), UNFINISHED),
        (with_summary(b"[1]"), UNFINISHED),
        (with_summary(b"{}"), UNFINISHED),
        (with_summary(b"\xff\xfe"), UNFINISHED),
        (with_summary(b"[" * 100_000), UNFINISHED),
        (with_summary(b'{"status": "done", "score": ' + b"9" * 10_000 + b"}"), UNFINISHED),
        (instead_of_file("summary.json", lambda path: None), UNFINISHED),
        (instead_of_file("summary.json", Path.mkdir), UNFINISHED),
        (instead_of_file("summary.json", os.mkfifo), UNFINISHED),
        (instead_of_file("summary.json", lambda path: path.symlink_to("../moved")), UNFINISHED),
        (instead_of_file("summary.json", huge), UNFINISHED),
    ],
)
def test_only_a_score_of_the_job_counts(leave: Callable[[Job], None], how: str, tmp_path: Path) -> None:
    job = job_in(tmp_path / "job")
    leave(job)
    score, text = job.result()
    assert score is job.score is None
    assert text.startswith(how[: MAX_REASON - 3])
    assert len(text) <= MAX_REASON
    assert "\n" not in text
    assert closing_table([job], 0, {}).splitlines()[1] == f"  job  {text}"


def test_a_finished_run_of_the_job_counts(tmp_path: Path) -> None:
    job = job_in(tmp_path / "job")
    assert job.result() == (None, "not finished")
    for score in (1.5, -2, 0):
        finish(job, score)
        assert job.result() == (score, "done")
    # A run of an older version, which stored no digest; options that change no score.
    finish(replace(job, config=replace(job.config, threads=1, compile=False)))
    summary = json.loads((job.path / "summary.json").read_text())
    del summary["config"]
    (job.path / "summary.json").write_text(json.dumps(summary))
    assert job.score == 1.5


@pytest.mark.parametrize(
    "changes", [{"num_env_steps": 19}, {"num_eval_episodes": 9}, {"evaluate_every_steps": 3}]
)
def test_a_finished_run_that_the_job_cannot_continue_is_refused(
    changes: dict[str, int], tmp_path: Path
) -> None:
    finish(job_in(tmp_path / "job"))
    ((key, value),) = changes.items()
    with pytest.raises(
        ConfigError, match=rf"hydra\.sweep\.dir=.*a run of 20 steps .*trainer\.{key}: .*{value}"
    ):
        job_in(tmp_path / "job", **changes).check()
    for harmless in ({"num_env_steps": 21}, {"num_score_evaluations": 9}, {"log_every_steps": 7}):
        job_in(tmp_path / "job", **harmless).check()


def test_a_failure_is_recorded_unless_there_is_a_summary_or_the_job_still_runs(tmp_path: Path) -> None:
    job = job_in(tmp_path / "job", seed=3)
    job.path.mkdir()
    held = lock(job.path / LOCK)
    assert not job.record_failure("no")
    assert job.summary is None
    unlock(held)
    assert job.record_failure("first\nline")
    first = job.summary
    assert first == {
        "status": "failed",
        "error": "first line",
        "agent": "sac",
        "env": "pendulum",
        "seed": 3,
    }
    assert job.record_failure("second")
    assert job.summary == first
    assert job.record_failure("of the next attempt", earlier=first)
    assert job.result() == (None, "failed: of the next attempt")


def test_a_failure_that_cannot_be_written_is_in_the_table(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("file", "folder", "lock")]
    places[0].touch()
    (places[1] / "summary.json").mkdir(parents=True)
    (places[2] / LOCK).mkdir(parents=True)
    jobs = [job_in(place) for place in places]
    assert [job.record_failure("disk full") for job in jobs] == [False] * 3
    table = closing_table(jobs, 0, {job.path: "failed: disk full" for job in jobs})
    assert table.count("failed: disk full") == 3


def test_the_table_names_the_jobs_without_a_score(tmp_path: Path) -> None:
    jobs = [job_in(tmp_path / name) for name in ("good", "bad", "lost")]
    finish(jobs[0])
    jobs[1].record_failure("it is bad")
    table = closing_table(jobs, 1, {jobs[2].path: "not finished: it was not started"})
    assert table.splitlines() == [
        "1 of 3 jobs done (1 before)",
        "  bad   failed: it is bad",
        "  lost  not finished: it was not started",
        "run the same command again to finish these jobs; jobs that are done are kept",
    ]
