"""Searches: the values they try, pruning, counting, and resuming."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from hydra_plugins.mbpo.sweepers import SearchSweeper, check_space, ends_of, space_of
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import options_in
from mbpo_cli.failures import ConfigError
from mbpo_cli.storage import records
from mbpo_cli.sweeps import search as search_module
from mbpo_cli.sweeps.jobs import Job
from mbpo_cli.sweeps.search import Search
from tests.conftest import CONF, TINY
from tests.sweeps import test_jobs
from tests.sweeps.test_sweeps import COMMAND, FRAGILE

SPACE = {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 4)}
CONFIG = make_config(*TINY)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "WATCH_SECONDS", 0.01)


def open_search(path: Path, **changes: Any) -> Search:
    values: dict[str, Any] = {
        "storage": f"sqlite:///{path}/study.db",
        "study_name": "s",
        "space": SPACE,
        "constants": ["env=pendulum"],
        "sampler_seed": 0,
        "num_unpruned_steps": 5,
        **changes,
    }
    return Search(path, **values)


def jobs_in(path: Path) -> Callable[[str, Mapping[str, Any]], list[Job]]:
    def jobs_of(name: str, values: Mapping[str, Any]) -> list[Job]:
        overrides = tuple(f"{key}={value}" for key, value in values.items())
        return [
            Job(f"{name}/{seed}", overrides, path / name / str(seed), replace(CONFIG, seed=seed))
            for seed in (0, 1)
        ]

    return jobs_of


def value_of(job: Job) -> float:
    """The score of a simulated run, which grows with x and with the seed."""
    return float(job.overrides[0].partition("=")[2]) + job.config.seed


def finish(job: Job, status: str = "done") -> None:
    test_jobs.finish(job, value_of(job), status=status)


def finish_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        finish(job)


def states(search: Search) -> list[str]:
    return [trial.state.name for trial in search.study.get_trials()]


def test_overrides_in_hydras_grammar_become_a_search_space() -> None:
    constants, space = space_of(
        [
            "agent=sac",
            "a=interval(0,1)",
            "b=tag(log,interval(1e-4,1e-2))",
            "c=int(interval(1,10))",
            "d=range(1,11)",
            "e=range(0,8,3)",
            "h=range(0.5,1.5,0.25)",
            "f=choice(1,[2,3],z)",
            "g=x,y",
            "a=interval(0,2)",
            "d=5",
        ]
    )
    assert constants == ["agent=sac", "d=5"]
    assert space == {
        "a": FloatDistribution(0, 2),
        "b": FloatDistribution(1e-4, 1e-2, log=True),
        "c": IntDistribution(1, 10),
        "e": IntDistribution(0, 6, step=3),
        "h": FloatDistribution(0.5, 1.25, step=0.25),
        "f": CategoricalDistribution(["1", "[2,3]", "z"]),
        "g": CategoricalDistribution(["x", "y"]),
    }
    assert ends_of(space["c"]) == [1, 10]
    assert ends_of(space["g"]) == ["x", "y"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=0,1", "seed=0,1: a search takes hydra.sweeper.seeds"),
        ("a=interval(1,0)", r"a=interval\(1,0\): "),
        ("a=range(3,3)", r"a=range\(3,3\): "),
        ("a=tag(log,interval(0,1))", r"a=tag\(log,interval\(0,1\)\): "),
    ],
)
def test_invalid_overrides_of_a_search_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of([override])


@pytest.mark.parametrize(
    ("space", "task"),
    [
        ("sac", ["agent=sac", "env=pendulum"]),
        ("td3", ["agent=td3", "env=hopper"]),
        ("ddpg", ["agent=ddpg", "env=humanoid"]),
        ("dqn", ["agent=dqn", "env=cartpole"]),
        ("sac", ["agent=sac", "experiment=paper/ant"]),
        ("double_horizon", ["algorithm=double_horizon", "env=pendulum"]),
        ("double_horizon", ["algorithm=double_horizon", "agent=td3", "env=hopper"]),
    ],
)
def test_every_search_space_names_options_that_exist(space: str, task: list[str]) -> None:
    text = (CONF / "hparams_search" / f"{space}.yaml").read_text()
    params = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
    known = {key for key, _, _, _ in options_in(make_config(*task))}
    assert len(params) >= 5
    assert set(params) <= known
    constants, distributions = space_of([f"{key}={value}" for key, value in params.items()])
    for end in (0, -1):
        ends = [f"{key}={ends_of(distribution)[end]}" for key, distribution in distributions.items()]
        make_config(*task, *constants, *ends)


def test_a_score_is_the_mean_over_seeds_and_the_best_trial_is_written(tmp_path: Path) -> None:
    search = open_search(tmp_path)
    search.run(6, 2, jobs_in(tmp_path), finish_all, prune=False)
    trials = search.study.get_trials()
    assert [trial.value for trial in trials] == pytest.approx([trial.params["x"] + 0.5 for trial in trials])
    best = search.best()
    assert best is not None
    assert best.score == max(float(trial.value or 0) for trial in trials)
    stored = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert stored == {"score": best.score, "path": str(best.path), "values": best.values}


def test_a_failed_run_fails_its_trial_which_still_counts(tmp_path: Path) -> None:
    def launch(jobs: Sequence[Job]) -> None:
        for job in jobs:
            finish(job, "failed" if "trial_0001/1" in str(job.path) else "done")

    search = open_search(tmp_path)
    search.run(3, 1, jobs_in(tmp_path), launch, prune=False)
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE"]


def test_whatever_a_job_does_the_other_trials_run_and_are_watched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    readable = records.evaluations

    def evaluations(path: Path) -> dict[int, float]:
        if path.parts[-2:] == ("trial_0001", "1"):
            raise OSError("broken")
        return readable(path)

    monkeypatch.setattr(search_module, "evaluations", evaluations)
    good = b'{"step": 5, "eval/return_mean": 1.5}\n'
    metrics = (good, b"{eval/return_mean\n", b'{"step": "5", "eval/return_mean": null}\n', None, None, None)

    def launch(jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.path.mkdir(parents=True)
            contents = metrics[int(job.path.parts[-2][-1])]
            if contents is not None:
                (job.path / "metrics.jsonl").write_bytes(contents)
        os.mkfifo(jobs[6].path / "metrics.jsonl")
        (jobs[8].path / "metrics.jsonl").mkdir()
        jobs[10].path.rmdir()
        deadline = time.monotonic() + 10
        while "cannot be pruned" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        for job in [*jobs[:2], *jobs[4:6]]:
            finish(job)
        finish(jobs[2], "done")
        test_jobs.finish(jobs[3], score=float("nan"))
        jobs[7].record_failure("killed by SIGKILL")

    search = open_search(tmp_path, storage=f"{tmp_path}/study.journal")
    search.run(6, 6, jobs_in(tmp_path), launch, prune=True)
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "FAIL", "FAIL"]
    assert search.study.get_trials()[0].intermediate_values == {5: 1.5}
    text = "\n".join(caplog.messages)
    assert "trial 1: trial_0001/1 failed: the score in its summary is NaN, with" in text
    assert "trial 3: trial_0003/0 not finished, with" in text
    assert "trial_0001 cannot be pruned: OSError: broken" in text
    assert text.count("cannot be pruned") == 1


@pytest.mark.parametrize("folder", ["../x", "/tmp/x", "..", "", "seed=0"])
def test_a_trial_has_a_directory_of_its_own(folder: str, tmp_path: Path) -> None:
    search = open_search(tmp_path / "s", storage=f"{tmp_path}/study.journal")
    search.study.ask(SPACE).set_user_attr("folder", folder)
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.storage: trial 0 has a directory of another"):
        search.run(1, 1, jobs_in(tmp_path), finish_all, prune=False)
    assert {path.name for path in tmp_path.iterdir()} <= {"s", "study.journal"}


def test_an_invalid_combination_fails_only_its_trial(tmp_path: Path) -> None:
    def jobs_of(name: str, values: Mapping[str, Any]) -> list[Job]:
        if name == "trial_0001":
            raise ConfigError("num_elites=5: must be at most num_networks=3")
        return jobs_in(tmp_path)(name, values)

    search = open_search(tmp_path)
    search.run(3, 2, jobs_of, finish_all, prune=True)
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_trial_whose_directory_holds_other_values_is_kept(tmp_path: Path) -> None:
    def jobs_of(name: str, values: Mapping[str, Any]) -> list[Job]:
        (tmp_path / name / "seed=0").mkdir()
        (tmp_path / name / "seed=0" / "config.yaml").touch()
        raise ConfigError("holds a run already, of other values")

    search = open_search(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already"):
        search.run(1, 1, jobs_of, finish_all, prune=False)
    assert states(search) == ["RUNNING"]


def test_every_choice_is_checked_first_but_not_every_combination() -> None:
    seen: list[dict[str, Any]] = []

    def job(values: Mapping[str, Any]) -> Job:
        if values["a"] == "bad" or (values["a"], values["n"]) == ("x", 3):
            raise ConfigError(f"a={values['a']}")
        seen.append(dict(values))
        return Job("j", (), Path(), CONFIG)

    numbers = IntDistribution(1, 3)
    check_space({"a": CategoricalDistribution(["x", "y", "z"]), "n": numbers}, job)
    assert {"a": "y", "n": 1} in seen
    with pytest.raises(ConfigError, match="a=bad"):
        check_space({"a": CategoricalDistribution(["x", "bad", "z"]), "n": numbers}, job)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("n_trials", 0, "n_trials=0: must be a whole number, 1 or more"),
        ("sampler_seed", -1, "sampler_seed=-1: must be a whole number, 0 or more"),
        ("prune", "no", "prune=no: must be true or false"),
        ("storage", "study.db", "storage=study.db: must be a database, as in sqlite:///study.db"),
        ("seeds", [1, 1], "must be one or more seeds, each of them once"),
    ],
)
def test_options_of_a_search_are_checked(option: str, value: Any, message: str) -> None:
    options: dict[str, Any] = {"n_trials": 1, "n_jobs": 1, "seeds": [0], "prune": True, "sampler_seed": 0}
    options |= {"storage": "sqlite:///study.db", "study_name": "s", "params": {}, option: value}
    with pytest.raises(ConfigError, match=re.escape(message)):
        SearchSweeper(**options).check_options()


def test_a_storage_that_cannot_be_opened_gives_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.storage=/no/such/x\.journal: FileNotFoundError"):
        open_search(tmp_path, storage="/no/such/x.journal")


@pytest.mark.parametrize("name", ["study.db", "study.db-journal", "ask.lock", "best.yaml.tmp"])
def test_a_search_writes_through_no_link(name: str, tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "mine").touch()
    (tmp_path / "search" / name).symlink_to("../mine")
    with pytest.raises(ConfigError, match=f"search: {name} is a link"):
        open_search(tmp_path / "search")
    assert (tmp_path / "mine").read_bytes() == b""


@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "{}/study.journal"])
def test_an_interrupted_search_tries_the_same_values_again(tmp_path: Path, storage: str) -> None:
    def interrupted(jobs: Sequence[Job]) -> None:
        if "trial_0002" in str(jobs[0].path):
            finish(jobs[0])
            raise KeyboardInterrupt
        finish_all(jobs)

    with_storage = {"storage": storage.format(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        open_search(tmp_path, **with_storage).run(4, 1, jobs_in(tmp_path), interrupted, prune=False)
    launched: list[Path] = []

    def launch(jobs: Sequence[Job]) -> None:
        launched.extend(job.path for job in jobs)
        finish_all(jobs)

    again = open_search(tmp_path, **with_storage)
    again.run(4, 1, jobs_in(tmp_path), launch, prune=False)
    assert states(again) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    trials = again.study.get_trials()
    assert trials[3].params == trials[2].params
    assert again.num_trials == 4
    # The run that was done is not repeated.
    assert launched[0] == tmp_path / "trial_0002" / "1"
    assert tmp_path / "trial_0002" / "0" not in launched

    whole = tmp_path / "whole"
    uninterrupted = open_search(whole)
    uninterrupted.run(4, 1, jobs_in(whole), finish_all, prune=False)
    expected = [trial.params for trial in uninterrupted.study.get_trials()]
    assert [trial.params for trial in trials if trial.state == TrialState.COMPLETE] == expected


def test_trials_of_another_live_worker_are_counted_and_left_alone(tmp_path: Path) -> None:
    other = open_search(tmp_path)

    def launch(jobs: Sequence[Job]) -> None:
        if "trial_0000" in str(jobs[0].path):  # meanwhile, another worker runs the other trials
            other.run(3, 1, jobs_in(tmp_path), finish_all, prune=False)
        finish_all(jobs)

    search = open_search(tmp_path)
    search.run(3, 1, jobs_in(tmp_path), launch, prune=False)
    assert states(search) == ["COMPLETE"] * 3


def test_a_trial_worse_than_the_median_is_pruned(tmp_path: Path) -> None:
    def launch(jobs: Sequence[Job]) -> None:
        is_bad = "trial_0005" in str(jobs[0].path)
        for job in jobs:
            job.path.mkdir(parents=True)
            rows = [{"step": step, "eval/return_mean": -100.0 if is_bad else 1.0} for step in (5, 10)]
            (job.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        deadline = time.monotonic() + 10
        while is_bad and not all((job.path / "stop").exists() for job in jobs):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
        for job in jobs:
            finish(job, "interrupted" if is_bad else "done")

    search = open_search(tmp_path)
    search.run(6, 1, jobs_in(tmp_path), launch, prune=True)
    assert states(search) == ["COMPLETE"] * 5 + ["PRUNED"]
    assert search.study.get_trials()[0].intermediate_values == {5: 1.0, 10: 1.0}


def test_a_directory_holds_only_one_search(tmp_path: Path) -> None:
    open_search(tmp_path)
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir=.*not env=pendulum, env=cartpole"):
        open_search(tmp_path, constants=["env=cartpole"])
    with pytest.raises(ConfigError, match=r"holds a search with other values"):
        open_search(tmp_path, space={"x": FloatDistribution(0, 2)})


@pytest.mark.slow
def test_twelve_trials_interrupted_after_five(tmp_path: Path) -> None:
    search = ("agent.discount_factor=interval(0.9,0.99)", "agent.critic_optimizer.learn_rate=1e-3,1e-4")
    command = [
        *COMMAND,
        *("-m", *FRAGILE, "env.kwargs={number: 0}", *search, "hydra/sweeper=optuna"),
        *("hydra.sweeper.n_trials=12", "hydra.sweeper.seeds=[0,1]", "hydra.sweep.dir=search"),
    ]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    first = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    num_ended = 0
    for line in first.stdout:
        num_ended += bool(re.match(r"trial \d+: score", line))
        if num_ended == 5:
            first.send_signal(signal.SIGINT)
            break
    rest = first.communicate()[0]
    assert first.returncode == 130, rest
    study = optuna.load_study(study_name="mbpo", storage=f"sqlite:///{tmp_path}/search/study.db")
    before = [trial for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
    assert len(before) in (5, 6)  # the sixth may end before the signal arrives

    second = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    after = [trial for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
    assert len(after) == 12
    assert [trial.value for trial in after[: len(before)]] == [trial.value for trial in before]
    best = yaml.safe_load((tmp_path / "search" / "best.yaml").read_text())
    assert best["score"] == max(trial.value or 0.0 for trial in after if trial.value is not None)
    assert f"best score {best['score']:.1f} in search/trial_" in second.stdout
