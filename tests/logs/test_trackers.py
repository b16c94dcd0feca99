"""Trackers get what a run logs, once; one that fails or is slow neither ends a run nor changes its numbers.

The contract is tested by a tracker of this module, and real ones where their packages are installed.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbpo_cli.commands.check import check
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import Config
from mbpo_cli.failures import ConfigError, RunFailed
from mbpo_cli.logs.background import Background, Tracker, TrackerOptions
from mbpo_cli.logs.logger import Exhibits, RunInfo, Scalars
from mbpo_cli.options import option
from mbpo_cli.run import run
from tests.conftest import EXAMINED, RUN_FILES, TINY, gym_env, metrics_of

BRIEF = (*TINY, "mbpo.generate_every=5")
SHOWN = (*EXAMINED, "mbpo.generate_every=5")
PNG = b"\x89PNG"
CALLS: list[tuple[Any, ...]] = []
"""What trackers of this module were called with: method, thread and arguments."""


@dataclass
class RecorderOptions(TrackerOptions):
    fails_in: str = option("the method that raises an error")


class Recorder(Tracker):
    """Keeps what it gets; fails in one of its methods."""

    Options = RecorderOptions

    def __init__(self, options: RecorderOptions, info: RunInfo) -> None:
        self.options = options
        self._called("start", info)

    def _called(self, method: str, *arguments: Any) -> None:
        CALLS.append((method, threading.current_thread(), *arguments))
        if method == self.options.fails_in:
            raise SystemExit("no\nmore")

    def write(self, step: int, scalars: Scalars) -> None:
        self._called("write", step, dict(scalars))

    def show(self, step: int, exhibits: Exhibits) -> None:
        self._called("show", step, dict(exhibits))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._called("finish", summary)

    @staticmethod
    def abandon() -> None:
        CALLS.append(("abandon", threading.current_thread()))


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def recorded_by(config: Config, fails_in: str = "") -> Config:
    """Return a configuration with a tracker of this module as its only logger."""
    options = RecorderOptions(f"{__name__}.Recorder", 1000, 60.0, fails_in)
    return replace(config, logger={"mine": options})


def calls(method: str) -> list[tuple[Any, ...]]:
    """Return the arguments of all calls of a method."""
    return [call[2:] for call in CALLS if call[0] == method]


def test_a_tracker_gets_all_of_a_run_on_a_thread_of_its_own(tmp_path: Path) -> None:
    config = recorded_by(make_config(*SHOWN))
    run(config, tmp_path)
    assert [{"step": step, **scalars} for step, scalars in calls("write")] == metrics_of(tmp_path)
    exhibits = [(step, tag, exhibit) for step, shown in calls("show") for tag, exhibit in shown.items()]
    assert {(step, tag) for step, tag, _ in exhibits} == {
        (step, tag) for step in (10, 20) for tag in ("diagnose/actions", "diagnose/model")
    }
    assert all(isinstance(e, torch.Tensor) or e.startswith(PNG) for _, _, e in exhibits)
    ((info,),) = calls("start")
    assert info.path == tmp_path
    assert info.config["agent"]["mini_batch_size"] == 16
    assert info.hyperparameters["mbpo.real_ratio"] == 0.2
    ((summary,),) = calls("finish")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {key: written[key] for key in summary}
    assert summary["status"] == "done"
    threads = {thread for _, thread, *_ in CALLS}
    assert len(threads) == 1
    assert threading.main_thread() not in threads
    assert CALLS[-1][0] == "finish"
    assert not calls("abandon")


def test_a_film_of_the_trained_policy_arrives_and_changes_no_number(tmp_path: Path) -> None:
    for name, number in (("without", 0), ("with", 2)):
        CALLS.clear()
        config = make_config(*BRIEF, "env.kwargs={max_episode_steps: 9}", f"trainer.film_episodes={number}")
        run(replace(config, logger={**config.logger, **recorded_by(config).logger}), tmp_path / name)
    (shown,) = [(step, exhibits) for step, exhibits in calls("show") if "eval/film" in exhibits]
    assert shown == (20, {"eval/film": tmp_path / "with" / "film.gif"})
    with Image.open(tmp_path / "with" / "film.gif") as film:
        assert film.n_frames == 2 * 10  # type: ignore[attr-defined]
    assert not (tmp_path / "without" / "film.gif").exists()
    (event,) = EventAccumulator(str(tmp_path / "with")).Reload().Images("eval/film")
    assert event.encoded_image_string == (tmp_path / "with" / "film.gif").read_bytes()
    rows = [[without_times(row) for row in metrics_of(tmp_path / name)] for name in ("without", "with")]
    assert rows[0] == rows[1]


def test_a_film_that_fails_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(*BRIEF, "trainer.film_episodes=1")
    monkeypatch.setattr("mbpo_cli.trained.video.Film.add", lambda self, frame: int("no frame"))
    run(config, tmp_path)
    assert "there is no film: invalid literal" in caplog.text
    assert not (tmp_path / "film.gif").exists()


def test_an_environment_that_cannot_be_filmed_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^trainer\.film_episodes=1: tests/PointMass-v0 cannot render in mode"
    ):
        check(make_config(*BRIEF, *gym_env("tests/PointMass-v0"), "trainer.film_episodes=1"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the score and the policy of a run without trackers."""
    path = tmp_path_factory.mktemp("plain")
    return run(make_config(*BRIEF), path), torch.load(path / "policy.pt", weights_only=True)


@pytest.mark.parametrize("method", ["start", "write", "show", "finish"])
def test_a_tracker_that_fails_is_left_out(
    method: str,
    plain: tuple[float, dict[str, torch.Tensor]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    score, policy = plain
    config = make_config(*(SHOWN if method == "show" else BRIEF))
    assert run(recorded_by(config, method), tmp_path) == score
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["logger.mine: SystemExit: no more; the run continues without it"]
    assert len(calls(method)) == 1, "it is not called again"
    assert len(calls("abandon")) == 1
    tracked = torch.load(tmp_path / "policy.pt", weights_only=True)
    assert all(torch.equal(tracked[name], policy[name]) for name in policy)


def test_a_slow_tracker_drops_points_and_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    may_go_on = threading.Event()
    options = RecorderOptions(f"{__name__}.Recorder", 2, 0.2, "")

    def make() -> Tracker:
        may_go_on.wait()
        return Recorder(options, None)  # type: ignore[arg-type]

    sink = Background("logger.slow", options, make, Recorder.abandon)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "logger.slow"]
    start = time.monotonic()
    for step in range(1, 8):
        sink.write(step, {} if step == 1 else {"a": float(step)})
    assert time.monotonic() - start < 0.2, "no call waits"
    sink.finish({"status": "done"})
    assert 0.2 <= time.monotonic() - start < 5
    # Step 1 has no scalars, 2 and 3 wait, there is no place for 4 to 7, and the summary takes that of 2.
    assert [record.message for record in caplog.records] == [
        "logger.slow: is too slow; points are dropped from step 4 on",
        "logger.slow: 5 points were dropped",
        "logger.slow: not everything was sent within 0.2 s",
    ]
    assert [name for name, *_ in CALLS] == ["abandon"]
    may_go_on.set()
    thread.join(60)
    assert [name for name, *_ in CALLS] == ["abandon", "start", "write", "finish"]
    assert calls("write") == [(3, {"a": 3.0})]


def test_points_that_wait_are_sent_at_the_end() -> None:
    may_go_on = threading.Event()
    options = RecorderOptions(f"{__name__}.Recorder", 10, 60, "")

    def make() -> Tracker:
        may_go_on.wait()
        return Recorder(options, None)  # type: ignore[arg-type]

    sink = Background("logger.slow", options, make, Recorder.abandon, last_step=2)
    for step in range(1, 6):
        sink.show(step, {"b": b""})
        sink.write(step, {"a": float(step)})
    threading.Timer(0.1, may_go_on.set).start()
    sink.finish({"status": "done"})
    assert [step for step, _ in calls("write")] == [step for step, _ in calls("show")] == [3, 4, 5]
    assert calls("finish") == [({"status": "done"},)]
    assert not calls("abandon")


def without_times(scalars: Mapping[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in scalars.items() if not tag.startswith("time/")}


def test_a_resumed_run_sends_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*BRIEF, *gym_env("tests/Fragile-v0"), "env.kwargs={number: 1}", "trainer.log_every_steps=1")
    config = recorded_by(make_config(*options, "checkpoint.every_steps=6"))
    run(config, tmp_path / "whole")
    whole = [(step, without_times(scalars)) for step, scalars in calls("write")]
    CALLS.clear()
    monkeypatch.setenv("FRAGILE", "1")
    with pytest.raises(RunFailed, match="fragile"):
        run(config, tmp_path / "resumed")
    assert [summary["status"] for (summary,) in calls("finish")] == ["failed"]
    assert calls("write")[-1][0] == 9, "the checkpoint is of step 6"
    monkeypatch.delenv("FRAGILE")
    run(config, tmp_path / "resumed")
    assert [(step, without_times(scalars)) for step, scalars in calls("write")] == whole
    first, second = (info.id for (info,) in calls("start"))
    assert first == second == (tmp_path / "resumed" / "tracker_id").read_text()
    assert len(first) == 12


def test_another_run_has_another_id_and_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    config = recorded_by(make_config(*BRIEF, "trainer.num_env_steps=6"))
    for name in ("a", "b"):
        run(config, tmp_path / name)
    (tmp_path / "b" / "tracker_id").write_text("../../../etc")
    run(config, tmp_path / "b")
    ids = [info.id for (info,) in calls("start")]
    assert len(set(ids)) == 3
    assert ids[2] == (tmp_path / "b" / "tracker_id").read_text()


def test_csv_has_the_same_scalars_and_is_truncated_like_all_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*BRIEF, *gym_env("tests/Fragile-v0"), "env.kwargs={number: 1}", "trainer.log_every_steps=1")
    config = make_config(*options, "checkpoint.every_steps=6", "logger=[csv]")
    monkeypatch.setenv("FRAGILE", "1")
    with pytest.raises(RunFailed, match="fragile"):
        run(config, tmp_path)
    monkeypatch.delenv("FRAGILE")
    run(config, tmp_path)
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == "step,tag,value"
    assert lines == [
        f"{row['step']},{tag},{value}"
        for row in metrics_of(tmp_path)
        for tag, value in row.items()
        if tag != "step"
    ]
    assert not list(tmp_path.glob("*tfevents*"))


def test_without_loggers_there_is_only_metrics_jsonl(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(make_config(*SHOWN, "logger=[]"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(RUN_FILES)
    assert "TensorBoard" not in caplog.text
    # Loggers are no part of the results, so that they may change.
    run(make_config(*BRIEF, "trainer.num_env_steps=25"), tmp_path)
    assert len(list(tmp_path.glob("*tfevents*"))) == 1
    assert "tensorboard --logdir" in caplog.text


def test_a_missing_package_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(*BRIEF, "logger=[csv,mlflow]")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        check(config)
    assert str(error.value) == (
        "logger=mlflow: needs the package mlflow; pip install 'mbpo-cli[mlflow]' installs it"
    )


def test_the_packages_are_not_imported_unless_they_are_used() -> None:
    program = (
        "import sys, mbpo_cli.run, mbpo_cli.commands.check\n"
        "from mbpo_cli.config.compose import make_config\n"
        "make_config('logger=[wandb,mlflow,trackio]')\n"
        "print({'wandb', 'mlflow', 'trackio', 'tensorboard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# The real packages.

REAL = (*SHOWN, "trainer.log_every_steps=1", "trainer.film_episodes=1")


@pytest.fixture
def nothing_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trackers write into a folder of the test, and open no socket beyond loopback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # it takes seconds to make
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("HF_HUB_OFFLINE", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    connect = socket.socket.connect

    def only_loopback(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or str(address[0]).startswith(("127.", "::1", "localhost"))
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_loopback)


def train_twice(path: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train, resume for more steps, and return the rows of metrics.jsonl without times."""
    for steps in (12, 20):
        run(make_config(*REAL, *overrides, f"trainer.num_env_steps={steps}"), path)
    return [without_times(row) for row in metrics_of(path)]


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file, which is in LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a full record, or its last part
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def wandb_items(items: Sequence[Any]) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb(tmp_path: Path, nothing_leaves: None) -> None:
    pytest.importorskip("wandb")
    rows = train_twice(tmp_path / "run", "logger=[wandb]", "logger.wandb.mode=offline")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    records = [record for file in files for record in wandb_records(file)]
    runs = [record.run for record in records if record.HasField("run")]
    assert {each.run_id for each in runs} == {(tmp_path / "run" / "tracker_id").read_text()}
    assert {(each.project, each.display_name) for each in runs} == {("mbpo-cli", "run")}
    configs = [wandb_items(each.config.update) for each in runs]
    assert configs[0]["trainer"]["num_env_steps"] == 12
    history = [wandb_items(record.history.item) for record in records if record.HasField("history")]
    media = ("diagnose/actions/", "diagnose/model/", "eval/film/")
    sent = [
        {tag: value for tag, value in without_times(row).items() if not tag.startswith(("_", *media))}
        for row in history
    ]
    assert [{"step": row["_step"], **scalars} for row, scalars in zip(history, sent, strict=True)] == rows
    kinds = {value for row in history for tag, value in row.items() if tag.endswith("/_type")}
    assert kinds == {"image-file", "histogram", "video-file"}
    summary: dict[str, Any] = {}
    for record in records:
        summary |= wandb_items(record.summary.update) if record.HasField("summary") else {}
    assert summary["status"] == "done"
    assert summary["env_steps"] == 20


def test_mlflow(tmp_path: Path, nothing_leaves: None) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    overrides = ("logger=[mlflow]", f"logger.mlflow.tracking_uri={uri}", "logger.mlflow.drain_seconds=100")
    rows = train_twice(tmp_path / "run", *overrides)
    check_mlflow(mlflow.MlflowClient(uri), rows)


def check_mlflow(client: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    experiment = client.get_experiment_by_name("mbpo-cli")
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.run_name == "run"
    assert stored.info.status == "FINISHED"
    assert stored.data.params["mbpo.real_ratio"] == "0.2"
    for tag in ("eval/return_mean", "buffer/real_size", "agent/critic_loss"):
        history = [
            (metric.step, metric.value) for metric in client.get_metric_history(stored.info.run_id, tag)
        ]
        assert sorted(history) == [(row["step"], row[tag]) for row in rows if tag in row]
    files = {file.path for file in client.list_artifacts(stored.info.run_id)}
    assert files == {"config.yaml", "summary.json", "diagnose", "eval"}
    films = client.list_artifacts(stored.info.run_id, "eval/film")
    assert [Path(file.path).name for file in films] == ["000000012.gif", "000000020.gif"]
    pictures = client.list_artifacts(stored.info.run_id, "diagnose/model")
    assert "diagnose/model/000000020.png" in {file.path for file in pictures}
    assert all(file.file_size > 1000 for file in pictures)


@pytest.mark.slow
def test_mlflow_on_a_server(tmp_path: Path, nothing_leaves: None) -> None:
    mlflow = pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    with subprocess.Popen([*command, "--artifacts-destination", str(tmp_path / "artifacts")]) as server:
        try:
            uri = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 90
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
            overrides = ("logger=[mlflow]", f"logger.mlflow.tracking_uri={uri}")
            rows = train_twice(tmp_path / "run", *overrides, "logger.mlflow.drain_seconds=60")
            check_mlflow(mlflow.MlflowClient(uri), rows)
        finally:
            server.terminate()


def test_trackio(tmp_path: Path, nothing_leaves: None) -> None:
    # It reads TRACKIO_DIR when it is imported.
    program = f"""
import json, sys
from mbpo_cli.config.compose import make_config
from mbpo_cli.run import run
from pathlib import Path
for steps in (12, 20):
    run(make_config(*{[*REAL, "logger=[trackio]"]}, f"trainer.num_env_steps={{steps}}"), Path("run"))
import trackio
from trackio.sqlite_storage import SQLiteStorage
(stored,) = trackio.Api().runs("mbpo-cli")
logs = SQLiteStorage.get_logs("mbpo-cli", stored.name)
print("found", json.dumps([stored.name, stored.config, logs]))
"""
    pytest.importorskip("trackio")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    name, config, logs = json.loads(line.removeprefix("found "))
    assert name == f"run-{(tmp_path / 'run' / 'tracker_id').read_text()}"
    assert config["agent"]["mini_batch_size"] == 16
    rows = [without_times(row) for row in metrics_of(tmp_path / "run")]
    for tag in ("eval/return_mean", "buffer/real_size", "agent/critic_loss"):
        assert [(log["step"], log[tag]) for log in logs if tag in log] == [
            (row["step"], row[tag]) for row in rows if tag in row
        ]
    kinds = {value["_type"] for log in logs for value in log.values() if isinstance(value, dict)}
    assert kinds == {"trackio.image", "trackio.histogram", "trackio.video"}
    assert logs[-1]["summary/env_steps"] == 20


def test_wandb_without_an_answer_does_not_delay_the_end_of_the_process(
    tmp_path: Path, nothing_leaves: None
) -> None:
    pytest.importorskip("wandb")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": "x" * 40}
        command = [sys.executable, "-m", "mbpo_cli", *REAL, "logger=[wandb]", "logger.wandb.drain_seconds=1"]
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        start = time.monotonic()
        done = subprocess.run(
            [*command, "hydra.run.dir=run"], capture_output=True, text=True, env=environment, timeout=85
        )
    took = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    assert "logger.wandb: not everything was sent within 1 s" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())["wall_seconds"]
    assert took - trained < 30, "wandb alone would take 84 s longer"
