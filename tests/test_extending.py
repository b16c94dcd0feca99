"""The pages on environments and on extending work as written: their files, in an empty folder, run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from mbpo_cli.config import rules
from tests.conftest import CONF, Said, metrics_of

PAGES = [CONF.parent / "docs" / name for name in ("tasks/environment.md", "extending.md")]
TEXT = "".join(page.read_text() for page in PAGES)
COMMANDS = re.findall(r"^mbpo-train (.+)$", TEXT, re.MULTILINE)
BRIEF = (
    "trainer.num_env_steps=400",
    "trainer.evaluate_every_steps=200",
    "trainer.num_eval_episodes=5",
    "mbpo.generate_every=50",
    "mbpo.model_rollout_options.num_rollout=100",
    "model.transition.hidden_sizes=[16]",
    "agent.mini_batch_size=32",
    "agent.num_gradient_steps_per_update=5",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outside")
    files = re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert len(files) == 8
    for name, text in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with (root / "my_lab" / "corridor.py").open("a") as file:
        file.write("\n\ndef shapeless(obs, action, next_obs):\n    return obs[:, :1]\n")
    return root


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder as the current directory of this process, whose modules are forgotten afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield folder
    for known in (sys.modules, gym.registry):
        for name in [name for name in known if name.startswith("my_lab")]:
            del known[name]
    rules._facts.cache_clear()


def train(folder: Path, *overrides: str, name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "mbpo_cli", "--config-dir", "my_conf", f"hydra.run.dir={name}"]
    command += [*BRIEF, *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ("agent=soft_q",),
        (
            "agent=dqn",
            "agent.target_smooth_factor=0.02",
            "mbpo/model_rollout_options/noise_options=shuffle",
        ),
    ],
    ids=["agent", "noise"],
)
def test_the_files_of_the_pages_train_and_learn(folder: Path, overrides: tuple[str, ...]) -> None:
    name = overrides[0].removeprefix("agent=")
    done = train(folder, "env=corridor", *overrides, name=name)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / name / "summary.json").read_text())
    assert summary["env"] == "corridor"
    assert summary["agent"] == name
    assert summary["eval_return_mean"] > -15, "nine or ten steps lead to the end"


def test_a_registered_environment_needs_no_yaml(folder: Path) -> None:
    chosen = ("env=gym", "env.id=my_lab/Corridor-v0", "env.module=my_lab.corridor", "agent=dqn")
    done = train(folder, *chosen, "trainer.num_env_steps=60", "agent.num_warm_start_steps=50", name="plain")
    assert done.returncode == 0, done.stderr


def test_an_environment_of_the_page_is_looked_at_and_gets_a_preset_that_trains(folder: Path) -> None:
    (line,) = re.findall(r"^mbpo-env (.+)$", TEXT, re.MULTILINE)
    program = [sys.executable, "-P", "-m", "mbpo_cli.commands.env", *shlex.split(line), "--seconds", "1"]
    known = ("--reward", "my_lab.corridor.reward", "--is-done", "my_lab.corridor.is_done")
    done = subprocess.run([*program, *known], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning" not in done.stdout
    *_, written, command = done.stdout.splitlines()
    assert written == "written to my_conf/env/my_corridor.yaml"
    assert command == "train with: mbpo-train --config-dir my_conf env=my_corridor agent=dqn"
    short = ("trainer.num_env_steps=60", "agent.num_warm_start_steps=50")
    assert train(folder, "env=my_corridor", "agent=dqn", *short, name="preset").returncode == 0


def test_the_tracker_of_the_page_sends_what_is_logged(folder: Path) -> None:
    rows: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            rows.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"logger.webhook.url=http://127.0.0.1:{server.server_port}"
        short = ("trainer.num_env_steps=60", "agent.num_warm_start_steps=50", "mbpo=off")
        done = train(folder, "env=corridor", "agent=dqn", *short, "logger=[webhook]", url, name="tracked")
        server.shutdown()
    assert done.returncode == 0, done.stderr
    logged = metrics_of(folder / "tracked")
    assert rows == [{"run": "tracked", **row} for row in logged]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_pages_run(folder: Path, command: str) -> None:
    overrides = shlex.split(command.removeprefix("--config-dir my_conf "))
    name = f"documented_{COMMANDS.index(command)}"
    done = train(folder, *overrides, "trainer.num_env_steps=400", name=name)
    assert done.returncode == 0, done.stderr
    program = [sys.executable, "-P", "-c", "from mbpo_cli.commands.evaluate import main; main()"]
    line = [*program, name, "--episodes", "1"]
    refused = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--trust my_lab" in refused.stderr
    trusted = [*line, "--trust", "my_lab"]
    assert subprocess.run(trusted, cwd=folder, capture_output=True).returncode == 0


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.wrappers=[gymnasium.wrappers.Nothing]", "env.wrappers=gymnasium.wrappers.Nothing: module"),
        ("env.wrappers=[{_target_:gymnasium.wrappers.TimeLimit}]", "env.wrappers={'_target_': 'gymnasium"),
        ("env.wrappers=5", "env.wrappers=5: must be a list [each printable text or a mapping"),
        ("agent=sac agent.temperature=1", "agent.temperature=1: no such option"),
        ("agent=td3", "agent=td3: not for Discrete actions, which my_lab/Corridor-v0 has; use dqn or sac"),
        ("env.reward_function=torch.cat", "model.reward.function=torch.cat: does not fit my_lab/Corridor-v0"),
        ("env.is_done_function=my_lab.corridor.shapeless", "returns shape (2, 1) for a batch of 2, but must"),
        ("logger.webhook.max_waiting=2", "webhook is not chosen; logger=[tensorboard,webhook] adds it"),
        (
            "logger=[webhook] logger.webhook.url=null",
            "logger.webhook.url=null: must be printable text (where",
        ),
        ("agent.temperature=0", "agent.temperature=0: must be a number > 0 (softness of the policy"),
    ],
)
def test_mistakes_outside_end_in_one_line(here: Path, override: str, message: str, mbpo_train: Said) -> None:
    chosen = ("--config-dir", "my_conf", "hydra.run.dir=wrong", "env=corridor", "agent=soft_q")
    code, _, line = mbpo_train(*chosen, *BRIEF, *override.split())
    assert (code, line.count("\n")) == (2, 1)
    assert message in line
    assert not (here / "wrong").exists()
