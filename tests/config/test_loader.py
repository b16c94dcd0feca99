"""What this program's loader does differently from Hydra's: own files, mappings, sweeps, and errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra._internal.hydra as hydra_internal
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import OmegaConf

import hydra_plugins.mbpo
import mbpo_cli.commands.train  # noqa: F401 - registers a resolver
from hydra_plugins.mbpo.sweepers import combinations, lines_of
from mbpo_cli.config import loader, rules
from mbpo_cli.config.compose import CONFIG_MODULE, composed, make_config
from mbpo_cli.config.loader import Loader
from mbpo_cli.config.typed import options_in
from mbpo_cli.failures import ConfigError

OWN = {
    "agent/small": "defaults: [sac, _self_]\nhidden_sizes: [8]\nnum_warm_start_steps: 9\n",
    "agent/deep/small": "# @package agent\ndefaults: [/agent/sac@_here_, _self_]\nhidden_sizes: [7]\n",
    "agent/whole": "# @package _global_\ndefaults: [/agent/sac@agent, _self_]\nagent: {hidden_sizes: [6]}\n",
    "env/mine": "# @package _global_\ndefaults: [pendulum, _self_]\nenv: {num_envs: 3}\nseed: 7\n"
    "agent: {discount_factor: 0.5}\n",
    "mbpo/long": "defaults: ['on', _self_]\ngenerate_every: 77\n",
    "model/transition/big": "defaults: [gaussian, _self_]\nnum_networks: 9\n",
    "trainer/short": "defaults: [default, _self_]\nnum_env_steps: 5\n",
    "experiment/mine": "# @package _global_\ndefaults: [smoke, override /agent: small, _self_]\nseed: 5\n",
    "experiment/deep/mine": "# @package _global_\nseed: 6\n",
    "experiment/grid": "# @package _global_\nhydra: {sweeper: {params: {seed: '0,1', agent: 'sac,td3'}}}\n",
    "experiment/slurm": "# @package _global_\ndefaults: [override /hydra/launcher: slurm]\n",
    "experiment/off": "# @package _global_\ndefaults:\n  - override /mbpo: off\n",
    "env/pendulum": "id: CartPole-v1\n",
}


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., str]:
    """Write files of the user; return the override that adds them."""

    def write(*names: str) -> str:
        for name in names:
            path = tmp_path / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(OWN[name])
        return f"hydra.searchpath=[file://{tmp_path}]"

    return write


@pytest.fixture(scope="module")
def program() -> Loader:
    """The loader with the files of this program."""
    hydra_plugins.mbpo.register()
    return Loader(create_config_search_path(f"pkg://{CONFIG_MODULE}"))


def value_of(config: Any, key: str) -> Any:
    return {name: value for name, _, _, value in options_in(config)}[key]


@pytest.mark.parametrize(
    ("choices", "key", "value"),
    [
        ("agent=small", "agent.hidden_sizes", [8]),
        ("agent=deep/small", "agent.hidden_sizes", [7]),
        ("agent=whole", "agent.hidden_sizes", [6]),
        ("agent=small", "agent.discount_factor", 0.98),  # tuned, and not in the user's file
        ("mbpo=long", "mbpo.generate_every", 77),
        ("model/transition=big", "model.transition.num_networks", 9),
        ("trainer=short", "trainer.num_env_steps", 5),
        ("env=mine", "env.num_envs", 3),
        ("env=mine", "seed", 7),
        ("env=mine agent=small", "agent.hidden_sizes", [8]),
        ("env=mine agent=small", "agent.discount_factor", 0.5),
        ("agent=small experiment=smoke", "agent.num_warm_start_steps", 20),
        ("experiment=mine", "seed", 5),
        ("experiment=mine", "agent.hidden_sizes", [8]),
        ("experiment=deep/mine", "seed", 6),
        ("experiment=mine agent.hidden_sizes=[4]", "agent.hidden_sizes", [4]),
    ],
)
def test_the_users_files_win_over_tuned_values(choices: str, key: str, value: Any, own: Any) -> None:
    files = [item.replace("=", "/") for item in choices.split() if item.replace("=", "/") in OWN]
    config = make_config(own("agent/small", *files), *choices.split())
    assert value_of(config, key) == value


def test_a_file_that_this_program_has_too_is_refused(own: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"env/pendulum\.yaml: is not used, as this program has such a file"
    ):
        make_config(own("env/pendulum"))


@pytest.mark.parametrize(
    "choices",
    [
        "",
        "env=hopper agent=td3",
        "experiment=paper/ant",
        "experiment=smoke mbpo=off",
        "hparams_search=dqn env=cartpole",
    ],
)
def test_this_programs_files_compose_as_with_hydras_loader(
    choices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = composed(*choices.split()), by_hydra(*choices.split())
    rules.apply(theirs)
    assert OmegaConf.to_container(ours, resolve=False) == OmegaConf.to_container(theirs, resolve=False)


def test_the_directory_of_a_sweep_is_named_by_its_overrides(program: Loader) -> None:
    given = ["agent=sac,td3", "hydra.launcher.n_jobs=2", "seed=0,1"]
    config = program.load_configuration("train", given, RunMode.MULTIRUN)
    assert config.hydra.sweep.dir == "outputs/sweeps/agent=sac,td3,seed=0,1"
    job = program.load_sweep_config(config, ["agent=sac", "seed=1"])
    assert job.hydra.sweep.dir == config.hydra.sweep.dir
    assert (
        program.load_configuration("train", [], RunMode.MULTIRUN).hydra.sweep.dir == "outputs/sweeps/default"
    )


def by_hydra(*choices: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "Loader", ConfigLoaderImpl)
        return composed(*choices)


def test_an_experiment_may_choose_the_launcher(own: Any) -> None:
    config = composed(own("experiment/slurm"), "experiment=slurm")
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    assert composed().hydra.launcher._target_.endswith("ProcessLauncher")


@pytest.mark.parametrize(
    ("overrides", "kwargs"),
    [
        (["env.kwargs={g: 9.81}"], {"g": 9.81}),
        (["env.kwargs.g=9.81"], {"g": 9.81}),
        (["env.kwargs={a: 1}", "env.kwargs={b: 2}"], {"a": 1, "b": 2}),
        (["env.kwargs={a: 1}", "env.kwargs.b=2", "env.kwargs.a=3"], {"a": 3, "b": 2}),
        (["env.kwargs={a: {b: 1}}", "env.kwargs.a.c=2"], {"a": {"b": 1, "c": 2}}),
        (["env.kwargs={a: 1}", "env.kwargs=null"], None),
        (["+env.kwargs.g=1"], {"g": 1}),
        (["++env.kwargs.g=1"], {"g": 1}),
    ],
)
def test_a_mapping_takes_new_keys_in_both_forms(overrides: list[str], kwargs: Any) -> None:
    assert make_config(*overrides).env.kwargs == kwargs


def test_mappings_in_lists_and_of_launchers_take_new_keys(program: Loader) -> None:
    wrapper = "env.wrappers=[{_target_: gymnasium.wrappers.TimeLimit}]"
    config = make_config(wrapper, "env.wrappers.0.max_episode_steps=3")
    assert config.env.wrappers == [{"_target_": "gymnasium.wrappers.TimeLimit", "max_episode_steps": 3}]
    for given in ("={mail-type: END}", ".mail-type=END"):
        key = f"hydra.launcher.additional_parameters{given}"
        launcher = program.load_configuration(
            "train", ["hydra/launcher=slurm", key], RunMode.RUN
        ).hydra.launcher
        assert launcher.additional_parameters == {"mail-type": "END"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mbpo=false", "mbpo=false: no such choice; did you mean mbpo=off? available: off, on"),
        ("mbpo=true", "did you mean mbpo=on?"),
        ("agent=false", "agent=false: no such choice; available: ddpg, dqn, sac, td3"),
        ("experiment=null", "experiment=null: no such choice; leave it out to choose nothing; available: "),
        ("hparams_search=null", "hparams_search=null: no such choice"),
        ("model/is_done=null", "model/is_done=null: no such choice"),
        ("agent=0", "agent=0: no such choice"),
        ("agent=1.5", "agent=1.5: no such choice"),
        ("agent=", "agent=: no such choice"),
        ("agent=[sac,td3]", "agent=[sac,td3]: no such choice; choose one, or several with -m"),
        ("+agent=null", "+agent=null: no such choice"),
        ("agent=glob(*)", "agent=glob(*): several values for one run; add -m"),
        ("seed=range(0,3)", "seed=range(0,3): several values for one run; add -m"),
        ("model=transition", "model=transition: no such group; known are model/"),
        ("agent/exploration=gaussian", "agent/exploration=gaussian: agent=sac has no such part"),
        ("experiment=paper", "experiment=paper: no such choice; did you mean experiment=paper/ant?"),
        ("agent={lrr: 1}", "agent.lrr: no such option"),
        ("seed.x=1", "seed.x=1: no such option; did you mean seed?"),
        (
            "hydra.launcher.jobs=1",
            "hydra.launcher.jobs=1: no such option; did you mean hydra.launcher.n_jobs?",
        ),
        ("hydra.verbose=3", "hydra.verbose=3: must be true, false or a list of loggers"),
        ("hydra.searchpath=[file:///nothing]", "path=/nothing is not available"),
        ("hydra/launcher=nothing", "hydra/launcher=nothing: no such choice"),
        ("=1", "=1: needs a key"),
        ("a b=1", "a b=1: cannot be read"),
        ("seed=" + "[" * 900, "seed=[[["),
    ],
)
def test_mistakes_are_configuration_errors_of_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        make_config(override)
    assert len(str(caught.value)) < 1000


def test_on_and_off_need_quotes_in_a_file(own: Any) -> None:
    with pytest.raises(ConfigError, match=r"experiment/off\.yaml: .*; write on and off in quotes"):
        make_config(own("experiment/off"), "experiment=off")


@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        ("agent=glob(*)", ["ddpg", "dqn", "sac", "td3"]),
        ("agent=glob([sac,td*])", ["sac", "td3"]),
        ("agent=glob(*,exclude=d*)", ["sac", "td3"]),
        ("experiment=glob(sac_*)", ["sac_cartpole", "sac_pendulum"]),
        ("experiment=glob(paper/h*)", ["paper/half_cheetah", "paper/hopper", "paper/humanoid"]),
        ("experiment=glob(*_pendulum)", ["ddpg_pendulum", "sac_pendulum", "td3_pendulum"]),
        ("seed=choice(2,1)", ["2", "1"]),
        ("seed=sort(2,1)", ["1", "2"]),
        ("seed=sort(range(0,3),reverse=true)", ["2", "1", "0"]),
        ("agent.discount_factor=range(0.5,1,0.25)", ["0.5", "0.75"]),
    ],
)
def test_sweeps_are_written_in_hydras_grammar(sweep: str, values: list[str], program: Loader) -> None:
    key = sweep.partition("=")[0]
    assert combinations([sweep], program) == [[f"{key}={value}"] for value in values]


def test_shuffled_values_are_all_there(program: Loader) -> None:
    for sweep in ("seed=shuffle(range(0,4))", "seed=shuffle(choice(0,1,2,3))"):
        assert sorted(combinations([sweep], program)) == [[f"seed={value}"] for value in range(4)]


@pytest.mark.parametrize(
    "sweep",
    ["agent=glob(x*)", "seed=range(0,0)", "seed=range(0,1,0)", "seed=range(0,inf)", "seed=interval(0,1)"],
)
def test_a_sweep_without_usable_values_is_refused(sweep: str, program: Loader) -> None:
    with pytest.raises(ConfigError, match=re.escape(sweep)):
        combinations([sweep], program)


def test_later_overrides_win_and_files_come_first() -> None:
    params = lines_of({"seed": "0,1", "agent": "sac,td3", "env.module": None})
    assert combinations([*params, "seed=2"]) == [
        ["seed=2", "agent=sac", "env.module=null"],
        ["seed=2", "agent=td3", "env.module=null"],
    ]


@pytest.mark.parametrize(
    "option",
    [
        "agent.exploration.standard_deviation=0.3",
        "agent/exploration=gaussian",
        "env.kwargs.g=9.81",
        "agent.lrr=1",
    ],
)
def test_a_sweep_leaves_options_that_it_does_not_know_to_its_jobs(option: str, program: Loader) -> None:
    given = ["agent=td3,ddpg", option]
    config = program.load_configuration("train", list(given), RunMode.MULTIRUN)
    assert list(config.hydra.overrides.task) == given
    job = ["agent=td3", option]
    if option.startswith("agent.lrr"):
        with pytest.raises(ConfigError, match=r"agent\.lrr=1: no such option"):
            program.load_sweep_config(config, job)
    else:
        program.load_sweep_config(config, job)


def test_a_sweep_knows_the_options_of_hydra(program: Loader) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.jobs=1: no such option"):
        program.load_configuration("train", ["seed=0,1", "hydra.launcher.jobs=1"], RunMode.MULTIRUN)


def test_the_loader_is_hydras(program: Loader) -> None:
    composed()
    assert hydra_internal.ConfigLoaderImpl is Loader  # type: ignore[attr-defined]
