"""Sweeps: the names of jobs, parallel processes, and failures that affect no other job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydra_plugins.mbpo.sweepers import combinations
from mbpo_cli.commands.train import with_directory
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError, Interrupted
from mbpo_cli.run import run
from mbpo_cli.sweeps.jobs import Job
from mbpo_cli.sweeps.processes import run_commands, slots_of
from tests.conftest import TINY, Refusal

COMMAND = [sys.executable, "-m", "mbpo_cli"]
FRAGILE = (
    *TINY,
    "mbpo=off",
    "env=gym",
    "env.id=tests/Fragile-v0",
    "env.module=tests.conftest",
    "compile=false",
)


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def job_in(path: Path, *overrides: str) -> Job:
    return Job(path.name, overrides, path, make_config(*TINY, *overrides))


def sweep(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(environment or {})}
    return subprocess.run(
        [*COMMAND, "-m", *FRAGILE, "hydra.sweep.dir=sweep", *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def numbers(*values: int) -> str:
    return "env.kwargs=" + ",".join(f"{{number:{value}}}" for value in values)


def scores(folder: Path) -> dict[str, float]:
    summaries = {path.parent.name: json.loads(path.read_text()) for path in folder.rglob("summary.json")}
    return {name: summary["score"] for name, summary in summaries.items() if summary["status"] == "done"}


def test_the_directory_of_a_resumed_run_follows_from_the_command() -> None:
    added = with_directory(["resume=it's=mine", "--cfg", "job"])
    assert added == [r"resume='it\'s=mine'", r"hydra.run.dir='it\'s=mine'", "--cfg", "job"]
    assert with_directory(["resume=a\\"]) == [r"resume='a\\'", r"hydra.run.dir='a\\'"]


@pytest.mark.parametrize("arguments", [["agent=sac"], ["-m", "seed=0,1"], ["--cfg", "job"]])
def test_other_commands_are_kept(arguments: list[str]) -> None:
    assert with_directory(arguments) == arguments


def test_combinations_vary_the_last_sweep_fastest() -> None:
    assert combinations(["agent=sac,td3", "env=pendulum", "seed=range(0,2)"]) == [
        ["agent=sac", "env=pendulum", "seed=0"],
        ["agent=sac", "env=pendulum", "seed=1"],
        ["agent=td3", "env=pendulum", "seed=0"],
        ["agent=td3", "env=pendulum", "seed=1"],
    ]
    with pytest.raises(ConfigError, match=r"discount_factor=interval\(0,1\): only a search"):
        combinations(["agent.discount_factor=interval(0,1)"])


@pytest.mark.parametrize(
    ("num_jobs", "threads", "devices", "gpus", "num_cores", "expected"),
    [
        (None, 1, {"cpu"}, [], 8, [None] * 8),
        (None, 3, {"cpu"}, [], 8, [None] * 2),
        (None, 16, {"cpu"}, [], 8, [None]),
        (5, 3, {"cpu"}, [], 8, [None] * 5),
        (None, 1, {"auto"}, [], 8, [None] * 8),
        (None, 1, {"cpu"}, ["0", "1"], 8, [None] * 8),
        (None, 1, {"cpu", "auto"}, ["0", "1"], 8, ["0", "1"]),
        (None, 4, {"cuda"}, ["0", "1", "2"], 8, ["0", "1"]),
        (3, 1, {"cuda"}, ["4", "6"], 8, ["4", "6", "4"]),
        (None, 1, {"cuda:1"}, ["0", "1"], 8, [None]),
        (None, 1, {"cuda:0", "cuda:1"}, ["0", "1"], 8, [None]),
        (2, 1, {"cuda:0", "cuda:1"}, ["0", "1"], 8, [None] * 2),
    ],
)
def test_jobs_share_no_core_and_no_gpu_unless_asked(
    num_jobs: int | None,
    threads: int,
    devices: set[str],
    gpus: list[str],
    num_cores: int,
    expected: list[str | None],
) -> None:
    slots = slots_of(num_jobs, threads, devices, gpus, num_cores)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == expected


def test_commands_report_how_they_failed_and_affect_no_other() -> None:
    ended: dict[int, str | None] = {}
    scripts = (
        "exit 0",
        "exit 3",
        "echo noise >&2; echo 'mbpo-train: error: seed=x: no' >&2; exit 2",
        "kill -KILL $$",
        "test $SLOT = a",
    )
    slot = {"SLOT": "a"}
    run_commands([shell(script) for script in scripts], [slot, slot], ended.__setitem__)
    assert ended == {0: None, 1: "exit code 3", 2: "seed=x: no", 3: "killed by SIGKILL", 4: None}


def test_there_are_no_more_parallel_commands_than_slots(tmp_path: Path) -> None:
    count = f"ls {tmp_path} | wc -l >&2; touch {tmp_path}/$$; sleep 0.2; rm {tmp_path}/$$; exit 1"
    ended: dict[int, str | None] = {}
    run_commands([shell(count)] * 6, [{}, {}], ended.__setitem__)
    assert sorted(set(ended.values()), key=str) == ["0", "1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_forwarded_and_no_more_commands_start(number: int, code: int, tmp_path: Path) -> None:
    script = (
        f"trap 'touch {tmp_path}/got; exit 1' TERM INT; touch {tmp_path}/$$; while true; do sleep 0.02; done"
    )
    ended: dict[int, str | None] = {}

    def send() -> None:
        while not any(tmp_path.iterdir()):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    with pytest.raises(Interrupted) as caught:
        run_commands([shell(script)] * 3, [{}], ended.__setitem__)
    assert caught.value.exit_code == code
    assert ended == {0: "exit code 1"}
    assert (tmp_path / "got").exists()


def test_a_job_is_done_once_it_has_taken_all_its_steps(tmp_path: Path) -> None:
    job = job_in(tmp_path / "job", "mbpo=off")
    assert job.score is None
    result = run(job.config, job.path, in_sweep=True)
    assert job.score == result
    longer = job_in(tmp_path / "job", "mbpo=off", "trainer.num_env_steps=40")
    assert longer.score is None
    longer.check()
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir=.*already holds a run.*seed: 0 -> 1"):
        job_in(tmp_path / "job", "mbpo=off", "seed=1").check()


@pytest.mark.parametrize(
    "argument", ["agent.discount_factor=0.9,2", "agent.mini_batch_size=0", "seed=interval(0,1)", "resume=x"]
)
def test_a_sweep_with_a_wrong_value_writes_nothing(argument: str, refused: Refusal) -> None:
    refused("-m", *TINY, argument)


def test_jobs_use_the_configuration_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "lab.yaml").write_text(
        "defaults: [train, _self_]\nagent: {discount_factor: 0.875}\n"
    )
    done = sweep(tmp_path, numbers(0, 1), "--config-dir", "conf", "--config-name", "lab")
    assert done.returncode == 0, done.stderr
    stored = [yaml.safe_load(path.read_text()) for path in tmp_path.rglob("config.yaml")]
    assert [config["agent"]["discount_factor"] for config in stored] == [0.875, 0.875]


@pytest.mark.slow
def test_failed_and_killed_jobs_affect_no_other_and_only_they_run_again(tmp_path: Path) -> None:
    jobs = numbers(0, 1, 2)
    first = sweep(tmp_path, jobs, environment={"FRAGILE": "1", "MORTAL": "2"})
    assert first.returncode == 1, first.stderr
    table = first.stdout.splitlines()[-4:]
    assert table[0] == "1 of 3 jobs done"
    assert table[1].startswith("  env.kwargs=_number_1  failed: ")
    assert table[1].endswith("fragile")
    assert table[2] == "  env.kwargs=_number_2  failed: killed by SIGKILL"
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("policy.pt")}
    assert len(kept) == 1
    logs = {path.parent.name: path.read_text() for path in tmp_path.rglob("train.log")}
    assert any("Traceback" in text and "fragile" in text for text in logs.values())

    second = sweep(tmp_path, jobs)
    assert second.returncode == 0, second.stderr
    assert "3 of 3 jobs done (1 before)" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_the_basic_launcher_gives_the_same_scores(tmp_path: Path) -> None:
    here, there = (
        sweep(tmp_path, numbers(0, 1), f"hydra.sweep.dir={launcher}", f"hydra/launcher={launcher}")
        for launcher in ("processes", "basic")
    )
    assert here.returncode == there.returncode == 0, here.stderr + there.stderr
    assert scores(tmp_path / "processes") == scores(tmp_path / "basic")
    assert len(scores(tmp_path / "basic")) == 2


@pytest.mark.slow
def test_twenty_jobs_of_which_four_raise_and_one_is_killed(tmp_path: Path) -> None:
    jobs = numbers(*range(20))
    first = sweep(tmp_path, jobs, environment={"FRAGILE": "3,7,11,15", "MORTAL": "5"})
    assert first.returncode == 1, first.stderr
    assert first.stdout.splitlines()[-7] == "15 of 20 jobs done"
    assert len(scores(tmp_path)) == 15
    named = {line.split()[0]: line for line in first.stdout.splitlines()[-6:-1]}
    assert {name for name, line in named.items() if line.endswith("fragile")} == {
        f"env.kwargs=_number_{number}" for number in (3, 7, 11, 15)
    }
    assert named["env.kwargs=_number_5"].endswith("failed: killed by SIGKILL")

    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("policy.pt")}
    second = sweep(tmp_path, jobs)
    assert second.returncode == 0, second.stderr
    assert "20 of 20 jobs done (15 before)" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    started = [line for line in second.stdout.splitlines() if " of 5: " in line]
    assert len(started) == 5


@pytest.mark.slow
def test_twelve_jobs_of_which_four_fail_in_different_ways(tmp_path: Path) -> None:
    jobs = (numbers(*range(12)), "env.step_timeout=5")
    faults = {"SILENT": "1", "MORTAL": "4", "STUCK": "6", "FULL": "9"}
    first = sweep(tmp_path, *jobs, environment=faults)
    assert first.returncode == 1, first.stderr
    table = first.stdout.splitlines()[-6:]
    assert table[0] == "8 of 12 jobs done"
    expected = {
        1: r"exit code 0, but no summary",
        4: r"killed by SIGKILL",
        6: r"tests/Fragile-v0 hangs: a step took more than 5 s",
        9: r"\[Errno 27\] File too large",
    }
    for row, (number, reason) in zip(table[1:5], expected.items(), strict=True):
        assert re.match(rf"  env\.kwargs=_number_{number} +failed: .*{reason}", row), row
    done = scores(tmp_path)
    assert len(done) == 8
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("policy.pt") if path.parent.name in done}

    second = sweep(tmp_path, *jobs)
    assert second.returncode == 0, second.stderr
    assert "12 of 12 jobs done (8 before)" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    ran = re.findall(r"^\d of 4: env\.kwargs=_number_(\d+): score", second.stdout, flags=re.MULTILINE)
    assert sorted(map(int, ran)) == list(expected)


def test_a_stop_file_stops_a_run_and_its_state_is_kept(tmp_path: Path) -> None:
    config = make_config(*TINY, "mbpo=off", "trainer.num_env_steps=100_000", "compile=false")
    path = tmp_path / "run"

    def stop() -> None:
        while not (path / "metrics.jsonl").exists():
            time.sleep(0.01)
        (path / "stop").touch()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted):
        run(config, path)
    thread.join()
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert list((path / "checkpoints").iterdir())
