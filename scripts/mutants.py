"""Measure what the fast tests notice: small faults, one at a time, in the code of algorithm and storage.

A sample of mutants (see `scripts/mutations.py`) is drawn with a fixed seed. For each, the tests that execute
its line are run, quick ones and those of its package first, until one fails. All this happens in a copy
of the last commit. `.mutants/` keeps what the tests execute and the results, so that a stopped program goes
on; mutants are known by their file, function and line of source, wherever these have moved to.

    python -m scripts.mutants --number 100 --seed 0
    python -m scripts.mutants --files mbpo_cli/buffers.py --number 20 --again

Why not mutmut 3 or cosmic-ray: the first leaves code outside of functions alone and draws no sample, the
second runs all tests for each mutant.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.mutations import Module, Mutant

ROOT = Path(__file__).parents[1]
LIBRARIES = ("gymnasium", "hydra", "matplotlib.figure", "safetensors.torch", "scipy.stats", "torch")
STORE = ROOT / ".mutants"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
FILES = (
    *(f"mbpo_cli/{name}.py" for name in ("trainer", "rollouts", "buffers", "exploration")),
    *(f"mbpo_cli/{name}" for name in ("agents", "models", "storage")),
    *(f"mbpo_cli/nn/{name}.py" for name in ("networks", "optimizers", "seeding")),
    *(f"mbpo_cli/{name}.py" for name in ("envs/collector", "envs/known", "evaluation/evaluate")),
)


def sample(folder: Path, files: Sequence[str], number: int, seed: int) -> list[Mutant]:
    """Draw mutants from files and folders: the same ones as before wherever their lines have not changed."""
    paths = {path for name in files for path in (*folder.glob(name), *folder.glob(f"{name}/*.py"))}
    drawn = [
        pair
        for path in sorted(paths)
        if path.suffix == ".py"
        for pair in Module(path.read_bytes()).mutants(str(path.relative_to(folder)), seed)
    ]
    return [mutant for _, mutant in sorted(drawn, key=lambda pair: pair[0])[:number]]


def python(folder: Path, *arguments: str) -> list[str]:
    """Return a command of the copy's interpreter, which leaves no compiled mutant behind."""
    return [str(folder / ".venv/bin/python"), "-B", *arguments]


def make_copy(folder: Path, commit: str = "HEAD") -> None:
    """Unpack a commit, with an environment where `mbpo_cli` is the copy and all else is as here."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    for name in ("mutants.py", "mutations.py"):
        (folder / "scripts" / name).write_bytes(Path(__file__).with_name(name).read_bytes())
    venv.create(folder / ".venv", with_pip=False)
    site = next((folder / ".venv/lib").glob("python*/site-packages"))
    # Python looks for editable installations in an environment's own folder only.
    (site / "rest.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / ".venv/bin/python"), "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--editable", str(folder)], check=True)
    code = "import mbpo_cli.conf, hydra_plugins.mbpo as p; print(*mbpo_cli.conf.__path__, *p.__path__)"
    where = python(folder, "-c", code)
    found = subprocess.run(where, cwd="/", check=True, capture_output=True, text=True).stdout.split()
    if not all(path.startswith(str(folder)) for path in found):
        sys.exit(f"the copy in {folder} would test {found}")


class Server:
    """A process of the copy's interpreter that has the large libraries loaded, and forks for each command.

    To load them takes longer than most tests do.
    """

    def __init__(self, folder: Path, libraries: Sequence[str]) -> None:
        self._output = folder / "output"
        # Plugins of pytest that the tests do not need take a second.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self._process = subprocess.Popen(
            python(folder, "-m", "scripts.mutants", "--serve", str(self._output), *libraries),
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pytest(self, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """Run pytest; return its exit code, or None if it took too long, and its output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([[*arguments], seconds]) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        return code, self._output.read_text(errors="replace")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(output: str, *libraries: str) -> None:
    """Run pytest in a fork, with the arguments and the time limit of each line of the standard input."""
    for name in libraries:
        importlib.import_module(name)
    for line in sys.stdin:
        arguments, seconds = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for standard in (1, 2):
                os.dup2(descriptor, standard)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments])
            sys.stdout.flush()
            os._exit(code)
        end = time.monotonic() + seconds
        answer: int | None = None
        while answer is None and time.monotonic() < end:
            time.sleep(0.02)
            ended, status = os.waitpid(child, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if answer is None:
            os.waitpid(child, 0)
        print(json.dumps(answer), flush=True)


@dataclass
class Recorder:
    """A plugin of pytest that records what each test executes, whether it passes, and how long it takes."""

    coverage: Any
    seconds: dict[str, float] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Give each test, with its fixtures, a context of its own."""
        self.coverage.switch_context(item.nodeid)
        result = yield
        self.coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the time of a test; one that fails or is skipped cannot notice anything."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.unused.add(report.nodeid)


def record(test_file: str, files: Sequence[str], result: Path) -> None:
    """Run a file of tests in this process; write which of them execute which lines, and their times."""
    from coverage import Coverage

    include = [name if name.endswith(".py") else f"{name}/*" for name in files]
    coverage = Coverage(data_file=None, config_file=False, include=include)
    coverage.set_option("run:disable_warnings", ["no-data-collected"])
    recorder = Recorder(coverage)
    coverage.start()
    pytest.main(["-q", "-p", "no:cacheprovider", test_file], plugins=[recorder])
    coverage.stop()
    data, lines = coverage.get_data(), {}
    for measured in data.measured_files():
        module, executed = Module(Path(measured).read_bytes()), dict[str, set[str]]()
        for number, tests in data.contexts_by_lineno(measured).items():
            if (line := module.named_line(number)) is not None:
                executed.setdefault(line, set()).update(set(tests) - {""})
        lines[str(Path(measured).relative_to(Path.cwd()))] = {k: sorted(v) for k, v in executed.items() if v}
    seconds = {test: round(s, 3) for test, s in recorder.seconds.items() if test not in recorder.unused}
    result.write_text(json.dumps({"lines": lines, "seconds": seconds, "unused": sorted(recorder.unused)}))


@dataclass
class Tests:
    """Which tests execute a line, by file and named line, and their times in seconds."""

    lines: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, files: Sequence[str]) -> Tests:
        """Return those of the copy; each file of tests is run once, and again when it has changed."""
        known = cls()
        for path in sorted(folder.glob("tests/**/test_*.py")):
            name, digest = str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()
            stored = STORE / "tests" / f"{name.replace('/', '.')}-{digest[:16]}.json"
            if not stored.exists():
                stored.parent.mkdir(parents=True, exist_ok=True)
                arguments = ["--record", name, str(stored), "--files", *files]
                command = python(folder, "-m", "scripts.mutants", *arguments)
                done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
                print(f"{name}: {done.stdout.strip().splitlines()[-1]}", flush=True)
            part = json.loads(stored.read_text())
            known.seconds |= part["seconds"]
            for file, lines in part["lines"].items():
                for line, tests in lines.items():
                    known.lines.setdefault(file, {}).setdefault(line, set()).update(tests)
        return known

    def that_execute(self, mutant: Mutant, seconds: float) -> list[str]:
        """Return the tests that execute a mutant's line, as many as take so many seconds.

        If no test does, because the line is new or runs only when the module is imported, it is those of its
        function, or else of its file.
        """
        lines = self.lines.get(mutant.file, {})
        found = lines.get(f"{mutant.function}: {mutant.was.splitlines()[0]}", set())
        for scope in (f"{mutant.function}: ", ""):
            if not found:
                found = {test for line in lines if line.startswith(scope) for test in lines[line]}
        package, name = Path(mutant.file).parts[-2:]
        near = (f"tests/{package}/", f"tests/test_{name}")
        chosen, left = [], seconds
        for test in sorted(
            found & self.seconds.keys(), key=lambda t: (not t.startswith(near), self.seconds[t])
        ):
            left -= self.seconds[test] + 0.01
            if left > 0:
                chosen.append(test)
        return chosen


def try_one(mutant: Mutant, folder: Path, server: Server, tests: list[str], seconds: float) -> dict[str, Any]:
    """Run tests on a mutant in the copy until one fails; return which one, or nothing."""
    path, started = folder / mutant.file, time.monotonic()
    source = path.read_bytes()
    path.write_bytes(mutant.of(source))
    try:
        arguments = ["-x", f"--basetemp={folder / 'temporary'}", *tests]
        code, output = server.pytest(arguments, seconds) if tests else (0, "")
    finally:
        path.write_bytes(source)
    by = "time limit" if code is None else (failures(output) or [" ".join(output.splitlines()[-3:])])[0]
    return {
        **asdict(mutant),
        "noticed_by": by if code != 0 else None,
        "num_tests": len(tests),
        "seconds": round(time.monotonic() - started, 1),
    }


def failures(output: str) -> list[str]:
    """Return the names of the tests that failed, from what pytest prints."""
    lines = [line.partition(" ") for line in output.splitlines()]
    return [rest.split(" - ")[0] for word, _, rest in lines if word in ("FAILED", "ERROR") and "::" in rest]


def try_all(
    chosen: list[Mutant], folder: Path, server: Server, known: Tests, budget: float, again: bool
) -> list[dict[str, Any]]:
    """Try what has no result yet, or was not noticed and is tried again; return the results of all."""
    from mbpo_cli.storage.files import write_json  # not above: the server would not see mutants of it

    path = STORE / "results.json"
    stored: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for index, mutant in enumerate(chosen, start=1):
        if mutant.key not in stored or (again and not stored[mutant.key]["noticed_by"]):
            tests = known.that_execute(mutant, budget)
            # On a busy machine everything takes longer.
            limit = 60 + 5 * sum(known.seconds[test] for test in tests)
            result = try_one(mutant, folder, server, tests, limit)
            stored[mutant.key] = result
            write_json(path, stored)
            by = result["noticed_by"] or "NOT NOTICED"
            print(f"{index}: {mutant.key}\n    {by} ({result['seconds']} s)", flush=True)
    found = [stored[mutant.key] for mutant in chosen]
    noticed_by = sorted({result["noticed_by"] for result in found} & known.seconds.keys())
    # A test that fails without a mutant has noticed nothing.
    output = server.pytest(noticed_by, 3600)[1] if noticed_by else ""
    broken = known.seconds.keys() & failures(output)
    if not broken:
        return found
    print("these tests fail without a mutant:", *broken, sep="\n    ", flush=True)
    for result, mutant in zip(found, chosen, strict=True):
        if result["noticed_by"] in broken:
            del stored[mutant.key]
    write_json(path, stored)
    for test in broken:
        del known.seconds[test]
    return try_all(chosen, folder, server, known, budget, again=False)


def equivalents() -> dict[str, str]:
    """Return why some mutants behave like the original, by their keys."""
    listed = yaml.safe_load(EQUIVALENT.read_text())
    return {f"{e['file']}: {e['function']}: {e['was']} -> {e['becomes']}": e["reason"] for e in listed}


def report(chosen: list[Mutant], results: list[dict[str, Any]], equivalent: dict[str, str]) -> None:
    """Print the mutants that no test noticed, and the figures."""
    missed = [pair for pair in zip(chosen, results, strict=True) if not pair[1]["noticed_by"]]
    for mutant, result in missed:
        print(f"\n{mutant.file}:{mutant.number} {mutant.function} ({result['num_tests']} tests)")
        print(f"  - {mutant.was}\n  + {mutant.becomes}")
        print(f"  equivalent: {equivalent[mutant.key]}" if mutant.key in equivalent else "  NOT NOTICED")
    num_equivalent = sum(mutant.key in equivalent for mutant, _ in missed)
    print(f"\n{len(chosen) - len(missed)} of {len(chosen)} noticed, {num_equivalent} equivalent")


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the sample; print a line for each mutant, then those that were not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--number", type=int, default=100, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--files", nargs="+", default=FILES, help="files and folders that are mutated")
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests for each mutant")
    parser.add_argument("--again", action="store_true", help="try those again that were not noticed")
    parser.add_argument("--record", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.record:
        record(given.record[0], given.files, Path(given.record[1]))
    elif given.serve:
        serve(*given.serve)
    else:
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """Try the sample in a copy that is removed afterwards."""
    os.nice(10)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name).resolve()
        make_copy(folder)
        known = Tests.of(folder, FILES)
        chosen = sample(folder, given.files, given.number, given.seed)
        server = Server(folder, LIBRARIES)
        results = try_all(chosen, folder, server, known, given.seconds, given.again)
        server.close()
    report(chosen, results, equivalents())


if __name__ == "__main__":
    main()
