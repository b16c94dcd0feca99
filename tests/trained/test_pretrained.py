"""Runs that begin with the model, the agent or the experience of another run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mbpo_cli.build import build_trainer
from mbpo_cli.commands.check import check
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import Config
from mbpo_cli.failures import ConfigError, Interrupted
from mbpo_cli.logs.logger import Logger
from mbpo_cli.nn.seeding import generator
from mbpo_cli.run import run
from mbpo_cli.trained import pretrained
from mbpo_cli.trained.load import load
from mbpo_cli.types import Transitions
from tests.commands.test_train import command
from tests.conftest import CONF, TINY, gym_env, metrics_of, random_transitions
from tests.test_resume import outcome, stop_after

POINT = (
    *TINY,
    *gym_env("tests/PointMass-v0"),
    "agent.normalize_observations=true",
    "agent.policy_smooth_factor=0.1",
    "model/reward=gaussian",
    "model.training.holdout_ratio=0.5",
    "mbpo.generate_every=5",
    "trainer.log_every_steps=1",
)
UNTRAINED = tuple(f"model.{part}.optimizer.learn_rate=0" for part in ("transition", "reward", "is_done"))
TRUST = ("tests",)


def config(*overrides: str) -> Config:
    return make_config(*POINT, *overrides)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best checkpoint is not its newest."""
    path = tmp_path_factory.mktemp("first") / "run"
    run(config("trainer.num_env_steps=60"), path)
    return path


def begun(path: Path, first: Path, *overrides: str) -> Path:
    """Run for a few steps with what another run has learned."""
    run(config("seed=7", *overrides), path, trust=TRUST)
    return path


def same_state(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_state, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def rollouts(path: Path, horizon: int = 5) -> list[Transitions]:
    """Return the steps of rollouts in a run's model, from the same starts and with the same noise."""
    trained = load(path, trust=TRUST)
    model, stream = trained.model(), torch.Generator().manual_seed(3)
    obs = random_transitions(50, trained.spaces).obs
    steps = []
    with torch.no_grad():
        for _ in range(horizon):
            action = trained.spaces.actions.sample_rows(len(obs), stream)
            steps.append(model.step(obs, action, stream))
            obs = steps[-1].next_obs
    return steps


def equal(one: list[Transitions], other: list[Transitions]) -> bool:
    return all(same_state(vars(a), vars(b)) for a, b in zip(one, other, strict=True))


def test_a_model_with_a_learn_rate_of_0_is_not_fitted_and_gives_the_same_rollouts(
    first: Path, tmp_path: Path
) -> None:
    second = begun(tmp_path / "second", first, f"model.from_run={first}", *UNTRAINED)
    rows = metrics_of(second)
    assert not any("loss" in tag and tag.startswith("model/") for row in rows for tag in row)
    assert min(row["step"] for row in rows if row.get("rollout/num_generated")) == 6  # the warm start is 5
    assert equal(rollouts(first), rollouts(second))
    # Not by chance: a model that was fitted on the same data differs.
    other = begun(tmp_path / "other", first, f"model.from_run={first}")
    assert not equal(rollouts(first), rollouts(other))


def test_fitting_goes_on_with_the_weights_and_the_normalization(first: Path, tmp_path: Path) -> None:
    rates = [rate.replace("=0", "=1e-9") for rate in UNTRAINED]
    second = begun(tmp_path / "second", first, f"model.from_run={first}", *rates)
    assert any("model/transition_loss" in row for row in metrics_of(second))
    states = [load(path, trust=TRUST).state["model"] for path in (first, second)]
    for part in ("transition", "reward", "is_done"):
        before, after = (state[part]["network"] for state in states)
        for name, tensor in before.items():
            torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-6)
        assert torch.equal(before["inputs.std"], after["inputs.std"])
        assert not torch.equal(before["mlp.weights.0"], after["mlp.weights.0"])
        assert states[1][part]["optimizer"]["step_counts"][0] < states[0][part]["optimizer"]["step_counts"][0]


def test_single_functions_are_chosen(first: Path, tmp_path: Path) -> None:
    second = begun(
        tmp_path / "second",
        first,
        f"model.from_run={first}",
        "model.reward.from_run=null",
        "model.is_done.from_run=null",
        *UNTRAINED,
    )
    states = [load(path, trust=TRUST).state["model"] for path in (first, second)]
    same = {part: same_state(states[0][part]["network"], states[1][part]["network"]) for part in states[0]}
    assert same == {"transition": True, "reward": False, "is_done": False}
    stored = load(second, trust=TRUST).config.model
    assert (stored.transition.from_run, stored.reward.from_run) == (str(first), None)  # type: ignore[attr-defined]


def test_agents_learn_through_a_loaded_model(first: Path) -> None:
    options = config(f"model.from_run={first}", *UNTRAINED, "mbpo.training_horizon=2")
    with ExitStack() as stack:
        trainer = build_trainer(options, Logger(), stack)
        pretrained.begin(trainer, options, TRUST)
        mbpo: Any = trainer.model_based
    loaded = load(first, trust=TRUST).model().transition
    weights = zip(loaded.network.parameters(), mbpo.world._transition.network.parameters(), strict=True)
    assert all(torch.equal(weight[loaded.elites], copied) for weight, copied in weights)


def test_the_guard_judges_a_loaded_model_by_the_new_real_transitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good"
    reward = "env.reward_function=tests.conftest.point_mass_reward"
    known = (reward, "model/reward=known", "model/is_done=never")
    fitted = ("model.training.num_mini_batches=200", "model.transition.optimizer.learn_rate=1e-2")
    run(config(*known, *fitted, "trainer.num_env_steps=100", "mbpo.generate_every=50"), good)
    options = ("mbpo.max_relative_error=0.1", f"model.from_run={good}", UNTRAINED[0], "mbpo.generate_every=5")
    run(config(*known, *options, "agent.num_warm_start_steps=12"), tmp_path / "same", trust=TRUST)
    monkeypatch.setattr("tests.conftest.PointMassEnv.step", backwards)
    run(config(*known, *options, "agent.num_warm_start_steps=12"), tmp_path / "other", trust=TRUST)
    held_back = {
        name: [row["rollout/held_back"] for row in metrics_of(tmp_path / name) if "rollout/held_back" in row]
        for name in ("same", "other")
    }
    assert held_back == {"same": [0], "other": [1]}


def backwards(self: Any, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    self.steps += 1
    self.position -= 0.3 * float(action[0])
    return torch.tensor([self.position]).numpy(), -(self.position**2), False, self.steps == 20, {}


def test_an_agent_acts_with_the_policy_of_the_other_run_from_the_first_step(
    first: Path, tmp_path: Path
) -> None:
    second = begun(tmp_path / "second", first, f"agent.from_run={first}", "trainer.num_env_steps=4")
    states = [load(path, trust=TRUST).state["agent"] for path in (first, second)]
    for part in ("actor", "policy", "critics", "target_critics"):
        weights = [{name: each for name, each in state[part].items() if "mlp" in name} for state in states]
        assert weights[0], part
        assert same_state(*weights), part
    assert same_state(states[0]["log_alpha"], states[1]["log_alpha"])
    assert states[1]["scaling"]["count"] == states[0]["scaling"]["count"] + 4
    assert not states[1]["actor_optimizer"]["step_counts"][0].any()
    agent, stream = load(first, trust=TRUST).agent, generator(7, "exploration")
    experience = load(second, trust=TRUST).experience()
    for row in range(4):
        obs = experience.obs[row : row + 1]
        action = agent.explore(obs, stream, torch.tensor([row == 0]))
        assert torch.equal(action, experience.action[row : row + 1])
        agent.observe(obs)


@pytest.mark.parametrize("keeps", [False, True])
def test_real_experience_is_kept_if_asked_for(keeps: bool, first: Path, tmp_path: Path) -> None:
    reset = f"agent.reset_experience_buffer_before_training={not keeps}"
    second = begun(tmp_path / "second", first, f"agent.from_run={first}", reset)
    kept, own = (load(path, trust=TRUST).experience() for path in (first, second))
    assert len(own) == (80 if keeps else 20)
    if keeps:
        assert same_state(vars(kept), vars(own[:60]))


def test_a_small_buffer_keeps_the_newest_experience(first: Path, tmp_path: Path) -> None:
    options = (f"agent.from_run={first}", "agent.reset_experience_buffer_before_training=false")
    second = begun(
        tmp_path / "second", first, *options, "agent.experience_buffer_length=30", "trainer.num_env_steps=10"
    )
    kept, own = (load(path, trust=TRUST).experience() for path in (first, second))
    assert same_state(vars(kept[40:]), vars(own[:20]))


def test_known_functions_are_compared_with_the_steps_of_the_new_run_only(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    def note(self: Any, real: Transitions, first_step: int) -> None:
        compared.append((first_step, len(real)))

    monkeypatch.setattr("mbpo_cli.models.known.Comparison.__call__", note)
    options = (f"agent.from_run={first}", "agent.reset_experience_buffer_before_training=false")
    begun(tmp_path / "second", first, *options, "mbpo.generate_every=10")
    assert compared == [(1, 10)]


@pytest.mark.parametrize("algorithm", ["mbpo", "double_horizon"])
def test_a_resumed_run_is_exact_without_the_other_run(
    algorithm: str, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(first, tmp_path / "other"))
    options = config(
        f"algorithm={algorithm}",
        *POINT[len(TINY) :],
        f"model.from_run={other}",
        f"agent.from_run={other}",
        "agent.reset_experience_buffer_before_training=false",
        "model.transition.optimizer.learn_rate=0",
        *(f"mbpo.training_horizon={2 if algorithm == 'double_horizon' else 0}", "mbpo.generate_every=5"),
        *SAME_AS_FIRST,
        "trainer.num_env_steps=40",
        "checkpoint.every_steps=7",
    )
    run(options, tmp_path / "whole", trust=TRUST)
    stop_after(9, monkeypatch)
    with pytest.raises(Interrupted):
        run(options, tmp_path / "stopped", trust=TRUST)
    monkeypatch.undo()
    shutil.rmtree(other)
    run(options, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


# What algorithm=double_horizon would change of networks and fits.
SAME_AS_FIRST = (
    "agent.activation=relu",
    "agent.initial_weights=uniform",
    "agent.critics.number=2",
    "agent.critics.dropout=0",
    "agent.critics.bound_quantile=0",
    "agent.critics.scale_outputs=false",
    "model/transition=gaussian",
    "model.transition.layer_decays=null",
    "model.transition.dropout=0",
    "model.transition.num_elites=2",
    "model.training.patience=null",
    "model.training.significance=null",
)


def test_a_path_is_stored_whole(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(first.parent)
    options = config("model.from_run=run", "agent.from_run=../first0/run")
    found: Any = options.model.transition
    assert found.from_run == options.model.from_run == str(first)
    assert options.agent.from_run == str(first.parent.parent / "first0" / "run")


def test_a_checkpoint_can_be_chosen(first: Path) -> None:
    steps = sorted(int(path.name) for path in (first / "checkpoints").iterdir())
    chosen = load(first / "checkpoints" / f"{steps[0]:012d}", trust=TRUST)
    assert (chosen.path, chosen.state["env_steps"]) == (first, steps[0])
    assert chosen.source == f"checkpoint, step {steps[0]}"
    best = load(first / "checkpoints" / "best", trust=TRUST)
    assert best.source == load(first, best=True, trust=TRUST).source
    with pytest.raises(
        ConfigError, match=r"checkpoints/000000000003: there is no such checkpoint; there are"
    ):
        load(first / "checkpoints" / "3", trust=TRUST)


def damaged(path: Path) -> None:
    for manifest in path.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")


def without_checkpoints(path: Path) -> None:
    shutil.rmtree(path / "checkpoints")


def alone(path: Path) -> None:
    shutil.rmtree(path)
    run(config("mbpo=off"), path)


def with_known_reward(path: Path) -> None:
    shutil.rmtree(path)
    run(config("model/reward=known", "env.reward_function=tests.conftest.point_mass_reward"), path)


def with_other_actions(path: Path) -> None:
    shutil.rmtree(path)
    run(make_config(*TINY, "env=pendulum"), path)


def without_a_fit(path: Path) -> None:
    shutil.rmtree(path)
    run(config("trainer.num_env_steps=5"), path)


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (shutil.rmtree, ("model.from_run={}",), "model.transition.from_run={}: no such directory"),
        (damaged, ("model.from_run={}",), "model.transition.from_run={}: no training state without a check"),
        (without_checkpoints, ("agent.from_run={}",), "agent.from_run={}: no training state without a check"),
        (alone, ("model.from_run={}",), "model.transition.from_run={}: it has no fitted model"),
        (without_a_fit, ("model.from_run={}",), "model.transition.from_run={}: it has no fitted model"),
        (
            with_known_reward,
            ("model.from_run={}",),
            "model.reward.from_run={}: it has _target_=mbpo_cli.models.known.Known, this run ",
        ),
        (
            with_other_actions,
            ("agent.from_run={}",),
            "agent.from_run={}: its environment has other spaces: channels (3,) instead of (1,)",
        ),
        (
            None,
            ("model.from_run={}", "model.transition.num_networks=4"),
            "model.transition.from_run={}: it has num_networks=3, this run 4",
        ),
        (
            None,
            ("model.from_run={}", "model.transition.predict_difference=false"),
            "model.transition.from_run={}: it has predict_difference=True, this run False",
        ),
        (
            None,
            ("model.from_run={}", "model.reward.inputs=next_obs"),
            "model.reward.from_run={}: it has inputs=obs_action_next_obs, this run next_obs",
        ),
        (
            None,
            ("agent.from_run={}", "agent.critics.number=3"),
            "agent.from_run={}: it has critics.number=2, this run 3",
        ),
        (
            None,
            ("agent=td3", "agent.from_run={}"),
            "agent.from_run={}: it has _target_=mbpo_cli.agents.sac.SAC",
        ),
        (
            None,
            ("agent.from_run={}", "agent.critics.bound_targets=true"),
            "agent.from_run={}: its agent has no bounds, as its options differ",
        ),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(
    change: Callable[[Path], Any] | None,
    overrides: tuple[str, ...],
    message: str,
    first: Path,
    tmp_path: Path,
) -> None:
    other = Path(shutil.copytree(first, tmp_path / "other"))
    if change is not None:
        change(other)
    with pytest.raises(ConfigError) as error:
        check(config(*(item.format(other) for item in overrides)), trust=TRUST)
    assert str(error.value).startswith(message.format(other))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_function_begins_with_the_weights_in_a_file(name: str, first: Path, tmp_path: Path) -> None:
    tensors = load(first, trust=TRUST).state["model"]["reward"]["network"]
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)
    second = begun(tmp_path / "second", first, f"model.reward.from_run={path}", *UNTRAINED)
    assert same_state(load(second, trust=TRUST).state["model"]["reward"]["network"], dict(tensors))


def renamed(tensors: dict[str, Tensor]) -> object:
    return {"bias" if name == "mlp.biases.0" else name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, "has bias, which the network has not"),
        (lambda tensors: list(tensors.values()), "must have tensors by name, such as mlp.weights.0"),
        (lambda tensors: {}, "max_log_variance must have the shape [1, 1, 1], and is missing"),
        (lambda tensors: tensors | {"inputs.std": torch.ones(2)}, "inputs.std must have the shape [3], "),
        (lambda tensors: tensors | {"inputs.std": "one"}, "inputs.std must have the shape [3], "),
        (lambda tensors: tensors | {"inputs.std": torch.zeros(3)}, "inputs.std, which normalizes, must be"),
        (lambda tensors: tensors | {"inputs.mean": torch.full((3,), torch.nan)}, "inputs.mean is not finite"),
        (lambda tensors: Path, "must have tensors by name, such as mlp.weights.0, and nothing else"),
    ],
)
def test_weights_in_a_file_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], object], message: str, first: Path, tmp_path: Path
) -> None:
    tensors = load(first, trust=TRUST).state["model"]["reward"]["network"]
    torch.save(change(tensors), path := tmp_path / "weights.pt")
    with pytest.raises(ConfigError) as error:
        check(config(f"model.reward.from_run={path}"), trust=TRUST)
    assert str(error.value).startswith(f"model.reward.from_run={path}: {message}")


def test_code_that_the_other_run_names_needs_trust(first: Path, tmp_path: Path) -> None:
    here = f"hydra.run.dir={tmp_path / 'second'}"
    words = [*POINT, "env.module=tests.conftest", f"agent.from_run={first}", here]
    refused = command(*words, cwd=CONF.parent)
    assert refused.returncode == 2
    line = refused.stderr.splitlines()[-1]
    assert line.startswith(f"mbpo-train: error: agent.from_run={first}: env.id=tests/PointMass-v0: ")
    assert line.endswith("trust=[tests] lets it be imported")
    assert not (tmp_path / "second").exists()
    assert command(*words, "trust=[tests]", "trainer.num_env_steps=3", cwd=CONF.parent).returncode == 0
    assert (tmp_path / "second" / "summary.json").exists()


def test_without_another_run_there_is_no_experience_to_keep() -> None:
    with pytest.raises(ConfigError, match=r"agent\.reset_experience_buffer_before_training=false: only with"):
        config("agent.reset_experience_buffer_before_training=false")
