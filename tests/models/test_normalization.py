"""Which elements count as constant does not depend on their unit."""

import pytest
import torch

from mbpo_cli.config.compose import make_config
from mbpo_cli.models.function import Normalizer
from mbpo_cli.models.regions import PlausibleRange
from mbpo_cli.models.transition import LearnedTransition
from mbpo_cli.types import Transitions
from tests.conftest import spaces

CPU = torch.device("cpu")
SMALL = ("hidden_sizes=[4]", "num_networks=1", "num_elites=1")


def rounding(size: float, generator: torch.Generator) -> torch.Tensor:
    """Return a constant as float32 would give it after a few operations."""
    return size * (1 + 1.2e-7 * torch.randint(-1, 2, (200,), generator=generator).double()).float()


@pytest.mark.parametrize("unit", [1e-12, 1e-9, 1e-3, 1.0, 1e6, 1e12])
def test_an_element_is_normalized_in_any_unit(unit: float, g: torch.Generator) -> None:
    normalizer = Normalizer(1, CPU)
    values = unit * torch.randn(200, 1, generator=g)
    normalizer.fit(values)
    assert normalizer(values).std(correction=0) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1.0, 293.0, 1e6])
def test_a_constant_with_rounding_errors_is_only_centered(size: float, g: torch.Generator) -> None:
    normalizer = Normalizer(1, CPU)
    normalizer.fit(rounding(size, g)[:, None])
    assert normalizer.std.tolist() == [1.0]


def test_the_rounding_errors_of_a_huge_constant_are_not_large_inputs(g: torch.Generator) -> None:
    normalizer = Normalizer(1, CPU)
    values = rounding(1e9, g)[:, None]
    normalizer.fit(values)
    assert normalizer(values).abs().max() < 2


def transition_of(predict_difference: bool) -> LearnedTransition:
    changes = (*SMALL, f"predict_difference={predict_difference}")
    config = make_config(*(f"model.transition.{change}" for change in changes))
    return LearnedTransition(config.model.transition, spaces((4,)), torch.Generator())  # type: ignore[arg-type]


def test_differences_have_the_rounding_errors_of_observations(g: torch.Generator) -> None:
    """A constant of 1e6 in float32, a slow pressure in Pa, a length in nm, and one that drifts by 1e-3."""
    drift = torch.randn(200, generator=g)

    def observed() -> torch.Tensor:
        noise = torch.randn(3, 200, generator=g)
        pressure = 101_325 + 100 * drift + 0.1 * noise[0]
        length = 1e-9 * (drift + 0.01 * noise[1])
        return torch.stack((rounding(1e6, g), pressure, length, drift + 1e-3 * noise[2]), dim=1)

    before, after = observed(), observed()
    data = Transitions(before, torch.zeros(200, 1), torch.zeros(200), after, torch.zeros(200))
    transition = transition_of(predict_difference=True)
    transition.fit_normalizers(*transition.examples(data))
    std = transition.network.targets.std.double()
    assert std[0] == 1.0, "noise is not learned as if it mattered"
    torch.testing.assert_close(std[1:], (after - before).double().std(0, correction=0)[1:])
    direct = transition_of(predict_difference=False)
    direct.fit_normalizers(*direct.examples(data))
    torch.testing.assert_close(
        direct.network.targets.std.double()[1:], after.double().std(0, correction=0)[1:]
    )


@pytest.mark.parametrize("size", [1.0, 1e6, -1e9])
def test_predictions_of_a_constant_may_have_rounding_errors(size: float) -> None:
    obs = torch.full((2, 1), size)
    real = Transitions(obs, torch.zeros(2, 1), torch.zeros(2), obs, torch.zeros(2))
    plausible = PlausibleRange(real, max_departure=10)
    predicted = Transitions(obs, real.action, real.reward, obs * (1 + 1e-6), real.terminated)
    assert plausible.contains(predicted).all()
