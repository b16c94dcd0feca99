"""Predictions of the ensemble's members against the network's own moments."""

import pytest
import torch

from mbpo_cli.build import build_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.models.fit import ModelFitter
from tests.conftest import TINY, random_transitions, spaces

SPACE, CPU = spaces((3, 1), action_size=2), torch.device("cpu")


@pytest.mark.parametrize("difference", [True, False])
@pytest.mark.parametrize("kind", ["gaussian", "deterministic", "constant_noise"])
def test_means_and_deviations_are_those_of_the_network(kind: str, difference: bool) -> None:
    choices = (f"model/transition={kind}", f"model.transition.predict_difference={difference}")
    transition = build_model(make_config(*TINY, *choices), SPACE, torch.device("cpu")).transition
    data, members = random_transitions(5, SPACE), torch.tensor([2, 0])
    inputs = torch.cat((data.obs, data.action), 1).expand(3, -1, -1)
    with torch.no_grad():
        mean, log_variance = transition.network.moments(inputs)
        start = data.obs if difference else torch.zeros_like(data.obs)
        got = transition.moments_of_groups(
            data.obs.expand(2, -1, -1), data.action.expand(2, -1, -1), members
        )[0]
        torch.testing.assert_close(got, start + mean[members])
        all_means, deviation = transition.moments(data.obs, data.action)
        torch.testing.assert_close(all_means, start + mean)
    assert (deviation is None) == (log_variance is None)
    if log_variance is not None:
        torch.testing.assert_close(deviation, log_variance.exp().sqrt())


@pytest.mark.parametrize(
    ("kind", "variance"),
    [("deterministic", 3.5), ("constant_noise", 3.5 + (4 + 4 + 25) / 3)],
)
def test_a_random_members_prediction_has_the_variance_within_and_between(kind: str, variance: float) -> None:
    transition = build_model(make_config(*TINY, f"model/transition={kind}"), SPACE, CPU).transition
    network = transition.network
    with torch.no_grad():
        network.mlp.weights[-1].zero_()
        # Changes of 1, 2.5 and 5.5 with a mean of 3; deviations of 2, 2 and 5.
        network.mlp.biases[-1].copy_(torch.tensor([1.0, 2.5, 5.5]).reshape(3, 1, 1).expand(3, 1, 4))
        if network.log_std is not None:
            network.log_std.copy_(torch.tensor([2.0, 2.0, 5.0]).log().reshape(3, 1, 1).expand(3, 1, 4))
        obs = torch.tensor([[10.0, -20.0, 0.0, 1e7]])
        mean, deviation = transition.mixture(obs, torch.zeros(1, 2))
    torch.testing.assert_close(mean, obs + 3)
    torch.testing.assert_close(deviation, torch.full((1, 4), variance).sqrt())


@pytest.mark.parametrize(("rates", "is_trained"), [("[0,0,0]", False), ("[0,0,0.001]", True)])
def test_an_ensemble_of_which_no_member_learns_is_not_trained(rates: str, is_trained: bool) -> None:
    config = make_config(*TINY, f"model.transition.optimizer.learn_rate={rates}")
    model = build_model(config, SPACE, torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in model.transition.network.parameters()]
    fitter = ModelFitter(config.model.training, 100, torch.Generator().manual_seed(0))
    metrics = fitter.fit(model, random_transitions(50, SPACE), 1)
    assert ("model/transition_loss" in metrics) == is_trained
    for old, new in zip(before, model.transition.network.parameters(), strict=True):
        assert torch.equal(old[:2], new[:2])
        assert torch.equal(old[2], new[2]) != is_trained
