"""The command mbpo-train, in a separate process where that matters, otherwise in this one."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbpo_cli.commands import train as cli
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.stored import resumed_config
from mbpo_cli.config.typed import options_in
from mbpo_cli.failures import ConfigError
from mbpo_cli.run import run
from mbpo_cli.storage.directory import RunDirectory
from tests.conftest import CONF, TINY, Refusal

COMMAND = [sys.executable, "-m", "mbpo_cli"]


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_a_run_from_any_directory(tmp_path: Path) -> None:
    done = command("agent=sac", "env=pendulum", "experiment=smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensorboard --logdir" in done.stdout
    assert "last evaluation" in done.stdout
    (run,) = (tmp_path / "outputs").glob("*/*")
    assert json.loads((run / "summary.json").read_text())["command"].endswith("experiment=smoke")
    assert "evaluation return" in (run / "train.log").read_text()
    assert not (run / ".hydra").exists()


def test_help_shows_groups_and_options_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from mbpo_cli.commands.train import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    groups = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {"."}
    assert all(f"{group}: " in done.stdout for group in groups if not group.startswith("hydra"))
    for option in ("mbpo.real_ratio", "trainer.num_env_steps", "horizon", "num_networks"):
        assert option in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_options_named_in_the_help_exist() -> None:
    text = (CONF / "hydra" / "help" / "mbpo.yaml").read_text()
    named = set(re.findall(r"^    ((?:\w+\.)*\w+)  ", text, flags=re.MULTILINE)) - {"hydra.run.dir"}
    assert len(named) > 10
    assert named <= {key for key, _, _, _ in options_in(make_config())}


def test_whole_configuration_is_printed(tmp_path: Path) -> None:
    done = command("--cfg", "job", "--resolve", cwd=tmp_path)
    assert done.returncode == 0
    assert "real_ratio: 0.2" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_multirun_gives_every_job_a_directory_and_reports_the_score(tmp_path: Path) -> None:
    done = command(
        "-m",
        "experiment=smoke",
        "seed=0,1",
        "trainer.num_env_steps=25",
        "hydra.sweep.dir=sweep",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    names = ["seed=0", "seed=1"]
    seeds = [json.loads((tmp_path / "sweep" / name / "summary.json").read_text())["seed"] for name in names]
    assert seeds == [0, 1]


def test_a_bad_job_of_a_sweep_ends_without_a_traceback(tmp_path: Path) -> None:
    done = command("-m", "env.id=Nope-v0", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "env.id=Nope-v0  failed: env.id=Nope-v0: " in done.stdout
    summary = json.loads((tmp_path / "sweep" / "env.id=Nope-v0" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["error"].startswith("env.id=Nope-v0: ")


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    with RunDirectory(path, asdict(make_config())):
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        done = command("hydra.run.dir=mine", cwd=tmp_path)
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert done.returncode == 75
    owner = f"process {os.getpid()} on {platform.node()}"
    assert done.stderr == f"mbpo-train: error: mine: in use by {owner}\n"


def test_a_stopped_run_resumes_by_its_directory_or_its_command(tmp_path: Path) -> None:
    choices = ("experiment=smoke", "mbpo=off", "compile=false")
    arguments = (*choices, "trainer.num_env_steps=100000", "hydra.run.dir=mine")
    process = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "mine" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 143
    stopped_at = json.loads((tmp_path / "mine" / "summary.json").read_text())["env_steps"]
    length = f"trainer.num_env_steps={stopped_at + 5}"
    done = command("resume=mine", length, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {stopped_at}" in done.stdout
    again = command(*arguments, f"trainer.num_env_steps={stopped_at + 9}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == stopped_at + 9
    refused = command(*arguments, "agent.mini_batch_size=7", cwd=tmp_path)
    assert refused.returncode == 2
    assert "with other values (agent.mini_batch_size: 256 -> 7" in refused.stderr


HOSTILE = [
    ("model.transition._target_", "evil.Class"),
    ("agent._target_", "os.system"),
    ("agent._target_", "builtins.exec"),
    ("model.reward._target_", "subprocess.Popen"),
    ("model.reward.function", "evil.reward"),
    ("model.is_done.function", "evil.is_done"),
    ("env.module", "evil"),
    ("env.id", "evil:Thing-v0"),
    ("env.reward_function", "evil.reward"),
    ("env.is_done_function", "evil.is_done"),
    ("env.wrappers", ["evil.Wrapper"]),
    ("env.wrappers", [{"_target_": "evil.Wrapper"}]),
    ("env.wrappers", ["gymnasium.make"]),
    ("mbpo.model_rollout_options.noise_options._target_", "evil.Noise"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished")
    run(make_config(*TINY), path / "run")
    return path / "run"


@pytest.mark.parametrize(("key", "name"), HOSTILE)
def test_no_code_named_in_a_run_directory_is_imported(
    key: str, name: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    values = config
    for part in key.split(".")[:-1]:
        values = values[part]
    values[key.rpartition(".")[2]] = name
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    before = set(sys.modules)
    with pytest.raises(ConfigError, match="the run directory names code outside the safe parts of "):
        resumed_config(tmp_path / "run", [], [])
    assert "evil" not in set(sys.modules) - before


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch executed']",
        "seed: !!python/name:os.system",
        "a: &a [1, 1]\nb: *a",
        "- 1",
        "seed: ${oc.env:HOME}",
        "seed: [",
        "seed: .nan",
        "x" * 300_000,
        "",
    ],
)
def test_a_broken_or_hostile_configuration_gives_a_one_line_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        resumed_config(tmp_path, [], [])
    assert "\n" not in str(error.value)
    assert str(Path.home()) not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("mbpo.RealRatio=0.2", "mbpo.RealRatio=0.2: no such option; did you mean mbpo.real_ratio?"),
        ("agent.lrr=1", "agent.lrr=1: no such option"),
        ("agnt=sac", "agnt=sac: no such option or group; did you mean agent=sac?"),
        ("agent=sacc", "agent=sacc: no such choice; did you mean agent=sac? available: ddpg, dqn, sac, td3"),
        ("agent=rlSACAgent", "did you mean agent=sac?"),
        ("model/reward=lerned", "model/reward=lerned: no such choice"),
        ("experiment=nothing", "experiment=nothing: no such choice"),
        (
            "experiment=paper/hoper",
            "experiment=paper/hoper: no such choice; did you mean experiment=paper/hopper?",
        ),
        ("mbpo.real_ratio=1.5", "mbpo.real_ratio=1.5: must be a number from 0 to 1"),
        ("mbpo.model_rollout_options.horizon=0", "horizon=0: must be a whole number from 1 to 1,000"),
        ("mbpo.mini_batch_size=0", "mbpo.mini_batch_size=0"),
        ("agent.actor_optimizer.learn_rate=-1", "agent.actor_optimizer.learn_rate=-1"),
        ("+agent.lrr=1", "agent.lrr=1: no such option"),
        ("seed=1,2", "seed=1,2: several values for one run; add -m"),
        ("seed=${sed}", "'sed'"),
        ("agent.hidden_sizes=[64", "hidden_sizes=[64"),
        ("seed", "seed"),
        ("env.id=Pendulumm-v1", "env.id=Pendulumm-v1: Environment `Pendulumm` doesn't exist"),
        ("env.id=nonsense", "env.id=nonsense"),
        (
            "env.id=CartPole-v1",
            "model.reward.function=mbpo_cli.envs.known.pendulum_reward: does not fit CartPole-v1",
        ),
        (
            "agent=td3  agent/exploration=epsilon_greedy",
            "agent.exploration=EpsilonGreedy: not for a Box of actions, which Pendulum-v1 has; "
            "use gaussian or ornstein_uhlenbeck",
        ),
        (
            "mbpo/model_rollout_options/noise_options=epsilon_greedy",
            "noise_options=EpsilonGreedy: not for a Box of actions, which Pendulum-v1 has; use gaussian",
        ),
        ("agent=dqn", "agent=dqn: not for a Box of actions, which Pendulum-v1 has; use sac, td3 or ddpg"),
        (
            "algorithm=double_horizon  env=cartpole  agent=sac",
            "mbpo.training_horizon=5: agent=sac with Discrete actions has no gradient through the model; "
            "use sac, td3 or ddpg with continuous actions, or algorithm=mbpo",
        ),
        ("mbpo.critic_share=0.5", "mbpo.critic_share=0.5: needs training_horizon > 0"),
        (
            "mbpo.training_horizon=2  env=cartpole  agent=dqn",
            "mbpo.training_horizon=2: agent=dqn with Discrete",
        ),
        (
            "algorithm=double_horizon  env.reward_function=tests.conftest.numpy_reward",
            "model.reward.function=tests.conftest.numpy_reward: not differentiable, as "
            "mbpo.training_horizon=5 needs it: Can't call numpy() on Tensor that requires grad",
        ),
        (
            "mbpo.generate_every=episode  mbpo.first_updates=5",
            "mbpo.generate_every=episode: must be a number",
        ),
        ("env=gym  env.id=Pendulum-v1  agent.lrr=1", "agent.lrr=1: no such option;"),
        ("env=gym  env.id=nothing/Here-v0", "env.id=nothing/Here-v0: Namespace nothing not found"),
        (
            "env.module=shimmy_that_is_missing.part",
            "there is no such module; with this package's extra: pip install 'mbpo-cli[dmc]'",
        ),
        ("env.module=no_such_module", "env.module=no_such_module: there is no such module"),
        ("env.kwargs={gg: 1}", "env.kwargs={'gg': 1}: not accepted by Pendulum-v1"),
        ("device=cpu:", "device=cpu:: must be auto, cpu, cuda or cuda:i"),
        (
            "hydra.run.dir=/proc/version/x",
            "hydra.run.dir=/proc/version/x: /proc/version is not a writable directory",
        ),
        ("env.reward_function=.x.y", "env.reward_function=.x.y: '.x.y' is not of the form"),
        ("env.module=''", "while the components were checked"),
        ("hydra/launcher=slurm", "hydra/launcher=slurm: is used by sweeps only; add -m, or hydra.mode=RUN"),
        ("hydra/sweeper=optuna", "hydra/sweeper=optuna: is used by sweeps only; add -m"),
        ("hydra.launcher.n_jobs=3", "hydra.launcher.n_jobs=3: is used by sweeps only; add -m"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x: is used by sweeps only; add -m"),
        ("hydra.run.dir=", "hydra.run.dir=: must be the name of a directory"),
        ("hydra.run.dir=${nothing}/x", "hydra.run.dir=${nothing}/x: "),
        ("hydra.job.name=a/b", "hydra.job.name=a/b: must be the name of a file"),
        (
            "-m  seed=0,1  hydra.run.dir=x",
            "hydra.run.dir=x: is for a single run; a sweep has hydra.sweep.dir",
        ),
        ("-m  seed=0,1  hydra.sweep.dir=${nothing}", "hydra.sweep.dir=${nothing}: "),
        ("-m  resume=x", "resume=x: continues a single run; leave out --multirun"),
        ("-m  agent=sac,td3  agent.lrr=1", "agent.lrr=1: no such option"),
        (
            "-m  agent=td3,sac  agent.exploration.mean=0",
            "mean=0: no such option; did you mean agent.exploration.mean, with agent=td3?",
        ),
        ("-m  agent=sac,null", "agent=null: no such choice"),
        ("-m  agent=glob(x*)", "agent=glob(x*): has no values"),
        ("--nothing", "unrecognized arguments: --nothing; see mbpo-train --hydra-help"),
        ("--cfg  job  -p  nothing", "package 'nothing' not found"),
        ("--package  agent", "--package agent: only with --cfg"),
        ("--resolve", "--resolve: only with --cfg or --help"),
        ("-m  --cfg  job", "--cfg --multirun: choose one of them"),
        ("--config-dir  /nothing", "'/nothing' not found"),
        ("--config-name  nothing", "Cannot find primary config 'nothing'"),
        ("--experimental-rerun  x", "--experimental-rerun: give the same command again, or resume=DIRECTORY"),
        ("device=gpu", "device=gpu: must be auto, cpu, cuda or cuda:i"),
        ("device=cuda:99", "device=cuda:99: torch sees"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(argument: str, message: str, refused: Refusal) -> None:
    assert message in refused(*argument.split("  "))


@pytest.mark.parametrize("text", ["id: a\n\tname: b\n", "id: [\n", "a: 1\na: 2\n"])
def test_a_broken_file_of_the_user_is_named(
    text: str, tmp_path_factory: pytest.TempPathFactory, refused: Refusal
) -> None:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "env").mkdir()
    (folder / "env" / "mine.yaml").write_text(text)
    assert "mine.yaml" in refused("--config-dir", str(folder), "env=mine")


@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_what_an_experiment_chooses_for_sweeps_is_used_or_told(
    flags: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
    refused: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "slurm.yaml").write_text(
        "# @package _global_\ndefaults: [override /hydra/launcher: slurm]\n"
        "hydra: {sweeper: {params: {seed: '0,1', agent.discount_factor: '0.9,0.8'}}}\n"
    )
    launched: list[Any] = []

    def launch(launcher: Any, jobs: list[Any]) -> None:
        launched.extend([type(launcher).__name__, *(str(job.path) for job in jobs)])
        raise ConfigError("launched")

    monkeypatch.setattr(importlib.import_module("hydra_plugins.mbpo.sweepers"), "launch", launch)
    arguments = ("--config-dir", str(folder), "experiment=slurm", "hydra.sweep.dir='${hydra:runtime.cwd}/x'")
    if not flags:
        message = refused(*arguments[:3])
        assert (
            message
            == "hydra/launcher=slurm: is used by sweeps only; add -m, or hydra.mode=RUN to run without it"
        )
        return
    with pytest.raises(AssertionError):  # the log of the sweep, on stdout
        refused(*flags, *arguments)
    name, *paths = launched
    assert name == "SlurmLauncher"
    assert len(paths) == 4
    assert paths[1].endswith("/x/seed=0,agent.discount_factor=0.8")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mbpo-train experiment=paper/h", ["half_cheetah", "hopper", "humanoid"]),
        ("mbpo-train -m seed=1 experiment=paper/a", ["ant"]),
        ("mbpo-train agent=nothing experi", []),
        ("mbpo-train 'x y", []),
    ],
)
def test_choices_in_subfolders_are_completed(
    line: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setattr(sys, "argv", ["mbpo-train", "-sc", "query=bash"])
    cli.main()
    output = capsys.readouterr()
    assert output.out.split() == [f"experiment=paper/{word}" for word in words]
    assert output.err == ""


def test_a_run_in_the_directory_of_a_sweep_can_be_resumed(refused: Refusal) -> None:
    message = refused("resume=sweeps/agent=sac,td3/seed=0")
    assert message == "resume=sweeps/agent=sac,td3/seed=0: no such directory"


def test_image_observations_are_refused(refused: Refusal) -> None:
    import gymnasium as gym
    import numpy as np

    from tests.conftest import CountingEnv

    class Pixels(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)

    gym.register("tests/Pixels-v0", lambda **kwargs: Pixels())
    assert "images" in refused("env=gym", "env.id=tests/Pixels-v0")
    gym.registry.pop("tests/Pixels-v0")


def test_a_traceback_is_shown_only_on_request(tmp_path: Path) -> None:
    assert "Traceback" not in command("seed=x", cwd=tmp_path).stderr
    assert "Traceback" in command("seed=x", cwd=tmp_path, HYDRA_FULL_ERROR="1").stderr


def test_runs_started_together_get_separate_directories(tmp_path: Path) -> None:
    arguments = [*COMMAND, "experiment=smoke", "mbpo=off", "trainer.num_env_steps=21"]
    processes = [
        subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(list((tmp_path / "outputs").glob("*/*/summary.json"))) == 4
