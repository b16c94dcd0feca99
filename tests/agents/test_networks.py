"""Policies' networks at their limits."""

import math

import pytest
import torch

from mbpo_cli.agents.networks import Critics, SquashedGaussianActor
from mbpo_cli.agents.options import CriticOptions
from tests.conftest import spaces


def test_the_deviation_of_a_squashed_gaussian_is_limited(g: torch.Generator) -> None:
    """To exp(-20) and exp(2). Source: the public code of Haarnoja et al. 2018."""
    actor = SquashedGaussianActor(spaces((3,), action_size=4), [8], g)
    with torch.no_grad():
        actor.mlp.weights[-1].zero_()
        actor.mlp.biases[-1].copy_(torch.tensor([0.1, -0.2, 0.3, 5.0, -20.5, -19.5, 1.9, 2.1]))
        mean, log_std = actor.moments(torch.zeros(2, 3))
        assert mean.tolist() == [pytest.approx([0.1, -0.2, 0.3, 5.0])] * 2
        assert log_std.tolist() == [pytest.approx([-20, -19.5, 1.9, 2])] * 2
        assert actor.greedy(torch.zeros(1, 3))[0].tolist() == pytest.approx(
            [math.tanh(x) for x in (0.1, -0.2, 0.3, 5.0)]
        )


@pytest.mark.parametrize("num_critics", [1, 2, 3])
def test_the_first_critic_is_the_first_of_all(num_critics: int, g: torch.Generator) -> None:
    options = CriticOptions(
        num_critics,
        num_critics,
        layer_norm=True,
        dropout=0.0,
        bound_targets=False,
        bound_quantile=0.0,
        scale_outputs=False,
    )
    critics = Critics(options, spaces((3,), action_size=2), [8, 8], g)
    obs, action = torch.randn(5, 3, generator=g), torch.randn(5, 2, generator=g)
    every = critics(obs, action)
    assert every.shape == (num_critics, 5)
    torch.testing.assert_close(critics.first(obs, action), every[0])
