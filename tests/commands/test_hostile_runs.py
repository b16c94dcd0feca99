"""Run directories by an attacker: nothing that they name is executed, and nothing outside them changes.

Each is tried with what the commands do first, and, slowly, with the commands themselves. An audit hook sees
what is executed and opened; a listing before and after shows what has changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbpo_cli.commands import evaluate, export, model, report, train
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.stored import resumed_config
from mbpo_cli.config.typed import Config
from mbpo_cli.failures import ConfigError, RunFailed
from mbpo_cli.report import runs
from mbpo_cli.run import run
from mbpo_cli.storage.directory import RunDirectory, check_usable
from mbpo_cli.sweeps.jobs import Job
from mbpo_cli.trained.load import load
from tests.conftest import TINY

Change = Callable[[Path], None]
"""Makes the run in a directory hostile; `../victim` lies beside it."""

EXECUTED = ("os.exec", "os.fork", "os.posix_spawn", "os.system", "pickle.find_class", "subprocess.Popen")
CHANGED = ("os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree")
events: list[str] = []
allowed: tuple[str, ...] | None = None


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if allowed is None:
        return
    if event in EXECUTED and arguments[0] != "git":  # the commit is recorded in the summary
        events.append(f"{event} {arguments[:2]}")
    elif event == "import" and str(arguments[0]).startswith("evil"):
        events.append(f"import {arguments[0]}")
    elif event in CHANGED or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        path = arguments[0]
        if not isinstance(path, int) and not os.path.abspath(os.fsdecode(path)).startswith(allowed):
            events.append(f"{event} {path}")


sys.addaudithook(listen)


@contextmanager
def harmless(folder: Path, *places: Path) -> Iterator[None]:
    """Check that a block executes nothing, and changes nothing but `places` in a folder."""
    global allowed
    before = listing(folder, places)
    events.clear()
    allowed = ("/dev/", "/proc/", *map(str, places))
    try:
        yield
    finally:
        allowed = None
    assert events == []
    assert listing(folder, places) == before


def listing(folder: Path, without: tuple[Path, ...]) -> dict[str, tuple[Any, ...]]:
    """Return the kind, size, time and contents of all that lies in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not any(path.is_relative_to(place) for place in without):
            status = path.lstat()
            is_file = path.is_file() and not path.is_symlink()
            contents = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
            found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, contents)
    return found


# The ways in which a run is hostile


def linked(name: str, target: str = "../victim/thesis.tex") -> Change:
    """Replace a file or folder, or the newest one that a pattern names, by a symbolic link."""

    def change(run: Path) -> None:
        path = max(run.glob(name), default=run / name)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(os.path.relpath(run / target, path.parent))

    return change


def hard_linked(name: str) -> Change:
    def change(run: Path) -> None:
        path = max(run.glob(name), default=run / name)
        path.unlink(missing_ok=True)
        path.hardlink_to(run.parent / "victim" / "thesis.tex")

    return change


def special(name: str, kind: str) -> Change:
    """Replace a file or folder by a pipe, which blocks who opens it, or by the other of the two."""

    def change(run: Path) -> None:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir() if kind == "directory" else path.touch()

    return change


def configured(key: str, value: Any) -> Change:
    def change(run: Path) -> None:
        file = run / "config.yaml"
        config = yaml.safe_load(file.read_text())
        *groups, name = key.split(".")
        tree = config
        for group in groups:
            tree = tree[group]
        tree[name] = value
        file.write_text(yaml.safe_dump(config))

    return change


def written(name: str, contents: bytes) -> Change:
    def change(run: Path) -> None:
        for path in list(run.glob(name)):
            path.write_bytes(contents)

    return change


def edited(old: str, new: str) -> Change:
    def change(run: Path) -> None:
        text = (run / "config.yaml").read_text()
        assert old in text
        (run / "config.yaml").write_text(text.replace(old, new))

    return change


FOLDER, STEP = "../victim/photos", "checkpoints/" + 12 * "[0-9]"
COMMAND = {"command": ["touch", "executed"], "index": 0, "slot": {}}
VIDEO = {"_target_": "gymnasium.wrappers.RecordVideo", "video_folder": "../victim/photos"}


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


LINKS = {
    **{f"link {name}": linked(name) for name in ("run.lock", "metrics.jsonl", "train.log", "summary.json")},
    **{f"link {name}": linked(name) for name in ("policy.pt", "curve.png", "config.yaml", "stop")},
    "link events": linked("events.out.tf*"),
    **{f"link {name}": linked(name) for name in ("config.yaml.tmp", "summary.json.tmp", "policy.pt.tmp")},
    **{
        f"link {name}": linked(name)
        for name in ("experience/x.tmp", "experience/real*", f"{STEP}/state.json")
    },
    **{f"link {name}": linked(name) for name in ("metrics.csv", "tracker_id", "film.gif")},
    **{
        f"link {name}": linked(name, FOLDER)
        for name in ("checkpoints", "experience", ".hydra", "wandb", STEP)
    },
    "link .new-": linked("checkpoints/.new-000000000040", FOLDER),
    "link .old-": linked("checkpoints/.old-000000000020", FOLDER),
    "link dangling": linked("metrics.jsonl", "../victim/new"),
    "link /dev/zero": linked("metrics.jsonl", "../../../../../../../../../../../../dev/zero"),
    "link within": linked("checkpoints", "experience"),
}
HARD_LINKS = {
    f"hard link {name}": hard_linked(name)
    for name in ("run.lock", "metrics.jsonl", "train.log", "events.out.tf*", "config.yaml.tmp")
}
SPECIAL = {
    **{
        f"pipe {name}": special(name, "pipe") for name in ("config.yaml", "run.lock", "metrics.jsonl", "stop")
    },
    "directory metrics.jsonl": special("metrics.jsonl", "directory"),
    "file checkpoints": special("checkpoints", "file"),
    "directory in a checkpoint": special("checkpoints/000000000020/x", "directory"),
    "directory in experience": special("experience/x", "directory"),
}
NAMES = {
    "agent function": configured("agent._target_", "os.system"),
    "agent of data": configured("agent._target_", "evil.Agent"),
    "agent imported": configured("agent._target_", "mbpo_cli.agents.sac.Tensor"),
    "agent by attribute": configured("agent._target_", "mbpo_cli.sweeps.processes.subprocess.Popen"),
    "agent elsewhere": configured("agent._target_", "mbpo_cli.models.known.Known"),
    "model function": configured("model.reward._target_", "mbpo_cli.options.resolve"),
    "model elsewhere": configured("model.reward._target_", "mbpo_cli.trainer.Trainer"),
    "noise": configured("mbpo.model_rollout_options.noise_options._target_", "mbpo_cli.agents.sac.SAC"),
    "known function": configured("env.reward_function", "mbpo_cli.sweeps.processes._start"),
    "known private": configured("model.reward.function", "mbpo_cli.envs.known._length"),
    "known imported": configured("model.is_done.function", "mbpo_cli.envs.known.torch"),
    "known by attribute": configured("model.is_done.function", "mbpo_cli.envs.known.torch.load"),
    "module that runs": configured("env.module", "mbpo_cli.__main__"),
    "module of a command": configured("env.module", "mbpo_cli.commands.train"),
    "module of data": configured("env.module", "evil"),
    "id with a module": configured("env.id", "evil:Pendulum-v1"),
    "id with this package": configured("env.id", "mbpo_cli.__main__:Pendulum-v1"),
    "id of another's": configured("env.id", "tests/PointMass-v0"),
    "id without version": configured("env.id", "tests/PointMass"),
    "wrapper process": configured(
        "env.wrappers", [{"_target_": "mbpo_cli.sweeps.processes._start", **COMMAND}]
    ),
    "wrapper Popen": configured("env.wrappers", ["mbpo_cli.sweeps.processes.subprocess.Popen"]),
    "wrapper resolve": configured("env.wrappers", ["mbpo_cli.options.resolve"]),
    "wrapper function": configured("env.wrappers", ["gymnasium.wrappers.common.deepcopy"]),
    "wrapper make": configured("env.wrappers", ["gymnasium.make"]),
    "wrapper video": configured("env.wrappers", [VIDEO]),
    "wrapper vector": configured(
        "env.wrappers", [{**VIDEO, "_target_": "gymnasium.wrappers.vector.RecordVideo"}]
    ),
    "wrapper callable": configured("env.wrappers", [{"_target_": "gymnasium.wrappers.TransformReward"}]),
    "wrapper of data": configured("env.wrappers", ["gymnasium.wrappers.TimeLimit", "evil.Wrapper"]),
    "wrapper that imports": configured("env.wrappers", ["gymnasium.wrappers.jax_to_torch.JaxToTorch"]),
    "wrapper on request": configured("env.wrappers", ["gymnasium.wrappers.JaxToTorch"]),
    "wrapper window": configured("env.wrappers", ["gymnasium.wrappers.HumanRendering"]),
}
CONFIGS = {
    "kwargs of old environments": edited("id: Pendulum-v1\n", "id: GymV21Environment-v0\n"),
    "config wrappers": configured("env.wrappers", 5),
    "config wrapper": configured("env.wrappers", [7, None, {"a": 1}]),
    "config group": configured("env", "gym"),
    "config target": configured("agent._target_", {"_target_": "evil.Agent"}),
    "config digits": edited("seed: 0", f"seed: 0x{'f' * 20_000}"),
    "config date": edited("seed: 0", "seed: 2001-01-01"),
    "config python": edited("seed: 0", "seed: !!python/object/apply:os.system ['touch executed']"),
    "config alias": edited("seed: 0", "seed: &a [1]\nx: *a"),
    "config keys": edited("seed: 0", "1: 2\nseed: 0"),
    "config dotted": edited("seed: 0", "seed: 0\nenv.id: evil:X-v0\nmodel.reward: {_target_: evil.X}"),
    "kwargs unknown": configured("env.kwargs", {"entry_point": "evil:Env", "_target_": "evil.X"}),
    "kwargs of another type": configured("env.kwargs", {"render_mode": 5}),
    "config huge": written("config.yaml", b"a: " + b"x" * 10**6),
    "config empty": written("config.yaml", b""),
}
REFUSED = LINKS | HARD_LINKS | SPECIAL | NAMES | CONFIGS
# Some of what is in a run is used although it is not what was written, or is replaced.
HARMLESS = {
    "policy pickle": written("policy.pt", pickle.dumps(Payload())),
    "state pickle": written(f"{STEP}/*", pickle.dumps(Payload())),
    "experience pickle": written("experience/*", pickle.dumps(Payload())),
    "metrics numbers": written(
        "metrics.jsonl",
        b'{"step": 1%s, "eval/return_mean": 1}\n{"step": 2, "eval/return_mean": 1e308}\n' % (b"0" * 400),
    ),
    "metrics lines": written(
        "metrics.jsonl", b'\xff eval/return_mean\n["eval/return_mean"]\n' + b"[" * 10_000
    ),
    "events": written("events.out.tf*", b"\xff" * 100),
    "summary": written("summary.json", b'{"status": "=cmd|x", "error": "<script>", "score": 1e999}'),
    "lock": written("run.lock", b"\x1b[31m" * 1000),
    "log": written("train.log", b"<script>\x1b"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    run(make_config(*TINY), path)
    (path / "train.log").touch()
    return path


@pytest.fixture(scope="module")
def config() -> Config:
    return make_config(*TINY)


@pytest.fixture
def hostile(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], Path]:
    """Return a copy of a run that is made hostile, beside a victim and a module that must not be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    (tmp_path / "victim" / "photos").mkdir(parents=True)
    for name in ("thesis.tex", "photos/1.jpg", "photos/manifest.json"):
        (tmp_path / "victim" / name).write_text("mine")

    def make(change: Change) -> Path:
        path = Path(shutil.copytree(finished, tmp_path / "run"))
        change(path)
        return path

    return make


def one_line(error: BaseException | str) -> None:
    assert "\n" not in str(error).strip()


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_run_is_refused(
    name: str, hostile: Callable[[Change], Path], config: Config, tmp_path: Path
) -> None:
    path = hostile(REFUSED[name])
    uses: dict[str, Callable[[], object]] = {
        "resume": lambda: resumed_config(path, [], []),
        "load": lambda: load(path),
        "check": lambda: check_usable(path, asdict(config)),
        "open": lambda: RunDirectory(path, asdict(config)),
        "job": Job("run", (), path, config).check,
    }
    if name in HARD_LINKS:  # which are safe to read
        del uses["resume"], uses["load"]
    elif name in NAMES | CONFIGS:  # the last three compare the configuration with the user's own
        uses = {key: uses[key] for key in (("load",) if "kwargs" in name else ("resume", "load"))}
    with harmless(tmp_path):
        runs.read(path)
        for use in uses.values():
            with pytest.raises(ConfigError) as caught:
                use()
            one_line(caught.value)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_run_holds_is_only_data(name: str, hostile: Callable[[Change], Path], tmp_path: Path) -> None:
    path = hostile(HARMLESS[name])
    with harmless(tmp_path):
        resumed_config(path, [], [])
        runs.read(path)
        try:
            load(path)
        except (ConfigError, RunFailed) as error:
            one_line(error)


def test_the_directory_itself_may_be_reached_through_links(
    hostile: Callable[[Change], Path], config: Config, tmp_path: Path
) -> None:
    path = hostile(
        lambda run: (run / "notes").symlink_to("../victim/thesis.tex")
    )  # which is not the run's own
    (tmp_path / "parent").symlink_to(".")
    (tmp_path / "link").symlink_to("run")
    for way in (tmp_path / "parent" / "run", tmp_path / "link", Path("link")):
        check_usable(way, asdict(config))
        with RunDirectory(way, asdict(config)):
            resumed_config(way, [], [])
        assert load(way).checkpoint is not None
        assert runs.read(way) is not None
    assert (path / "notes").is_symlink()


@pytest.mark.parametrize("trust", ["my_evil_lab", ["my_evil_lab"], "", [""], ["evil.Agent"], ()])
def test_only_the_package_that_the_user_names_is_trusted(
    trust: Any, hostile: Callable[[Change], Path]
) -> None:
    path = hostile(NAMES["agent of data"])
    with pytest.raises(ConfigError, match="the run directory names code outside"):
        load(path, trust=trust)
    with pytest.raises(ConfigError, match="trust=5: must be a list"):
        resumed_config(path, [], 5)  # type: ignore[arg-type]


def test_code_that_the_user_trusts_is_still_checked_for_its_place(hostile: Callable[[Change], Path]) -> None:
    path = hostile(NAMES["wrapper process"])
    with pytest.raises(ConfigError, match=r"not a subclass of gymnasium\.Wrapper"):
        load(path, trust=["mbpo_cli"])


@pytest.mark.parametrize("place", ["evaluation.json", "report", "report/inner"])
def test_no_output_leaves_a_run_by_a_link(
    place: str, hostile: Callable[[Change], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    is_file = place == "evaluation.json"
    path = hostile(linked(place.partition("/")[0], "../victim/thesis.tex" if is_file else FOLDER))
    command = evaluate.main if is_file else report.main
    with harmless(tmp_path), pytest.raises(SystemExit) as ending:
        command([str(path), "--output", str(path / place)])
    assert ending.value.code == 2
    assert "link" in capsys.readouterr().err


def commands(path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield what a user may do with a run, in this process."""
    yield "mbpo-evaluate", lambda: evaluate.main([str(path), "--episodes", "1"])
    yield "mbpo-model", lambda: model.main([str(path), "--episodes", "1", "--horizon", "2"])
    yield "mbpo-export", lambda: export.main([str(path), "--output", str(path.parent / "out" / "p.pt")])
    yield "mbpo-report", lambda: report.main([str(path), "--output", str(path.parent / "out" / "report")])
    yield "mbpo-train", train.main


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED | HARMLESS)
def test_no_command_does_harm_with_a_hostile_run(
    name: str,
    hostile: Callable[[Change], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = hostile((REFUSED | HARMLESS)[name])
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(logging, "raiseExceptions", False)  # earlier tests closed what logs write to
    monkeypatch.setattr(sys, "argv", ["mbpo-train", "resume=run", "trainer.num_env_steps=24"])
    for command, use in commands(path):
        before = listing(path, ())
        code: Any = 0
        with harmless(tmp_path, path, tmp_path / "out"):
            try:
                use()
            except SystemExit as ending:
                code = ending.code
        said = capfd.readouterr().err
        assert "Traceback" not in said or name in HARMLESS
        if (
            name in REFUSED
            and command != "mbpo-report"
            and (name not in HARD_LINKS or command == "mbpo-train")
        ):
            assert code == 2, (command, said)
            assert said.count("\n") == 1
            assert listing(path, ()) == before
