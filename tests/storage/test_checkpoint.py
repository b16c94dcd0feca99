"""Checkpoints on their own: complete or absent, accepted only if unchanged, and never executed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mbpo_cli.buffers import ReplayBuffer
from mbpo_cli.failures import NoUsableCheckpoint
from mbpo_cli.storage import files
from mbpo_cli.storage.checkpoint import Checkpoint, Checkpoints
from mbpo_cli.storage.manifest import signed
from tests.conftest import random_transitions, spaces

SPACE = spaces()
NAMES = ("manifest.json", "state.json", "tensors.safetensors", "real-")


def buffers() -> dict[str, ReplayBuffer]:
    return {"real": ReplayBuffer(50, SPACE), "generated": ReplayBuffer(20, SPACE)}


def state_at(step: int) -> dict[str, Any]:
    tensors = [torch.full((3,), float(step)), torch.arange(4, dtype=torch.uint8)]
    return {"step": step, "nested": {"tensors": tensors, "none": None}, "ratio": 0.1 + step, "empty": []}


def go_on(checkpoints: Checkpoints, experience: Mapping[str, ReplayBuffer], steps: Iterable[int]) -> None:
    """Make a checkpoint of each step, with ten new rows of experience."""
    for step in steps:
        for buffer in experience.values():
            buffer.add(random_transitions(10, SPACE, seed=step))
        checkpoints.save(step, state_at(step), experience, {"metrics.jsonl": step})


def fill(path: Path, steps: tuple[int, ...] = (1, 2, 3)) -> None:
    """Begin a run with a checkpoint at each step."""
    path.mkdir()
    go_on(Checkpoints(path, keep=2), buffers(), steps)


def load(path: Path) -> tuple[Checkpoint | None, dict[str, ReplayBuffer]]:
    experience = buffers()
    return Checkpoints(path, keep=2).load(experience), experience


def check_restored(restored: Checkpoint, experience: dict[str, ReplayBuffer]) -> None:
    """Check that a checkpoint and its buffers are exactly as they were saved."""
    step = restored.step
    expected = state_at(step)
    tensors = restored.state["nested"].pop("tensors")
    for tensor, saved in zip(tensors, expected["nested"].pop("tensors"), strict=True):
        assert tensor.dtype == saved.dtype
        assert torch.equal(tensor, saved)
    assert restored.state == expected
    assert restored.logs == {"metrics.jsonl": step}
    for buffer in experience.values():
        assert buffer.total_added == 10 * step
        last = random_transitions(10, SPACE, seed=step)
        assert torch.equal(buffer.unpack(buffer.rows(10 * step - 10, 10 * step)).obs, last.obs)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    fill(tmp_path / "run")
    return tmp_path / "run"


def test_a_checkpoint_restores_what_was_saved(filled: Path) -> None:
    restored, experience = load(filled)
    assert restored is not None
    assert restored.step == 3
    check_restored(restored, experience)


def test_a_new_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert load(tmp_path)[0] is None


def test_500_random_damages_are_detected(filled: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(500):
        damaged = tmp_path / "damaged"
        shutil.copytree(filled, damaged)
        newest = [path for path in damaged.rglob("*") if path.is_file() and is_of_newest(path)]
        path = chance.choice(sorted(newest))
        data = path.read_bytes()
        where = chance.randrange(len(data))
        kind = chance.choice(["truncate", "flip", "empty", "remove", "lengthen"])
        if kind == "remove":
            path.unlink()
        else:
            flipped = data[:where] + bytes([data[where] ^ (1 << chance.randrange(8))]) + data[where + 1 :]
            path.write_bytes(
                {"truncate": data[:where], "flip": flipped, "empty": b"", "lengthen": data + b"\n"}[kind]
            )
        restored, experience = load(damaged)
        assert restored is not None
        # A manifest with other white space is still valid.
        assert restored.step == 2 or path.name == "manifest.json", (path, kind)
        check_restored(restored, experience)
        shutil.rmtree(damaged)


def is_of_newest(path: Path) -> bool:
    """Return True for a file that only the newest checkpoint needs."""
    return "000000000003" in str(path) or path.name.endswith(f"-{30:012d}.safetensors")


class Killed(BaseException):
    """Stands for the death of the process."""


def faulty(fault: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the operation number `at` of those that make something durable fail."""
    count = 0

    def wrap(function: Callable[..., Any], is_write: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                if is_write and fault == "half":
                    path, data = args
                    path.write_bytes(data[: len(data) // 2])
                if fault == "no_space":
                    raise OSError(28, "No space left on device")
                raise Killed
            if count > at and fault != "no_space":
                raise Killed
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(files, "write", wrap(files.write, True))
    monkeypatch.setattr(files, "sync", wrap(files.sync, False))
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name), False))


def fails(save: Callable[[], None], fault: str, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a fault in the operation number `at` makes saving fail; operations are as before afterwards."""
    faulty(fault, at, monkeypatch)
    try:
        save()
    except (Killed, OSError):
        return True
    finally:
        monkeypatch.undo()
    return False


@pytest.mark.parametrize("fault", ["kill", "half", "no_space"])
def test_a_fault_in_any_operation_loses_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inject a fault into each operation of the second and third checkpoint in turn."""
    for at in range(1, 100):
        path = tmp_path / str(at)
        fill(path, (1,))
        checkpoints, experience = Checkpoints(path, keep=2), buffers()
        checkpoints.load(experience)
        failed = fails(partial(go_on, checkpoints, experience, range(2, 4)), fault, at, monkeypatch)
        restored, found = load(path)
        assert restored is not None
        check_restored(restored, found)
        if not failed:
            assert restored.step == 3
            assert at > 24, "at least a dozen operations each"
            return
        # The run resumes, in spite of the files that the fault left behind.
        checkpoints, experience = Checkpoints(path, keep=2), buffers()
        again = checkpoints.load(experience)
        assert again is not None
        go_on(checkpoints, experience, range(again.step + 1, 5))
        restored, found = load(path)
        assert restored is not None
        assert restored.step == 4
        check_restored(restored, found)
        assert not [left for left in path.rglob("*") if left.name.startswith(".") or left.suffix == ".tmp"]
    pytest.fail("the faults never ended")


@pytest.mark.parametrize("fault", ["kill", "half", "no_space"])
def test_a_fault_while_a_checkpoint_replaces_that_of_the_same_step_loses_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, 100):
        path = tmp_path / str(at)
        fill(path, (1,))
        checkpoints, experience = Checkpoints(path, keep=2), buffers()
        checkpoints.load(experience)
        for buffer in experience.values():
            buffer.add(random_transitions(10, SPACE, seed=2))
        manifest = path / "checkpoints" / f"{1:012d}" / "manifest.json"
        before = manifest.read_bytes()
        checkpoints.save(1, state_at(2), experience, {})
        assert manifest.read_bytes() == before
        replacing = partial(checkpoints.save, 1, {**state_at(2), "step": 1}, experience, {}, replaces=True)
        failed = fails(replacing, fault, at, monkeypatch)
        restored, found = load(path)
        assert restored is not None
        is_new = bool((restored.state["nested"]["tensors"][0] == 2).all())
        assert len(found["real"]) == (20 if is_new else 10)
        assert is_new or failed
        if not failed:
            assert at > 12, "a dozen operations"
            assert not list(path.rglob(".*"))
            return
    pytest.fail("the faults never ended")


class Payload:
    """Executes something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def payloads() -> Iterator[tuple[str, bytes]]:
    yield "pickle", pickle.dumps(Payload())
    torch_file = io.BytesIO()
    torch.save({"x": Payload()}, torch_file)
    yield "torch", torch_file.getvalue()
    yield "python", b"__import__('os').mkdir('executed')"
    yield "yaml", b"!!python/object/apply:os.mkdir ['executed']"
    yield "json", b'{"__reduce__": ["os.mkdir", "executed"], "_target_": "os.mkdir"}'
    yield "deep", b"[" * 100_000
    yield "huge_header", (2**62).to_bytes(8, "little") + b"{}"
    yield "numbers", b'{"format": 1e999, "step": NaN}'
    yield "null", b"null"


STRANGE_NAMES = ["../../secret", "/etc/passwd", "..", "", "a/b", "x\x00y", ".hidden", "a\nb", None, 3, ["x"]]
EXECUTION = ("os.mkdir", "exec", "import", "subprocess.Popen", "os.system", "pickle.find_class")
events: list[str] = []
listening = False


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if listening and event in EXECUTION:
        events.append(f"{event} {arguments[:1]}")


sys.addaudithook(listen)


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "payload"), list(payloads()), ids=[kind for kind, _ in payloads()])
def test_a_malicious_file_is_rejected_and_not_executed(
    kind: str, payload: bytes, name: str, is_signed: bool, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    global listening
    monkeypatch.chdir(filled)
    newest = filled / "checkpoints" / f"{3:012d}"
    path = next(p for p in filled.rglob(f"{name}*") if is_of_newest(p))
    path.write_bytes(payload)
    if is_signed and name != "manifest.json":  # by an attacker who computes checksums
        manifest = json.loads((newest / "manifest.json").read_text())
        entries = [*manifest["files"], *(f["file"] for f in manifest["experience"]["real"]["files"])]
        entry = next(entry for entry in entries if entry["name"] == path.name)
        entry |= {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        manifest.pop("sha256")
        (newest / "manifest.json").write_bytes(signed(manifest))
    load(filled)  # completes lazy imports
    events.clear()
    listening = True
    try:
        restored, experience = load(filled)
    finally:
        listening = False
    assert events == []
    assert not (filled / "executed").exists()
    assert restored is not None
    if not (is_signed and name == "state.json" and kind in ("json", "null")):  # valid plain values
        assert restored.step == 2
        check_restored(restored, experience)


@pytest.mark.parametrize("strange", STRANGE_NAMES, ids=repr)
@pytest.mark.parametrize("place", ["file", "experience", "log", "best"])
def test_names_in_a_manifest_cannot_leave_the_run_directory(strange: Any, place: str, filled: Path) -> None:
    path = filled / "checkpoints" / f"{3:012d}" / "manifest.json"
    manifest = json.loads(path.read_text())
    if place == "file":
        manifest["files"][0]["name"] = strange
    elif place == "experience":
        manifest["experience"]["real"]["files"][0]["file"]["name"] = strange
    elif place == "best":
        manifest["best"] = str(strange)
    else:
        manifest["logs"] = {str(strange): 1}
        if strange in (3,):
            return  # valid as text
        if strange in (None, ["x"]) and str(strange).isidentifier():
            return
    manifest.pop("sha256")
    path.write_bytes(signed(manifest))
    restored, experience = load(filled)
    assert restored is not None
    assert restored.step == 2
    check_restored(restored, experience)


def test_the_error_gives_a_reason_for_every_unusable_checkpoint(filled: Path) -> None:
    for path in filled.glob("checkpoints/*/state.json"):
        path.write_bytes(b"")
    with pytest.raises(NoUsableCheckpoint, match=r"000000000003: state.json has 0 bytes.*; 000000000002: "):
        load(filled)


def test_reading_returns_the_newest_or_the_best_and_changes_nothing(tmp_path: Path) -> None:
    reader = Checkpoints(tmp_path, keep=2)
    assert reader.read() is None
    checkpoints, experience = Checkpoints(tmp_path, keep=2), {"real": ReplayBuffer(15, SPACE)}
    for step in range(1, 6):
        experience["real"].add(random_transitions(10, SPACE, seed=step))
        checkpoints.save(step, state_at(step), experience, {}, is_best=step == 2)
        if step == 1:
            assert reader.read(best=True) is None, "no evaluation so far"
    before = sorted(path for path in tmp_path.rglob("*"))
    newest, best = reader.read(), reader.read(best=True)
    assert newest is not None
    assert best is not None
    assert (newest.step, best.step, newest.best) == (5, 2, 2)
    assert best.state["step"] == 2
    kept = torch.cat([experience["real"].rows(start, start + 5) for start in (35, 40, 45)])
    assert torch.equal(reader.experience(5, "real"), kept), "oldest first"
    assert sorted(path for path in tmp_path.rglob("*")) == before
    (tmp_path / "checkpoints" / f"{2:012d}" / "manifest.json").unlink()
    with pytest.raises(NoUsableCheckpoint, match="000000000002"):
        reader.read(best=True)


def test_only_needed_checkpoints_and_rows_are_kept(tmp_path: Path) -> None:
    """The two latest checkpoints and that of the best evaluation, with the newest rows of their buffers."""
    checkpoints, experience = Checkpoints(tmp_path, keep=2), buffers()
    for step in range(1, 9):
        for buffer in experience.values():
            buffer.add(random_transitions(10, SPACE, seed=step))
        checkpoints.save(step, state_at(step), experience, {}, is_best=step in (2, 7))
        best = 1 if step == 1 else 2 if step < 7 else 7
        kept = {step - 1, step, best} - {0}
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {f"{k:012d}" for k in kept}
        # Each file holds the ten rows that a step added.
        needed = {
            f"{name}-{end - 10:012d}-{end:012d}.safetensors"
            for name, buffer in experience.items()
            for k in kept
            for end in range(max(10 * k - buffer.capacity, 0) + 10, 10 * k + 1, 10)
        }
        assert {path.name for path in (tmp_path / "experience").iterdir()} == needed
        for k in kept:
            assert len(checkpoints.experience(k, "real")) == min(10 * k, 50)


def test_a_run_that_resumed_from_an_earlier_checkpoint_replaces_the_later_one(filled: Path) -> None:
    (filled / "checkpoints" / f"{3:012d}" / "state.json").write_bytes(b"{}")
    checkpoints, experience = Checkpoints(filled, keep=2), buffers()
    again = checkpoints.load(experience)
    assert again is not None
    assert again.step == checkpoints.last_step == 2
    for buffer in experience.values():
        buffer.add(random_transitions(10, SPACE, seed=3))
    checkpoints.save(3, state_at(3), experience, {"metrics.jsonl": 3})
    restored, found = load(filled)
    assert restored is not None
    assert restored.step == 3
    check_restored(restored, found)
