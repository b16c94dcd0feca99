"""Known functions are compared with what really happens, and take the environment's keyword arguments."""

import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mbpo_cli.envs import environment
from mbpo_cli.envs.environment import EnvOptions
from mbpo_cli.failures import EnvironmentFailed
from mbpo_cli.models.known import Comparison, Known, KnownOptions
from mbpo_cli.types import SpaceSpec, Transitions
from tests.conftest import CONF, spaces

FUNCTIONS = {"reward": "reward_function", "is_done": "is_done_function"}


def variant(name: str, kwargs: dict[str, Any], **changes: Any) -> EnvOptions:
    """Return the options of a shipped environment with further keyword arguments."""
    values = yaml.safe_load((CONF / "env" / f"{name}.yaml").read_text())["env"]
    defaults = yaml.safe_load((CONF / "train.yaml").read_text())["env"]
    options = EnvOptions(**{**defaults, **values})
    return replace(options, kwargs={**(options.kwargs or {}), **kwargs}, **changes)


def known_in(options: EnvOptions, space: SpaceSpec) -> dict[str, Known]:
    names = {part: getattr(options, field) for part, field in FUNCTIONS.items()}
    return {
        part: Known(KnownOptions("", name, options.kwargs), space, torch.Generator())
        for part, name in names.items()
        if name is not None
    }


def compare(options: EnvOptions, num_steps: int = 150) -> None:
    """Compare the known functions of an environment with random steps."""
    env, stream = environment.make(options), torch.Generator().manual_seed(0)
    rows: list[tuple[Tensor, ...]] = []
    obs = env.reset(0)
    while len(rows) < num_steps:
        action = env.spaces.actions.sample(stream)
        step = env.step(action)
        rows.append((obs, action, torch.tensor(step.reward), step.obs, torch.tensor(float(step.terminated))))
        obs = env.reset(len(rows)) if step.terminated or step.truncated else step.obs
    env.close()
    known = known_in(options, env.spaces)
    assert known
    Comparison(known, allow_mismatch=False)(Transitions(*map(torch.stack, zip(*rows, strict=True))), 1)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("hopper", {"healthy_z_range": [0.9, 2], "healthy_angle_range": [-0.1, 0.3]}),
        ("hopper", {"healthy_state_range": [-8, 8]}),
        ("hopper", {"terminate_when_unhealthy": False}),
        ("walker2d", {"healthy_z_range": [0.9, math.inf], "healthy_angle_range": [-0.3, 0.3]}),
        ("walker2d", {"terminate_when_unhealthy": False}),
        ("ant", {"healthy_z_range": [0.4, 0.9]}),
        ("ant", {"terminate_when_unhealthy": False, "include_cfrc_ext_in_observation": True}),
        ("humanoid", {"healthy_z_range": [1.2, 3]}),
        ("humanoid", {"terminate_when_unhealthy": False, "ctrl_cost_weight": 1}),
        ("inverted_double_pendulum", {"healthy_reward": 3}),
        ("reacher", {"reward_dist_weight": 5, "reward_control_weight": 0.1}),
        ("pusher", {"reward_near_weight": 2, "reward_dist_weight": 3, "reward_control_weight": 0}),
        ("cartpole", {"sutton_barto_reward": True}),
        ("pendulum", {"g": 5}),
        ("inverted_pendulum", {"reset_noise_scale": 0.1}),
    ],
)
def test_shipped_functions_take_the_environments_keyword_arguments(name: str, kwargs: dict[str, Any]) -> None:
    compare(variant(name, kwargs))


@pytest.mark.parametrize("goal_velocity", [-0.01, 0.05])
@pytest.mark.parametrize(
    ("name", "rewards"), [("mountain_car", [-1, -1]), ("mountain_car_continuous", [0, 100])]
)
def test_the_goal_of_a_mountain_car_has_a_velocity(
    name: str, rewards: list[int], goal_velocity: float
) -> None:
    """Random actions do not reach the goal, so these states are made up."""
    env = environment.make(variant(name, {"goal_velocity": goal_velocity}))
    known = known_in(variant(name, {"goal_velocity": goal_velocity}), env.spaces)
    obs = torch.tensor([[0.55, goal_velocity - 0.001], [0.55, goal_velocity + 0.001]])
    action = torch.zeros(2, env.spaces.action_size)
    assert known["is_done"].predict(obs, action, obs).tolist() == [0, 1]
    assert known["reward"].predict(obs, action, obs).tolist() == rewards


def wrapper(name: str, **arguments: Any) -> dict[str, Any]:
    return {"wrappers": [{"_target_": f"gymnasium.wrappers.{name}", **arguments}]}


POSITIONS = {"exclude_current_positions_from_observation": False}


@pytest.mark.parametrize(
    ("name", "kwargs", "changes"),
    [
        ("hopper", POSITIONS, {}),
        ("walker2d", POSITIONS, {}),
        ("ant", POSITIONS, {}),
        ("humanoid", POSITIONS, {}),
        ("hopper", {}, {"is_done_function": "mbpo_cli.envs.known.walker2d_is_done"}),
        ("inverted_pendulum", {}, {"id": "InvertedPendulum-v4"}),
        ("inverted_double_pendulum", {}, {"id": "InvertedDoublePendulum-v4"}),
        ("reacher", {}, {"id": "Reacher-v4"}),
        ("cartpole", {}, {"id": "MountainCar-v0"}),
        ("cartpole", {}, {"is_done_function": "mbpo_cli.envs.known.never"}),
        ("mountain_car", {}, wrapper("ClipReward", max_reward=-2)),
        ("pendulum", {}, wrapper("ClipReward", min_reward=-1)),
        ("pendulum", {}, wrapper("RescaleAction", min_action=-1, max_action=1)),
        ("pendulum", {}, wrapper("RescaleObservation", min_obs=-2, max_obs=2)),
        ("cartpole", {}, wrapper("FrameStackObservation", stack_size=3)),
        ("pendulum", {}, wrapper("FrameStackObservation", stack_size=2)),
    ],
)
def test_a_function_of_another_environment_ends_the_run(
    name: str, kwargs: dict[str, Any], changes: dict[str, Any]
) -> None:
    message = (
        r"model\.\w+\.function=mbpo_cli\.envs\.known\.\w+: in step \d+ it gives \S+, but the environment"
    )
    with pytest.raises(EnvironmentFailed, match=message):
        compare(variant(name, kwargs, **changes))


def first_element(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[:, 0]


def scaled(obs: Tensor, action: Tensor, next_obs: Tensor, *, factor: float = 1.0) -> Tensor:
    return factor * next_obs[:, 0]


def comparison(function: str, allow_mismatch: bool = False, **kwargs: Any) -> Comparison:
    known = Known(KnownOptions("", f"{__name__}.{function}", kwargs), spaces((1,)), torch.Generator())
    return Comparison({"reward": known}, allow_mismatch)


def real(rewards: Tensor, known: Tensor) -> Transitions:
    """Return transitions with rewards, and what `first_element` says of them."""
    none = torch.zeros(len(rewards), 1)
    return Transitions(none, none, rewards, known[:, None], none[:, 0])


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_rounding_is_no_mismatch_in_any_unit(unit: float, g: torch.Generator) -> None:
    rewards = unit * torch.randn(1000, generator=g)
    comparison("first_element")(real(rewards, rewards * (1 + 1e-6)), 1)
    with pytest.raises(EnvironmentFailed):
        comparison("first_element")(real(rewards, rewards * 1.01), 1)


def test_a_value_that_is_not_a_number_is_a_mismatch() -> None:
    with pytest.raises(EnvironmentFailed, match="it gives nan, but the environment 1 "):
        comparison("first_element")(real(torch.ones(2), torch.tensor([1.0, math.nan])), 1)


def test_the_message_names_key_step_both_values_and_what_to_do() -> None:
    compare = comparison("first_element")
    compare(real(torch.ones(20), torch.ones(20)), 1)
    known = torch.tensor([1.0, 1.0, 3.0, 1.0, 1.0])
    with pytest.raises(EnvironmentFailed) as raised:
        compare(real(torch.ones(5), known), 21)
    assert str(raised.value) == (
        f"model.reward.function={__name__}.first_element: in step 23 it gives 3, but the environment 1 "
        "(1 of 25 environment steps differ); model/reward=deterministic learns it, model/reward=known uses "
        "your own env.reward_function, and model.allow_mismatch=true accepts it"
    )
    assert raised.value.exit_code == 3


def test_a_rare_mismatch_is_told_once_and_ends_the_run_when_it_is_not_rare(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    compare = comparison("first_element")
    compare(real(torch.ones(900), torch.ones(900)), 1)
    for step in range(9):  # 9 of 909 steps are less than 1 %
        compare(real(torch.ones(1), torch.zeros(1)), 901 + step)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert "in step 901 it gives 0, but the environment 1 (1 of 901 environment steps" in caplog.text
    with pytest.raises(EnvironmentFailed, match="10 of 910"):
        compare(real(torch.ones(1), torch.zeros(1)), 910)


def test_an_allowed_mismatch_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    compare = comparison("first_element", allow_mismatch=True)
    for step in range(1, 4):
        compare(real(torch.ones(1), torch.zeros(1)), step)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_function_of_ones_own_takes_keyword_arguments_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    values = torch.ones(3)
    comparison("scaled", factor=2.0, other=5)(real(2 * values, values), 1)
    assert "scaled gets {'factor': 2.0}" in caplog.text
    comparison("scaled", other=5)(real(values, values), 1)
