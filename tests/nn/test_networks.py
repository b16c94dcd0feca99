"""The sizes of all networks that agents and models build."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from mbpo_cli.build import build_agent, build_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.nn.networks import orthogonal, uniform
from tests.conftest import PLAIN_NETWORKS, TINY, discrete, spaces

OBS, ACTION, HIDDEN, MEMBERS = 4, 2, 8, 3


def count(*sizes: int) -> int:
    """The number of weights and biases of a network with layers of these sizes."""
    return sum(fan_in * fan_out + fan_out for fan_in, fan_out in pairwise(sizes))


def number_of_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["deterministic", "gaussian"])
def test_learned_functions_have_one_output_per_predicted_number(kind: str) -> None:
    """A second one for the variance of each, if they are Gaussian, and two limits of its logarithm."""
    choices = (f"model/transition={kind}", f"model/reward={kind}", "model/is_done=learned")
    inputs = [f"model.{part}.inputs=obs_action_next_obs" for part in ("reward", "is_done")]
    sizes = [f"model.{part}.hidden_sizes=[{HIDDEN}]" for part in ("transition", "reward", "is_done")]
    model = build_model(
        make_config(*TINY, *choices, *inputs, *sizes), spaces((3, 1), ACTION), torch.device("cpu")
    )
    outputs, limits = (2, 2) if kind == "gaussian" else (1, 0)
    everything = OBS + ACTION + OBS
    expected = {
        "transition": MEMBERS * (count(OBS + ACTION, HIDDEN, outputs * OBS) + limits * OBS),
        "reward": count(everything, HIDDEN, outputs) + limits,
        "is_done": count(everything, HIDDEN, 1),
    }
    assert {name: number_of_parameters(part.network) for name, part in model.learned.items()} == expected


def test_uniform_weights_fill_their_range(g: torch.Generator) -> None:
    weight = uniform(torch.empty(100, 100), 25, g)
    assert weight.abs().max() == pytest.approx(1 / 5, rel=0.01)
    assert weight.std() == pytest.approx(1 / 5 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("name", "is_discrete", "critics", "actor_outputs", "targets"),
    [
        ("sac", False, 2, 2 * ACTION, {"critic"}),
        ("td3", False, 2, ACTION, {"critic", "actor"}),
        ("ddpg", False, 2, ACTION, {"critic", "actor"}),  # the paper: 1
        ("sac", True, 2, ACTION, {"critic"}),
        ("dqn", True, 1, 0, {"critic"}),
    ],
)
def test_agents_have_the_networks_of_their_papers(
    name: str, is_discrete: bool, critics: int, actor_outputs: int, targets: set[str]
) -> None:
    space = discrete((3, 1), ACTION) if is_discrete else spaces((3, 1), ACTION)
    config = make_config(*PLAIN_NETWORKS, f"agent={name}", f"agent.hidden_sizes=[{HIDDEN},{HIDDEN}]")
    agent: Any = build_agent(config, space, torch.device("cpu"))
    inputs, outputs = (OBS, ACTION) if is_discrete else (OBS + ACTION, 1)
    expected = {"critic": critics * count(inputs, HIDDEN, HIDDEN, outputs)}
    if actor_outputs > 0:
        expected["actor"] = count(OBS, HIDDEN, HIDDEN, actor_outputs)
    found = {
        attribute.removesuffix("s"): number_of_parameters(part)
        for attribute, part in vars(agent).items()
        if isinstance(part, nn.Module) and attribute != "policy"
    }
    assert agent.policy is getattr(agent, "critic" if name == "dqn" else "actor"), "no average"
    assert found == expected | {f"target_{part}": expected[part] for part in targets}


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 5)])
def test_orthogonal_weights_have_orthogonal_rows_or_columns_of_length_1(
    shape: tuple[int, ...], g: torch.Generator
) -> None:
    first, second = orthogonal(torch.empty(shape), shape[1], g)
    for matrix in (first, second):
        product = matrix.T @ matrix if shape[1] > shape[2] else matrix @ matrix.T
        torch.testing.assert_close(product, torch.eye(min(shape[1:])), rtol=0.0, atol=1e-5)
    assert not torch.equal(first, second)
