"""What README and docs say can be done: commands compose or parse, code imports, links and paths exist."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import mbpo_cli
from hydra_plugins.mbpo.sweepers import combinations, space_of
from mbpo_cli import failures
from mbpo_cli.commands.env import _parser as env_parser
from mbpo_cli.commands.evaluate import _parser as evaluate_parser
from mbpo_cli.commands.export import _parser as export_parser
from mbpo_cli.commands.model import _parser as model_parser
from mbpo_cli.commands.report import _parser as report_parser
from mbpo_cli.config.compose import make_config
from scripts.pictures import BOXES
from tests.conftest import CONF, TINY

ROOT = CONF.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
MAKEFILE = (ROOT / "Makefile").read_text()
PARSERS = {
    "mbpo-env": env_parser,
    "mbpo-report": report_parser,
    "mbpo-evaluate": evaluate_parser,
    "mbpo-export": export_parser,
    "mbpo-model": model_parser,
}
# Trainings with --config-dir need files that the pages contain; tests/test_extending.py runs them.
ELSEWHERE = "--config-dir"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of a page."""
    fenced = re.findall(r"^( *)```(\w*)\n(.*?)^ *```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for _, found, text in fenced if found == language]


def shell_lines() -> Iterator[tuple[str, str]]:
    """Yield the page and the text of each line of a shell block, without its comment."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield name_of(page), line.split(" #")[0].strip()


SHELL_LINES = sorted(set(shell_lines()))


def commands() -> Iterator[tuple[str, str]]:
    """Yield the page and the words of each of our commands, in a shell block or between backticks."""
    for page, line in SHELL_LINES:
        command = line.removeprefix("tmux new ")
        if command.startswith("mbpo-"):
            yield page, command
    for path in PAGES:
        for command in re.findall(r"`(mbpo-\w+ [^`]+)`", path.read_text()):
            yield name_of(path), command


MISTAKE = "mbpo-train mbpo.RealRatio=0.2"
# The page on which each command stands first.
COMMANDS = {
    command: page
    for page, command in sorted(commands(), reverse=True)
    if ELSEWHERE not in command
    and "my_lab" not in command
    and command != MISTAKE
    and "..." not in command.split(" ", 2)[1]
}


@pytest.mark.parametrize(
    ("arguments", "env"), [("", "pendulum"), ("experiment=paper/hopper", "hopper"), ("seed=3", "pendulum")]
)
def test_make_train_leaves_the_environment_to_its_arguments(arguments: str, env: str) -> None:
    make = ["make", "--no-print-directory", "--dry-run", "train", f"ARGS={arguments}"]
    printed = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    program, *overrides = printed.splitlines()[-1].split()
    assert program == ".venv/bin/mbpo-train"
    assert make_config(*overrides).env.name == env


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_typed(command: str) -> None:
    program, *words = shlex.split(command)
    if program in PARSERS:
        PARSERS[program]().parse_args([word.replace("RUN", "outputs/run") for word in words])
        return
    assert program == "mbpo-train", COMMANDS[command]
    overrides = [word for word in words if "=" in word and not word.startswith("hydra")]
    if any("interval(" in word for word in words):
        constants, space = space_of(overrides)
        assert space
        jobs = [constants]
    else:
        jobs = combinations(overrides)
    # One of those that differ only in the seed.
    distinct = {tuple(item for item in job if not item.startswith("seed=")): job for job in jobs}
    for job in distinct.values():
        make_config(*(item for item in job if not item.startswith("resume=")))


def test_the_documented_mistake_is_answered_as_documented(tmp_path: Path) -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "first_run.md"):
        (command,) = [block for block in blocks(page, "bash") if block.strip() == MISTAKE]
        (answer,) = blocks(page, "text")
    line = [sys.executable, "-m", "mbpo_cli", *shlex.split(command)[1:]]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, answer)
    assert not list(tmp_path.iterdir())


def test_the_commands_with_files_of_their_own_are_those_that_another_test_runs() -> None:
    theirs = {page for page, line in SHELL_LINES if ELSEWHERE in line or "my_lab" in line}
    assert theirs == {"docs/tasks/environment.md", "docs/extending.md"}


@pytest.mark.parametrize("page", sorted({page for page, _ in SHELL_LINES}))
def test_shell_lines_call_what_exists(page: str) -> None:
    for line in (line for other, line in SHELL_LINES if other == page):
        check_line(page, line)


def check_line(page: str, line: str) -> None:
    program, *words = shlex.split(line.removeprefix("tmux new "))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    if program == "make":
        targets = [word for word in words if "=" not in word]
        assert targets
        for target in targets:
            assert re.search(rf"^{target}:.*## ", MAKEFILE, flags=re.MULTILINE), f"{page}: no target {target}"
        for _, value in (word.split("=", 1) for word in words if "=" in word):
            if targets == ["train"]:
                make_config(*value.split())
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        (named,) = re.findall(r"\[([\w,]+)\]", line)
        assert set(named.split(",")) <= set(extras), f"{page}: {line}"
    elif program in ("python", "rm", "."):
        assert words[0] == ".venv/bin/activate" or (ROOT / words[0]).exists(), f"{page}: {line}"
    else:
        assert program in scripts, f"{page}: {line}"


# Other tests run these, or they need what those start.
ELSEWHERE_RUN = (
    *("resume=", "from_run=", " data=", "hydra/launcher=ray", "hydra/launcher=slurm"),
    *("wandb", "mlflow", "trackio"),
)
QUICK = (*(item for item in TINY if "model.transition" not in item), "compile=false")
ONE_TRIAL = ("hydra.sweeper.n_trials=1", "hydra.sweeper.seeds=[0]")


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("mbpo-train ")])
def test_a_command_runs(command: str, tmp_path: Path) -> None:
    """As written, except for its length and the size of the agent's networks."""
    if any(part in command for part in ELSEWHERE_RUN):
        pytest.skip("tests of resuming and of clusters run it")
    is_search = "hparams_search" in command or "optuna" in command
    added = () if "--help" in command else (*QUICK, *(ONE_TRIAL if is_search else ()))
    words = shlex.split(command)[1:]
    # Among the overrides, because none are accepted after a flag.
    place = max((index + 1 for index, word in enumerate(words) if "=" in word), default=0)
    line = [sys.executable, "-m", "mbpo_cli", *words[:place], *added, *words[place:]]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    if "--" not in command:
        statuses = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("summary.json")]
        assert statuses
        assert set(statuses) == {"done"}


def test_there_are_commands_to_try() -> None:
    programs = {command.split()[0] for command in COMMANDS}
    assert programs == {"mbpo-train", *PARSERS}
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_and_tests_exist(page: Path) -> None:
    text = page.read_text()
    folders = "examples|tests|mbpo_cli|scripts|benchmarks|conf|docs|hydra_plugins"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in sources, f"{page.name}: {test}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_code_imports_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mbpo_cli"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), f"{page.name}: {node.module}"


def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(https?:[^\" >]+)", page.read_text()
        )
        assert not loaded, page.name
    reference = (tmp_path / "api" / "mbpo_cli.html").read_text()
    assert all(f'id="mbpo_cli.{name}"' in reference for name in mbpo_cli.__all__)


def test_the_readme_is_short_and_names_what_every_push_must_pass() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    checks = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert checks == "make lint typecheck test"
    assert checks in readme
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    *_, python, check = workflow["jobs"]["test"]["steps"]
    assert check == {"run": ".ci/run"}
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert f"Programming Language :: Python :: {python['with']['python-version']}" in classifiers


def test_version_and_hooks_are_the_projects_own() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == mbpo_cli.__version__
    assert f"\n## {mbpo_cli.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    recipe = re.findall(r"^(?:lint|typecheck):.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE)
    lines = [line.strip().removesuffix(" .") for line in "".join(recipe).splitlines()]
    hooks = [hook["entry"].replace(".venv/bin", "$(BIN)") for hook in repository["hooks"]]
    assert hooks == lines


def test_every_exit_code_is_documented() -> None:
    declared = [getattr(kind, "exit_code", None) for kind in vars(failures).values()]
    codes = {0, 130, 143, *(code for code in declared if isinstance(code, int))}
    table = (ROOT / "docs" / "commands.md").read_text()
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)} == codes


def test_modules_import_only_from_their_row_of_the_picture_and_below() -> None:
    row_of = {}
    for box in BOXES:
        for title in box.title.split(", "):
            row_of[title.partition("/")[0]] = box.place[1]
    package = Path(mbpo_cli.__file__).parent
    modules = {path.stem for path in package.glob("[!_]*.py")}
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(row_of) == (modules | folders | {"hydra_plugins"}) - {"conf"}
    for path in [*package.rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        inside = path.relative_to(ROOT).parts
        own = inside[0] if inside[0] == "hydra_plugins" else inside[1].removesuffix(".py")
        for imported in re.findall(
            r"^\s*from mbpo_cli\.?(\w*).* import (\w+)", path.read_text(), re.MULTILINE
        ):
            other = imported[0] or imported[1]
            if own in row_of and other in row_of:
                assert row_of[other] >= row_of[own], f"{path}: {other}"
