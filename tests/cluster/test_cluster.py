"""Sweeps on Ray and Slurm, which the tests start, give the same scores as a sweep on this machine."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.test_resume import outcome

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-m", "mbpo_cli", "-m"]
SWEEP = ["experiment=smoke", "seed=0,1"]
# Long enough to be stopped half-way: half a minute.
LONG = [
    *TINY,
    "trainer.num_env_steps=1500",
    "trainer.evaluate_every_steps=500",
    "trainer.log_every_steps=50",
    "checkpoint.every_steps=100",
    "hydra.sweep.subdir=seed${seed}",
]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=60"]
SCRIPT = Path(__file__).with_name("slurm_one_node.sh")
SECONDS = 240.0


def skip_unless(met: object, reason: str) -> None:
    if not met:
        pytest.skip(reason)


def sweep(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=SECONDS)


def summaries(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/summary.json")}


def scores(folder: Path) -> dict[str, float]:
    return {name: summary["score"] for name, summary in summaries(folder).items()}


def statuses(folder: Path) -> dict[str, str]:
    return {name: summary["status"] for name, summary in summaries(folder).items()}


def wait_until(met: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not met():
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.2)


def processes_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and path.parent.name != str(os.getpid()):
            found.append(line)
    return found


def listening() -> set[str]:
    """Return the addresses on which Slurm's daemons listen, in the format of the kernel."""
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    addresses = {fields[1] for line in lines if (fields := line.split())[3] == "0A"}
    return {address for address in addresses if int(address.split(":")[1], 16) in (16817, 16818)}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The scores of the same sweep run as processes on this machine."""
    path = tmp_path_factory.mktemp("processes")
    done = sweep(path, *SWEEP, "hydra.sweep.dir=here")
    assert done.returncode == 0, done.stdout + done.stderr
    found = scores(path / "here")
    assert len(found) == 2
    return found


# Ray listens on every interface, so it runs in a network namespace with the loopback interface only.


def in_namespace(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a namespace with only a loopback interface; no process outlives it."""
    skip_unless(shutil.which("unshare") and shutil.which("ip"), "needs Linux's unshare and ip")
    alone = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    skip_unless(subprocess.run([*alone, "true"]).returncode == 0, "needs root, for a network namespace")
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # short: socket paths have a maximum length
        variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}
        return subprocess.run(
            [*alone, "bash", "-euc", f"ip link set lo up\n{script}"],
            cwd=cwd,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


@pytest.fixture
def ray_folder(tmp_path: Path) -> Iterator[Path]:
    skip_unless(find_spec("ray"), "needs the extra 'ray'")
    yield tmp_path
    assert processes_with(str(tmp_path)) == []


def test_ray_on_this_machine(ray_folder: Path, expected: dict[str, float]) -> None:
    done = in_namespace(
        shlex.join([*COMMAND, *SWEEP, "hydra/launcher=ray", "hydra.sweep.dir=there"]), ray_folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert scores(ray_folder / "there") == expected


def test_a_running_ray_cluster(ray_folder: Path, expected: dict[str, float]) -> None:
    ray = f"{shlex.quote(sys.executable)} -m ray.scripts.scripts"
    start = "start --head --node-ip-address=127.0.0.1 --port=6379 --num-cpus=2 --include-dashboard=false"
    address = "hydra.launcher.ray.init.address=127.0.0.1:6379"
    (ray_folder / "elsewhere").mkdir()
    done = in_namespace(
        f"""
        (cd elsewhere && {ray} {start})
        {shlex.join([*COMMAND, *SWEEP, "hydra/launcher=ray", address, "hydra.sweep.dir=there"])}
        {ray} stop
        """,
        ray_folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert scores(ray_folder / "there") == expected
    assert not (ray_folder / "elsewhere" / "there").exists()


def test_a_job_that_ray_loses_affects_no_other(ray_folder: Path) -> None:
    arguments = [*LONG, "seed=0,1", "hydra/launcher=ray", "hydra.sweep.dir=there"]
    done = in_namespace(
        f"""
        {shlex.join([*COMMAND, *arguments])} & sweep=$!
        until [ -s there/seed0/metrics.jsonl ] && [ -s there/seed1/metrics.jsonl ]; do
            kill -0 $sweep
            sleep 0.2
        done
        run=$(awk '{{ print $2 }}' there/seed0/run.lock)
        kill -KILL $(ps -o ppid= -p $run) $run
        wait $sweep
        """,
        ray_folder,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "lost by Ray: WorkerCrashedError" in done.stdout
    assert statuses(ray_folder / "there") == {"seed0": "failed", "seed1": "done"}


def test_a_sweep_on_ray_that_is_terminated_stops_its_jobs(ray_folder: Path) -> None:
    arguments = [*LONG, "seed=0", "hydra/launcher=ray", "hydra.sweep.dir=there"]
    done = in_namespace(
        f"""
        {shlex.join([*COMMAND, *arguments])} & sweep=$!
        until [ -s there/seed0/metrics.jsonl ]; do kill -0 $sweep; sleep 0.2; done
        kill -TERM $sweep
        wait $sweep
        """,
        ray_folder,
    )
    assert done.returncode == 143, done.stdout + done.stderr
    assert statuses(ray_folder / "there") == {"seed0": "interrupted"}


# Slurm listens on the loopback interface only.


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    skip_unless(os.geteuid() == 0, "needs root, for Slurm's daemons")
    skip_unless(find_spec("submitit"), "needs the extra 'slurm'")
    skip_unless(shutil.which("slurmctld") or shutil.which("apt-get"), "needs Slurm, or apt-get to install it")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
            yield
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)
    assert listening() == set()
    assert processes_with(str(folder)) == processes_with("slurmstepd") == []


@pytest.fixture
def start_sweep(slurm: None, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a sweep that the test then disturbs."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [*COMMAND, *arguments]
        started.append(subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def has_taken_steps(run: Path) -> bool:
    log = run / "metrics.jsonl"
    return log.exists() and log.stat().st_size > 0


def array_in(folder: Path) -> str:
    """Return the Slurm job number of a sweep."""
    (number,) = (path.name for path in (folder / ".submitit").iterdir() if path.name.isdigit())
    return number


def test_slurm(slurm: None, tmp_path: Path, expected: dict[str, float]) -> None:
    done = sweep(tmp_path, *SWEEP, *SLURM, "hydra.sweep.dir=there")
    assert done.returncode == 0, done.stdout + done.stderr
    assert scores(tmp_path / "there") == expected


def test_slurm_listens_on_the_loopback_interface_only(slurm: None) -> None:
    assert listening() == {f"0100007F:{port:04X}" for port in (16817, 16818)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long run without interruption."""
    path = tmp_path_factory.mktemp("whole")
    done = sweep(path, *LONG, "seed=0", "hydra.sweep.dir=.")
    assert done.returncode == 0, done.stdout + done.stderr
    return path / "seed0"


@pytest.mark.parametrize("by", ["signal", "priority"])
def test_a_job_that_slurm_preempts_resumes(by: str, start_sweep: Any, whole: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    process = start_sweep(*LONG, *SLURM, "seed=0", "hydra.sweep.dir=there")
    wait_until(lambda: has_taken_steps(there / "seed0"), "the run takes steps")
    if by == "signal":
        subprocess.run(["scancel", "--signal=USR2", array_in(there)], check=True)
    else:
        urgent = ["--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true"]
        subprocess.run(["sbatch", *urgent], check=True)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert (there / "seed0" / "train.log").read_text().count("resuming from step") == 1
    assert outcome(there / "seed0") == outcome(whole)
    assert scores(there)["seed0"] == json.loads((whole / "summary.json").read_text())["score"]


def test_jobs_that_slurm_loses_affect_no_other(start_sweep: Any, tmp_path: Path) -> None:
    there = tmp_path / "there"
    arguments = [*LONG, *SLURM, "seed=0,1,2", "hydra.sweep.dir=there"]
    process = start_sweep(*arguments)
    wait_until(
        lambda: has_taken_steps(there / "seed0") and has_taken_steps(there / "seed1"), "runs take steps"
    )
    subprocess.run(["scancel", f"{array_in(there)}_0"], check=True)
    os.kill(int((there / "seed1" / "run.lock").read_text().split()[1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, output
    assert statuses(there) == {"seed0": "interrupted", "seed1": "failed", "seed2": "done"}
    assert "lost by Slurm: CANCELLED" in output
    assert "seed1: failed: killed by SIGKILL" in output

    before = (there / "seed2" / "summary.json").read_bytes()
    again = sweep(tmp_path, *arguments)
    assert again.returncode == 0, again.stdout
    assert "3 jobs in there, 1 of them done" in again.stdout
    assert set(statuses(there).values()) == {"done"}
    assert (there / "seed2" / "summary.json").read_bytes() == before


def test_an_interrupted_sweep_on_slurm_stops_its_jobs(start_sweep: Any, tmp_path: Path) -> None:
    there = tmp_path / "there"
    process = start_sweep(*LONG, *SLURM, "seed=0", "hydra.sweep.dir=there")
    wait_until(lambda: has_taken_steps(there / "seed0"), "the run takes steps")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, output
    assert statuses(there) == {"seed0": "interrupted"}
