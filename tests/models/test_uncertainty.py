"""How far the elites' predictions diverge, and which rollouts end for it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from mbpo_cli.build import build_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.uncertainty import (
    ComparingModel,
    Uncertainty,
    divergence,
    fused,
    lost_information,
)
from mbpo_cli.models.world import LearnedWorld
from mbpo_cli.rollouts import generate, lengths
from mbpo_cli.types import Transitions
from tests.conftest import TINY, spaces

OPTIONS = make_config().mbpo.model_rollout_options
CPU = torch.device("cpu")


def by_definition(means: list[list[float]], variances: list[list[float]]) -> float:
    """Average over the pairs the mean divergence of their geometric mean from the two members."""
    found = []
    for i, j in itertools.combinations(range(len(means)), 2):
        total = 0.0
        for m, n, v, w in zip(means[i], means[j], variances[i], variances[j], strict=True):
            variance = 1 / (0.5 / v + 0.5 / w)
            middle = Normal(variance * (0.5 * m / v + 0.5 * n / w), math.sqrt(variance))
            both = (Normal(m, math.sqrt(v)), Normal(n, math.sqrt(w)))
            total += sum(float(kl_divergence(middle, each)) for each in both) / 2
        found.append(total)
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("means", "variances", "expected"),
    [
        ([[0.0], [1.0]], [[1.0], [1.0]], 0.125),  # (m - n)^2 / 8
        ([[0.0], [1.0]], [[1.0], [3.0]], 0.0625 + (math.log(2) - math.log(3) / 2) / 2),
        ([[0.0, 2.0], [1.0, 0.0]], [[1.0, 4.0], [1.0, 4.0]], 0.125 + 0.125),
        ([[0.0], [1.0], [3.0]], [[1.0], [1.0], [1.0]], (1 + 9 + 4) / 8 / 3),
        ([[0.0, 1.0], [0.5, -1.0], [2.0, 0.3]], [[1.0, 0.2], [0.5, 2.0], [3.0, 0.1]], None),
    ],
)
def test_the_divergence_by_hand(
    means: list[list[float]], variances: list[list[float]], expected: float | None
) -> None:
    mean, log_variance = torch.tensor(means)[:, None], torch.tensor(variances).log()[:, None]
    found = divergence(mean.expand(-1, 5, -1), log_variance)
    assert found.tolist() == pytest.approx([by_definition(means, variances)] * 5, abs=1e-6)
    if expected is not None:
        assert found[0].item() == pytest.approx(expected, abs=1e-6)


def test_members_that_agree_do_not_diverge_and_nan_is_never_certain() -> None:
    mean = torch.randn(1, 4, 3).expand(3, -1, -1).clone()
    mean[1, 2, 0] = math.nan
    found = divergence(mean, torch.full((3, 1, 3), -13.3))
    assert found[[0, 1, 3]].tolist() == [0.0] * 3, "not even by rounding errors"
    uncertainty = Uncertainty(replace(OPTIONS, max_divergence=1.0))
    assert uncertainty.is_certain(found[:, None], None)[0].tolist() == [True, True, False, True]


DISTRIBUTIONS = pytest.mark.parametrize("distribution", ["deterministic", "gaussian", "constant_noise"])


def model_of(distribution: str, *overrides: str) -> EnvironmentModel:
    members = ("model.transition.num_networks=5", "model.transition.num_elites=4")
    config = make_config(*TINY, *members, f"model/transition={distribution}", *overrides)
    model = build_model(config, spaces((3,)), CPU)
    model.transition.elites = torch.tensor([3, 0, 4, 1])
    model.transition.network.targets.std.copy_(torch.tensor([0.5, 2.0, 3.0]))
    if (log_std := model.transition.network.log_std) is not None:
        log_std.data.copy_(torch.randn(log_std.shape, generator=torch.Generator().manual_seed(0)))
    return model


@DISTRIBUTIONS
@pytest.mark.parametrize(("num_compared", "count"), [(2, 2), (3, 3), (9, 4), (None, 4)])
def test_each_row_is_compared_among_its_own_elite_and_the_next_ones(
    distribution: str, num_compared: int | None, count: int
) -> None:
    model = model_of(distribution)
    obs, action = torch.randn(8, 3), torch.zeros(8, 1)
    rows_MG = torch.arange(8).view(4, 2)
    assert Uncertainty(replace(OPTIONS, num_compared=num_compared)).num_compared(4) == count
    with torch.no_grad():
        means, log_variances = model.transition.compared(
            obs[rows_MG], action[rows_MG], count, model.transition.elites
        )
        by_member, deviation = model.transition.moments(obs, action)
    if deviation is None:  # that of the targets
        deviation = torch.tensor([0.5, 2.0, 3.0]).expand_as(by_member)
    variances = log_variances.exp().expand_as(means)
    for group, shift, place in itertools.product(range(4), range(count), range(2)):
        member, row = [3, 0, 4, 1][(group + shift) % 4], 2 * group + place
        torch.testing.assert_close(means[shift, group, place], by_member[member, row])
        torch.testing.assert_close(variances[shift, group, place], deviation[member, row].square())


class Straight:
    """A policy whose action is always 0."""

    def __call__(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        return torch.zeros(len(obs), 1)


@DISTRIBUTIONS
def test_comparing_changes_no_prediction(distribution: str, g: torch.Generator) -> None:
    model, obs, action = model_of(distribution), torch.randn(21, 3), torch.zeros(21, 1)
    options = replace(OPTIONS, max_divergence=1.0, num_compared=3)
    comparing, region = Uncertainty(options).begin(model, Straight(), obs, g)
    assert isinstance(comparing, ComparingModel)
    assert region == {"uncertain": comparing}
    state = g.get_state()
    with torch.no_grad():
        plain = model.next_obs(obs, action, g)
        torch.testing.assert_close(
            comparing.next_obs(obs, action, g.set_state(state)), plain, rtol=1e-5, atol=1e-5
        )


def test_what_a_deterministic_ensemble_diverges_by() -> None:
    """An eighth of the mean squared difference of two members, in variances of the targets."""
    model, obs, action = model_of("deterministic"), torch.randn(7, 3), torch.zeros(7, 1)
    transition = model.transition
    mean = transition.moments(obs, action)[0][transition.elites]
    pairs = [(mean[i] - mean[j]).square() for i, j in itertools.combinations(range(4), 2)]
    expected = (torch.stack(pairs).mean(0) / torch.tensor([0.25, 4.0, 9.0])).sum(1) / 8
    obs_MGO, action_MGA = (rows.expand(4, -1, -1) for rows in (obs, action))
    found = divergence(*transition.compared(obs_MGO, action_MGA, 4, transition.elites))
    torch.testing.assert_close(found, expected.expand(4, -1), rtol=1e-4, atol=1e-6)


class Split(EnvironmentModel):
    """The first element grows by 1 in each step; two members differ where it is above 2."""

    def __init__(self) -> None:
        model = model_of("constant_noise")
        super().__init__(model.transition, model.reward, model.is_done)
        model.transition.compared = self.compared  # type: ignore[assignment, method-assign]

    def gap(self, obs: Tensor) -> Tensor:
        return 0.1 + (obs[..., 0] > 2).float()

    def compared(
        self, obs: Tensor, action: Tensor, count: int, members: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        mean = torch.stack((obs, obs)) + torch.tensor([1.0, 0.0, 0.0])
        mean[1, ..., 1] += (8 * self.gap(obs)).sqrt()  # with equal variances, an eighth of the square counts
        return mean, torch.full((2, 1, 1, 3), -60.0).index_fill(3, torch.tensor(1), 0.0)


def in_split(starts: Tensor, factor: float, g: torch.Generator) -> tuple[list[Transitions], dict[str, float]]:
    uncertainty = Uncertainty(replace(OPTIONS, max_divergence=factor, divergence_quantile=0.5))
    near = torch.zeros(50, 3)
    model, region = uncertainty.begin(Split(), Straight(), near, g)
    steps: list[Transitions] = []
    return steps, generate(model, Straight(), starts, 6, steps.append, g, region)


def test_rollouts_end_where_members_differ_and_not_elsewhere(g: torch.Generator) -> None:
    starts = torch.zeros(10, 3)
    starts[:, 0] = torch.tensor([0.0] * 6 + [-9.0] * 4)  # the last four do not reach that place
    steps, metrics = in_split(starts, 2.0, g)
    assert metrics["rollout/num_uncertain"] == 6
    assert metrics["rollout/uncertain_share"] == 0.6
    assert metrics["rollout/num_generated"] == 6 * 3 + 4 * 6
    assert max(float(step.obs[:, 0].max()) for step in steps) == 2.0
    assert metrics["rollout/length_mean"] == 4.2
    quantiles = [metrics[f"rollout/length_quantile_{percent}"] for percent in (10, 50, 90)]
    assert quantiles == [3, 3, 6]
    _, metrics = in_split(starts, 11.5, g)  # the divergence is 11 times as large there
    assert metrics["rollout/num_uncertain"] == 0
    assert metrics["rollout/num_generated"] == 60


def test_a_model_that_is_uncertain_everywhere_generates_nothing(g: torch.Generator) -> None:
    steps, metrics = in_split(torch.full((4, 3), 5.0), 2.0, g)
    assert metrics["rollout/num_generated"] == metrics["rollout/length_mean"] == 0
    assert metrics["rollout/uncertain_share"] == 1
    assert sum(len(step) for step in steps) == 0


@pytest.mark.parametrize(
    ("num_generated", "expected"),
    [([10, 10, 10], [3, 3, 3]), ([10, 5, 1], [1, 1, 2]), ([9, 6, 2], [0, 2, 3]), ([], [0, 0, 0])],
)
def test_quantiles_of_lengths(num_generated: list[int], expected: list[int]) -> None:
    """The smallest lengths that at least so many of ten rollouts do not exceed."""
    found = lengths(num_generated, 3, 10)
    assert [found[f"rollout/length_quantile_{percent}"] for percent in (10, 50, 90)] == expected
    assert found["rollout/length_mean"] == sum(num_generated) / 10
    assert found["rollout/uncertain_share"] == 0.3


class Listed(Split):
    """Divergences of first steps as listed, in the second element."""

    def gap(self, obs: Tensor) -> Tensor:
        return obs[..., 1]


def starts_of(*divergences: float) -> Tensor:
    starts = torch.zeros(len(divergences), 3)
    starts[:, 1] = torch.tensor(divergences)
    return starts


def test_the_limit_is_the_mean_of_a_quantile_over_generations_and_survives(g: torch.Generator) -> None:
    options = replace(OPTIONS, max_divergence=3.0, divergence_quantile=0.75)
    one, two = Uncertainty(options), Uncertainty(options)
    for divergences, expected in (
        ([0.0, 1.0, 2.0, 3.0, 4.0], 9.0),  # 3 times 3
        ([1.0, 1.0], 6.0),  # the mean of 9 and 3
        ([math.nan, math.inf], 6.0),  # tell nothing
        ([2.0, math.nan], 6.0),  # the mean of 9, 3 and 6
    ):
        one.begin(Listed(), Straight(), starts_of(*divergences), g)
        assert float(one.metrics["rollout/divergence_limit"]) == pytest.approx(expected, abs=1e-6)
    two.load_state_dict(one.state_dict())
    for each in (one, two):
        each.begin(Listed(), Straight(), starts_of(0.5), g)
    assert one.metrics == two.metrics
    is_certain, _ = one.is_certain(torch.tensor([[4.8], [4.9]]), None)
    assert is_certain.tolist() == [True, False], "the limit is 4.875"
    is_certain, _ = Uncertainty(options).is_certain(torch.tensor([[1e9], [math.inf]]), None)
    assert is_certain.tolist() == [True, False], "no limit before the first generation"


def test_without_a_limit_the_model_is_the_same_and_draws_nothing(g: torch.Generator) -> None:
    before, model = g.get_state(), Split()
    assert Uncertainty(OPTIONS).begin(model, Straight(), torch.zeros(5, 3), g) == (model, {})
    assert torch.equal(g.get_state(), before)
    world, rows = LearnedWorld(model_of("gaussian"), 2, Uncertainty(OPTIONS)), torch.zeros(5, 3)
    assert world.certain(rows, rows[:, :1], None, world.draw(5, g), 0) == (None, None)


@pytest.mark.parametrize(
    ("means", "variances"),
    [
        ([[0.0], [1.0]], [[1.0], [3.0]]),
        ([[0.5, -2.0], [1.0, 0.0]], [[1.0, 0.1], [3.0, 0.1]]),
        ([[0.0], [1.0], [5.0]], [[1.0], [3.0], [0.5]]),
        ([[0.0, 1.0], [0.5, -1.0], [2.0, 0.3]], [[1.0, 0.2], [0.5, 2.0], [3.0, 0.1]]),
    ],
)
def test_fused_predictions_and_what_they_lose_by_hand(
    means: list[list[float]], variances: list[list[float]]
) -> None:
    together = fused(torch.tensor(means)[:, None], torch.tensor(variances)[:, None].log())
    lost = lost_information(together.remaining, torch.tensor([2.0, 0.1])[: len(means[0])])
    drawn = together.given(torch.full((1, len(means[0])), 0.7), torch.full((1, len(means[0])), -1.5))
    for element, unit in zip(range(len(means[0])), (2.0, 0.1), strict=False):
        pairs = [(m[element], v[element]) for m, v in zip(means, variances, strict=True)]
        variance = len(pairs) / sum(1 / v for _, v in pairs)
        mean = variance * sum(m / v for m, v in pairs) / len(pairs)
        between = sum((m - mean) ** 2 for m, _ in pairs) / len(pairs)
        gain = variance / (variance + between)
        remaining = (1 - gain) * variance
        bits = 0.5 * math.log2(2 * math.pi * math.e * remaining / unit**2) - math.log2(1e-6)
        expected = (mean + gain * (0.7 - mean) - 1.5 * math.sqrt(remaining), remaining)
        found = (drawn[0, element].item(), together.remaining[0, element].item())
        assert found == pytest.approx(expected, abs=1e-6)
        assert lost[0, element].item() == pytest.approx(bits, abs=1e-5)  # of about 20


def test_two_members_fused_in_numbers() -> None:
    together = fused(torch.tensor([[[0.0]], [[1.0]]]), torch.tensor([[[1.0]], [[3.0]]]).log())
    assert together.variance.item() == pytest.approx(1.5, abs=1e-6)  # 1 / ((1 + 1/3) / 2)
    assert together.mean.item() == pytest.approx(0.25, abs=1e-6)
    assert together.between.item() == pytest.approx(0.3125, abs=1e-6)  # (1/16 + 9/16) / 2
    assert together.remaining.item() == pytest.approx(15 / 58, abs=1e-6)  # 1.5 * 0.3125 / 1.8125


def test_members_that_agree_lose_nothing_and_draw_as_each_of_them() -> None:
    together = fused(torch.full((3, 4, 2), 0.5), torch.zeros(3, 1, 2))
    assert lost_information(together.remaining, torch.ones(2)).tolist() == [[0.0, 0.0]] * 4
    drawn = torch.randn(4, 2)
    torch.testing.assert_close(together.given(drawn, torch.randn(4, 2)), drawn)


class Apart(Split):
    """Elites whose means of the second element differ: what they lose in it in a step is its observation."""

    def gap(self, obs: Tensor) -> Tensor:
        remaining = (2e-6 * 2 ** obs[..., 1].double()).square() / (
            2 * math.pi * math.e
        )  # targets deviate by 2
        return (remaining / (1 - remaining) / 2).float()  # between / 2; 8 times it is the squared difference


INFORMED = replace(OPTIONS, max_lost_information=3.5)


def transitions_of(*lost: float) -> Transitions:
    obs, nothing = starts_of(*lost), torch.zeros(len(lost))
    return Transitions(obs, nothing[:, None], nothing, obs, nothing)


def test_the_limits_of_lost_information_are_quantiles_of_real_steps() -> None:
    one, two = Uncertainty(INFORMED, 3), Uncertainty(INFORMED, 3)
    lost = [14 + 0.05 * row for row in range(99)]
    one.fit(Apart(), transitions_of(*lost, math.nan, 19.0))  # four elites: the last of 101 is left out
    expected = [torch.tensor(lost).quantile(quantile).item() for quantile in (0.9999, 0.01)]
    assert one.step_limit.tolist() == pytest.approx([0, expected[0], 0], abs=1e-3)
    assert one.rollout_limit.tolist() == pytest.approx([0, 3.5 * expected[1], 0], abs=1e-3)
    assert float(one.metrics["rollout/lost_information_limit"]) == pytest.approx(expected[0] / 3, abs=1e-3)
    assert float(one.metrics["rollout/lost_information_budget"]) > 3.5 * 14 / 3
    two.load_state_dict(one.state_dict())
    two.fit(Apart(), transitions_of(1.0, 2.0))  # too few to tell
    assert two.metrics == one.metrics


def test_a_rollout_ends_by_a_step_that_loses_much_or_by_all_of_them(g: torch.Generator) -> None:
    """Steps may lose 16.5 bits, and rollouts 56: three steps of 16, or four of 13."""
    uncertainty = Uncertainty(INFORMED, 3)
    uncertainty.fit(Apart(), transitions_of(*[16.0] * 50, *[16.5] * 50))
    lost_by_step = torch.tensor([[16.0, 17.0, 13.0, 16.0]] + 4 * [[16.0, 16.0, 13.0, 17.0]])
    model, region = uncertainty.begin(Apart(), Straight(), torch.zeros(4, 3), g)
    number, length = torch.arange(4), torch.zeros(4)
    for lost in lost_by_step:
        transitions = transitions_of(*lost[number].tolist())
        with torch.no_grad():
            model.next_obs(transitions.obs, transitions.action, g)
        number = number[region["uncertain"].contains(transitions, number)]
        length[number] += 1
    assert length.tolist() == [3, 0, 4, 1]


@pytest.mark.parametrize("distribution", ["gaussian", "constant_noise"])
def test_rollouts_draw_from_the_fused_prediction(distribution: str, g: torch.Generator) -> None:
    """One elite draws, and what it draws counts the less, the less the elites agree."""
    model = model_of(distribution)
    options = replace(OPTIONS, max_lost_information=100.0, num_compared=None)
    fusing, _ = Uncertainty(options, 3).begin(model, Straight(), torch.zeros(1, 3), g)
    obs, action = torch.randn(1, 3, generator=g), torch.zeros(40_000, 1)
    with torch.no_grad():
        drawn = fusing.next_obs(obs.expand(40_000, -1), action, g)
        mean, deviation = model.transition.moments(obs, action[:1])
    assert deviation is not None
    means, variances = mean[model.transition.elites], deviation[model.transition.elites].square()
    together = fused(means, variances.log())
    gain = together.variance / (together.variance + together.between)
    expected = together.mean + gain * (means.mean(0) - together.mean)
    spread = variances.mean(0) + means.var(0, correction=0)
    variance = gain.square() * spread + (1 - gain) * together.variance
    torch.testing.assert_close(drawn.mean(0), expected[0], rtol=0.02, atol=0.05)
    torch.testing.assert_close(drawn.var(0), variance[0], rtol=0.05, atol=0.0)
