"""Predictions of a regression against formulas written independently, in the targets' own units."""

import math

import pytest
import torch

from mbpo_cli.models.regression import Regression

RAW = [-30.0, -11.0, -10.0, -3.0, 0.0, 0.4, 0.5, 3.0, 30.0]


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


@pytest.mark.parametrize("members", [None, [1, 0]])
def test_log_variances_are_softly_limited_and_in_the_targets_units(
    members: list[int] | None, g: torch.Generator
) -> None:
    """The network's outputs are set to each of the numbers in turn; member 1 has limits of its own."""
    net = Regression("gaussian", 2, 1, [4], (2,), g)
    net.targets.mean.copy_(torch.tensor([5.0, -1.0]))
    net.targets.std.copy_(torch.tensor([3.0, 0.5]))
    chosen = None if members is None else torch.tensor(members)
    with torch.no_grad():
        net.mlp.weights[-1].zero_()
        net.max_log_variance[1] -= 0.1
        net.min_log_variance[1] += 0.2
        for raw in RAW:
            net.mlp.biases[-1].copy_(torch.tensor([0.25, -0.75, raw, raw + 0.1]))
            mean, log_variance = net.moments(torch.zeros(2, 3, 1), chosen)
            assert log_variance is not None
            torch.testing.assert_close(mean, torch.tensor([5.75, -1.375]).expand(2, 3, 2))
            for row, member in enumerate(members or [0, 1]):
                high, low = 0.5 - 0.1 * member, -10 + 0.2 * member
                for element, std in enumerate((3.0, 0.5)):
                    below = high - softplus(high - (raw + 0.1 * element))
                    expected = low + softplus(below - low) + 2 * math.log(std)
                    got = log_variance[row, :, element].tolist()
                    assert got == pytest.approx([expected] * 3, abs=1e-4)


def test_a_deterministic_prediction_is_in_the_targets_units(g: torch.Generator) -> None:
    net = Regression("deterministic", 1, 1, [4], (2,), g)
    net.fit_normalizers(torch.zeros(2, 1), torch.tensor([[2.0, -1.0], [8.0, 0.0]]))
    with torch.no_grad():
        net.mlp.weights[-1].zero_()
        net.mlp.biases[-1].copy_(torch.tensor([0.25, -0.75]))
    mean, log_variance = net.moments(torch.zeros(1, 1, 1))
    assert log_variance is None
    assert mean.flatten().tolist() == pytest.approx([5.75, -0.875])


@pytest.mark.parametrize("num_rows", [1, 700, 1024])
def test_errors_are_mean_squares_in_units_of_the_targets_variance(num_rows: int, g: torch.Generator) -> None:
    """Also where the rows fill several chunks; two channels, of one and two elements, weigh the same."""
    net = Regression("gaussian", 2, 2, [4], (1, 2), g)
    inputs, targets = torch.randn(num_rows, 2, generator=g), torch.randn(num_rows, 3, generator=g)
    net.targets.std.copy_(torch.tensor([2.0, 3.0, 4.0]))
    with torch.no_grad():
        mean, _ = net.moments(inputs.expand(2, -1, -1))
        by_hand = ((mean - targets) / torch.tensor([2.0, 3.0, 4.0])).square().mean(1)
        expected = by_hand[:, 0] / 2 + by_hand[:, 1:].sum(1) / 4
        torch.testing.assert_close(net.errors(inputs, targets), expected)
