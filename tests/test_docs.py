"""What README and docs tell to type can be typed: every command composes, or is one that its parser takes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hydra_plugins.mbpo.sweepers import combinations, space_of
from mbpo_cli.commands.evaluate import _parser as evaluate_parser
from mbpo_cli.commands.export import _parser as export_parser
from mbpo_cli.commands.model import _parser as model_parser
from mbpo_cli.commands.report import _parser as report_parser
from mbpo_cli.commands.train import with_directory
from mbpo_cli.config.compose import make_config
from tests.conftest import CONF, TINY

ROOT = CONF.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {
    "mbpo-report": report_parser,
    "mbpo-evaluate": evaluate_parser,
    "mbpo-export": export_parser,
    "mbpo-model": model_parser,
}
# Those of docs/extending.md need the files that the page writes; tests/test_extending.py runs them.
ELSEWHERE = "--config-dir"


def commands() -> Iterator[tuple[str, str]]:
    """Yield the page and the words of each command that stands alone in a line, or between backticks."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(r"^    (?:tmux new )?(mbpo-\w+ [^|\n]+)$", text, flags=re.MULTILINE)
        for line in [*lines, *re.findall(r"`(mbpo-\w+ [^`]+)`", text)]:
            command = line.split(" #")[0].strip()
            if ELSEWHERE not in command and "..." not in command.split(" ", 2)[1]:
                yield page.name, command


COMMANDS = sorted(set(commands()))
TRAININGS = [pair for pair in COMMANDS if pair[1].startswith("mbpo-train ")]


@pytest.mark.parametrize(
    ("arguments", "env"), [("", "pendulum"), ("experiment=paper/hopper", "hopper"), ("seed=3", "pendulum")]
)
def test_make_train_leaves_the_environment_to_its_arguments(arguments: str, env: str) -> None:
    make = ["make", "--no-print-directory", "--dry-run", "train", f"ARGS={arguments}"]
    printed = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    program, *overrides = printed.splitlines()[-1].split()
    assert program == ".venv/bin/mbpo-train"
    assert make_config(*overrides).env.name == env


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_can_be_typed(page: str, command: str) -> None:
    program, *words = shlex.split(command)
    if program in PARSERS:
        PARSERS[program]().parse_args([word.replace("RUN", "outputs/run") for word in words])
        return
    assert program == "mbpo-train", f"{page}: {command}"
    overrides = [word for word in words if "=" in word and not word.startswith("hydra")]
    if "-m" in words or "hparams_search" in command:
        assert with_directory(words) != words
    if any("interval(" in word for word in words):
        constants, space = space_of(overrides)
        assert space
        jobs = [constants]
    else:
        jobs = combinations(overrides)
    for job in jobs:
        make_config(*(item for item in job if not item.startswith("resume=")))


# Runs that are told of in other tests, or need what those start.
ELSEWHERE_RUN = ("resume=", "hydra/launcher=ray", "hydra/launcher=slurm")
QUICK = (*(item for item in TINY if "model.transition" not in item), "compile=false")
ONE_TRIAL = ("hydra.sweeper.n_trials=1", "hydra.sweeper.seeds=[0]")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), TRAININGS)
def test_a_command_runs(page: str, command: str, tmp_path: Path) -> None:
    """As it stands, but for its length and the size of the agent's networks."""
    if any(part in command for part in ELSEWHERE_RUN):
        pytest.skip("tests of resuming and of clusters run it")
    is_mistake = "RealRatio" in command
    is_search = "hparams_search" in command or "optuna" in command
    added = () if "--help" in command else (*QUICK, *(ONE_TRIAL if is_search else ()))
    words = shlex.split(command)[1:]
    # Among the overrides, as no others are taken after a flag.
    place = max((index + 1 for index, word in enumerate(words) if "=" in word), default=0)
    line = [sys.executable, "-m", "mbpo_cli", *words[:place], *added, *words[place:]]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == (2 if is_mistake else 0), done.stderr
    if "--" not in command and not is_mistake:
        statuses = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("summary.json")]
        assert statuses
        assert set(statuses) == {"done"}


def test_there_are_commands_to_try() -> None:
    programs = {command.split()[0] for _, command in COMMANDS}
    assert programs == {"mbpo-train", *PARSERS}
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
