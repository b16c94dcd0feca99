import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mbpo_cli import rollouts
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import Diverged
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.regions import PlausibleRange, regions
from mbpo_cli.models.transition import LearnedTransition, TransitionOptions
from mbpo_cli.models.uncertainty import penalized
from mbpo_cli.rollouts import ModelRolloutOptions, generate, horizon_at
from mbpo_cli.types import SpaceSpec, Transitions
from tests.conftest import discrete, spaces

OPTIONS = make_config().mbpo.model_rollout_options


def schedule(**changes: Any) -> ModelRolloutOptions:
    return replace(OPTIONS, **changes)


def test_no_schedule_keeps_the_horizon() -> None:
    options = schedule(horizon_update_schedule="none", horizon=3, horizon_max=1)
    assert [horizon_at(options, e, 10**6) for e in (0, 1, 10_000)] == [3, 3, 3]


def test_piecewise_schedule_of_the_page() -> None:
    options = schedule(
        horizon_update_schedule="piecewise",
        horizon=1,
        horizon_update_frequency=100,
        horizon_update_start_epoch=1,
        horizon_max=3,
    )
    table = {0: 1, 1: 1, 100: 1, 101: 2, 200: 2, 201: 3, 301: 3, 10_000: 3}
    assert {e: horizon_at(options, e, 0) for e in table} == table


def test_piecewise_schedule_that_starts_late() -> None:
    options = schedule(
        horizon_update_schedule="piecewise",
        horizon=2,
        horizon_update_frequency=3,
        horizon_update_start_epoch=10,
        horizon_max=20,
    )
    table = {1: 2, 10: 2, 12: 2, 13: 3, 15: 3, 16: 4}
    assert {e: horizon_at(options, e, 0) for e in table} == table


def test_linear_schedule_of_the_paper_for_hopper() -> None:
    # 1 -> 15 over epochs 20 -> 100, an epoch being 1000 environment steps.
    options = schedule(
        horizon_update_schedule="linear",
        horizon=1,
        horizon_max=15,
        horizon_update_start_epoch=20,
        horizon_update_end_epoch=100,
    )
    table = {0: 1, 20_000: 1, 25_714: 1, 25_715: 2, 60_000: 8, 99_999: 14, 100_000: 15, 10**6: 15}
    assert {steps: horizon_at(options, 0, steps) for steps in table} == table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon_update_schedule": "piecewise", "horizon": 5, "horizon_max": 4}, "horizon_max=4"),
        (
            {
                "horizon": 1,
                "horizon_update_schedule": "linear",
                "horizon_update_start_epoch": 9,
                "horizon_update_end_epoch": 9,
            },
            "horizon_update_end_epoch=9",
        ),
    ],
)
def test_impossible_schedules_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(**changes)


def test_a_schedule_may_have_no_room_and_one_epoch() -> None:
    options = schedule(horizon_update_schedule="piecewise", horizon=5, horizon_max=5)
    assert [horizon_at(options, e, 0) for e in (0, 10_000)] == [5, 5]
    limits = {"horizon_update_start_epoch": 8, "horizon_update_end_epoch": 9}
    options = schedule(horizon_update_schedule="linear", horizon=1, horizon_max=3, **limits)
    assert [horizon_at(options, 0, steps) for steps in (8000, 8499, 8500, 8999, 9000)] == [1, 1, 2, 2, 3]


class AddsMemberNumber(LearnedTransition):
    """Member m adds m + 1 to every observation."""

    def __init__(self, space: SpaceSpec, num_networks: int, elites: list[int]) -> None:
        options = make_config(
            f"model.transition.num_networks={num_networks}", "model.transition.num_elites=null"
        ).model.transition
        super().__init__(options, space, torch.Generator())  # type: ignore[arg-type]
        self.elites = torch.tensor(elites)
        self.group_sizes: list[list[int]] = []

    def predict(self, obs: Tensor, action: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        return obs + members[:, None, None] + 1


class Constant:
    def __init__(self, value: float) -> None:
        self.value = value

    def predict(self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(obs[:, 0], self.value)


class DoneAbove:
    """Done where the next observation is above a threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def predict(self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator) -> Tensor:
        return (next_obs[:, 0] > self.threshold).float()


@pytest.mark.parametrize("num_networks", [1, 2, 3, 7])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 20, 21, 22])
def test_rows_are_split_into_groups_whose_sizes_differ_by_at_most_one(
    num_networks: int, num_rows: int, g: torch.Generator
) -> None:
    space = spaces((1,))
    transition = AddsMemberNumber(space, num_networks, list(range(num_networks)))
    model = EnvironmentModel(transition, Constant(0), Constant(0))
    obs = torch.arange(num_rows, dtype=torch.float32)[:, None] * 100
    step = model.step(obs, torch.zeros(num_rows, 1), g)
    added = (step.next_obs - obs)[:, 0]
    sizes = [int((added == member + 1).sum()) for member in range(num_networks)]
    assert sum(sizes) == num_rows, "every row is predicted by exactly one network and stays in its place"
    assert max(sizes) - min(sizes) <= 1


def test_grouping_is_random(g: torch.Generator) -> None:
    model = EnvironmentModel(AddsMemberNumber(spaces((1,)), 2, [0, 1]), Constant(0), Constant(0))
    obs, action = torch.zeros(50, 1), torch.zeros(50, 1)
    first, second = model.step(obs, action, g).next_obs, model.step(obs, action, g).next_obs
    assert not torch.equal(first, second)


def test_only_elites_predict(g: torch.Generator) -> None:
    model = EnvironmentModel(AddsMemberNumber(spaces((1,)), 5, [3, 1]), Constant(0), Constant(0))
    added = model.step(torch.zeros(40, 1), torch.zeros(40, 1), g).next_obs
    assert sorted(set(added[:, 0].tolist())) == [2.0, 4.0]


def counts(num_generated: int, num_implausible: int) -> dict[str, int]:
    return {"rollout/num_generated": num_generated, "rollout/num_implausible": num_implausible}


def still(obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
    assert explore is not None, "rollouts explore"
    return torch.zeros(len(obs), 1)


def test_rollouts_branch_from_the_starts_and_continue_from_predictions(g: torch.Generator) -> None:
    model = EnvironmentModel(AddsMemberNumber(spaces((1,)), 1, [0]), Constant(7), Constant(0))
    steps: list[Transitions] = []
    metrics = generate(model, still, torch.zeros(4, 1), 3, steps.append, g)
    assert metrics["rollout/num_generated"] == 12
    assert [step.obs[:, 0].tolist() for step in steps] == [[0.0] * 4, [1.0] * 4, [2.0] * 4]
    assert [step.next_obs[0, 0].item() for step in steps] == [1.0, 2.0, 3.0]
    assert steps[0].reward.tolist() == [7.0] * 4


def test_terminated_rollouts_are_not_continued(g: torch.Generator) -> None:
    model = EnvironmentModel(AddsMemberNumber(spaces((1,)), 1, [0]), Constant(0), DoneAbove(10))
    steps: list[Transitions] = []
    metrics = generate(model, still, torch.tensor([[0.0], [9.5], [8.5]]), 5, steps.append, g)
    assert [len(step) for step in steps] == [3, 2, 1, 1, 1]
    assert metrics["rollout/num_generated"] == 8
    assert steps[0].terminated.tolist() == [0.0, 1.0, 0.0]
    assert steps[2].obs.tolist() == [[2.0]]


def test_generation_stops_when_all_rollouts_have_ended(g: torch.Generator) -> None:
    model = EnvironmentModel(AddsMemberNumber(spaces((1,)), 1, [0]), Constant(0), Constant(1))
    metrics = generate(model, still, torch.zeros(3, 1), 10, lambda step: None, g)
    assert metrics == counts(3, 0)


class Explodes(AddsMemberNumber):
    """Adds 1, or another number to the given observations."""

    def __init__(self, explosions: dict[float, float]) -> None:
        super().__init__(spaces((1,)), 1, [0])
        self.explosions = explosions

    def predict(self, obs: Tensor, action: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        added = [[[self.explosions.get(value, 1.0)] for value in row] for row in obs[..., 0].tolist()]
        return obs + torch.tensor(added)


def real_experience(low: float, high: float) -> Transitions:
    obs = torch.tensor([[low], [high]])
    return Transitions(obs, torch.zeros(2, 1), torch.zeros(2), obs, torch.zeros(2))


@pytest.mark.parametrize("value", [1e6, -1e6, float("nan"), float("inf"), 31.0])
def test_a_rollout_ends_before_an_implausible_prediction(value: float, g: torch.Generator) -> None:
    model = EnvironmentModel(Explodes({5.0: value}), Constant(0), Constant(0))
    steps: list[Transitions] = []
    starts = torch.tensor([[0.0], [4.0], [5.0]])
    plausible = PlausibleRange(real_experience(0, 10), max_departure=2.5)  # from -25 to 35
    metrics = generate(model, still, starts, 3, steps.append, g, {"implausible": plausible})
    assert [step.obs[:, 0].tolist() for step in steps] == [[0, 4], [1], [2]]
    assert metrics == counts(4, 2)


def test_a_constant_element_may_vary_a_little(g: torch.Generator) -> None:
    plausible = PlausibleRange(real_experience(3, 3), max_departure=10)
    assert plausible.contains(real_experience(-6, 14)).tolist() == [True, False]


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (2.0, 2.5), (-9.0, -7.0)])
def test_the_margin_is_a_multiple_of_the_width_of_the_range(low: float, high: float) -> None:
    plausible = PlausibleRange(real_experience(low, high), max_departure=1.5)
    margin = 1.5 * (high - low)
    assert plausible.contains(real_experience(low - margin, high + margin)).tolist() == [True, True]
    outside = real_experience(low - 1.01 * margin, high + 1.01 * margin)
    assert plausible.contains(outside).tolist() == [False, False]


def test_a_large_constant_may_vary_by_rounding_errors() -> None:
    plausible = PlausibleRange(real_experience(-1e8, -1e8), max_departure=10)
    assert plausible.contains(real_experience(-1e8 - 900, -1e8 + 1100)).tolist() == [True, False]


def test_any_finite_known_reward_is_plausible() -> None:
    plausible = PlausibleRange(real_experience(0, 10), max_departure=10, knows_reward=True)
    predicted = real_experience(0, 10)
    predicted.reward[:] = torch.tensor([1e6, float("inf")])
    assert plausible.contains(predicted).tolist() == [True, False]
    learned = PlausibleRange(real_experience(0, 10), max_departure=10)
    assert learned.contains(predicted).tolist() == [False, False]


def test_a_model_without_plausible_predictions_has_diverged(g: torch.Generator) -> None:
    model = EnvironmentModel(Explodes({0.0: 1e6}), Constant(0), Constant(0))
    plausible = PlausibleRange(real_experience(0, 10), max_departure=10)
    with pytest.raises(Diverged, match="none of the model's 4 predictions is plausible"):
        generate(model, still, torch.zeros(4, 1), 3, lambda step: None, g, {"implausible": plausible})


class Agreement:
    """The region in which all members of an ensemble agree within a tolerance."""

    def __init__(self, model: EnvironmentModel, tolerance: float) -> None:
        self.model, self.tolerance = model, tolerance

    def contains(self, transitions: Transitions, number: Tensor) -> Tensor:
        members = self.model.transition.elites
        obs, action = (rows.expand(len(members), -1, -1) for rows in (transitions.obs, transitions.action))
        mean_MNO = self.model.transition.predict(obs, action, members, torch.Generator())
        return (mean_MNO.amax(0) - mean_MNO.amin(0)).amax(1) <= self.tolerance


def test_rollouts_may_be_as_long_as_the_ensemble_agrees(g: torch.Generator) -> None:
    class DisagreeAfterTwo(AddsMemberNumber):
        def predict(self, obs: Tensor, action: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
            return obs + torch.where(obs < 2, 1.0, members[:, None, None] + 1.0)

    model = EnvironmentModel(DisagreeAfterTwo(spaces((1,)), 3, [0, 1, 2]), Constant(0), Constant(0))
    steps: list[Transitions] = []
    starts = torch.tensor([[0.0], [1.0], [2.0]])
    near = {"implausible": Agreement(model, tolerance=0.5)}
    metrics = generate(model, still, starts, 10, steps.append, g, near)
    assert [step.obs[:, 0].tolist() for step in steps] == [[0, 1], [1], []]
    assert metrics == counts(3, 3)


@pytest.mark.parametrize(("penalty", "expected"), [(0.0, [7, 7, 7]), (0.5, [6.5, 6.5, 6.5])])
def test_rewards_are_lowered_by_the_uncertainty(
    penalty: float, expected: list[float], g: torch.Generator
) -> None:
    class OneApart(AddsMemberNumber):
        def moments(self, obs: Tensor, action: Tensor) -> tuple[Tensor, None]:
            return torch.stack([obs + member for member in (1.0, 2.0, 3.0)]), None

    space = spaces((1,))
    model = EnvironmentModel(OneApart(space, 3, [0, 1, 2]), Constant(7), Constant(0))
    model.transition.network.gaussian = False
    steps: list[Transitions] = []
    sink = penalized(steps.append, model, penalty)
    generate(model, still, torch.zeros(3, 1), 1, sink, g)
    assert steps[0].reward.tolist() == expected


def test_many_rollouts_are_split_into_chunks_and_all_reach_the_horizon(
    g: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "ROWS_AT_ONCE_ON_CPU", 4)
    model = EnvironmentModel(AddsMemberNumber(spaces((1,)), 1, [0]), Constant(0), DoneAbove(102.5))
    steps: list[Transitions] = []
    starts = torch.arange(10, dtype=torch.float32)[:, None] * 100
    metrics = generate(model, still, starts, 3, steps.append, g)
    # Starts 0 and 100 run for all three steps; the others end after the first.
    assert metrics["rollout/num_generated"] == 3 * 2 + 8
    assert [len(step) for step in steps] == [4, 4, 2, 2, 2]
    assert torch.cat([step.obs for step in steps])[:, 0].tolist() == [
        *range(0, 1000, 100),
        *(1, 101, 2, 102),
    ], "step by step, as the page says"


class Splits(LearnedTransition):
    """Two members that differ by `gap` where the first element is above 2, and else by nothing."""

    def __init__(self, gap: float) -> None:
        two = ("model.transition.num_networks=2", "model.transition.num_elites=2")
        options = make_config("env=gym", "env.id=any", *two).model.transition
        assert isinstance(options, TransitionOptions)
        super().__init__(options, spaces((2,)), torch.Generator())
        self.gap = gap

    def predict(self, obs: Tensor, action: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        return obs + 1.0

    def moments_of_groups(
        self, obs_MGO: Tensor, action_MGA: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, None]:
        assert members is not None
        differ = (obs_MGO[..., :1] > 2) * torch.tensor([1.0, 0.0])  # in one of two elements
        return obs_MGO + differ * self.gap * members[:, None, None], None


def moved(by: list[float]) -> Transitions:
    """Real transitions in which two elements change by that much."""
    obs = torch.zeros(10, 2)
    nothing = torch.zeros(10)
    return Transitions(obs, torch.zeros(10, 1), nothing, obs + torch.tensor(by), nothing)


@pytest.mark.parametrize(
    ("gap", "change", "limit", "is_cut"),
    [
        (1.0, [1.0, 1.0], 0.51, False),  # half a mean square: one element of two
        (1.0, [1.0, 1.0], 0.49, True),
        (1.0, [10.0, 1.0], 0.006, False),  # relative to the change of the element
        (1.0, [10.0, 1.0], 0.004, True),
        (1.0, [0.0, 1.0], 0.49, True),  # one that never changed counts in its own units
        (1.0, [1.0, 1.0], None, False),
    ],
)
def test_rollouts_end_where_the_members_disagree(
    gap: float, change: list[float], limit: float | None, is_cut: bool, g: torch.Generator
) -> None:
    model = EnvironmentModel(Splits(gap), Constant(0), Constant(0))
    agreed = regions(model, moved(change), None, limit)
    steps: list[Transitions] = []
    metrics = generate(model, still, torch.zeros(5, 2), 6, steps.append, g, agreed)
    # Observations of 0, 1 and 2 are agreed; the step from 3 is not.
    assert metrics["rollout/num_generated"] == (15 if is_cut else 30)
    if limit is not None:
        assert metrics["rollout/num_disputed"] == (5 if is_cut else 0)
    assert max(float(step.obs.max()) for step in steps if len(step) > 0) == (2.0 if is_cut else 5.0)


@pytest.mark.parametrize("gap", [1.0, math.nan])
def test_a_generation_that_is_disputed_as_a_whole_is_empty_and_no_failure(
    gap: float, g: torch.Generator
) -> None:
    model = EnvironmentModel(Splits(gap), Constant(0), Constant(0))
    agreed = regions(model, moved([1.0, 1.0]), None, 0.01)
    metrics = generate(model, still, torch.full((5, 2), 3.0), 6, lambda step: None, g, agreed)
    assert metrics == {**counts(0, 0), "rollout/num_disputed": 5}


class Counts(AddsMemberNumber):
    """Adds 1 to the first element of an observation, and nothing to the second, its number."""

    def __init__(self) -> None:
        super().__init__(spaces((2,)), 1, [0])

    def predict(self, obs: Tensor, action: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        return obs + torch.tensor([1.0, 0.0])


@pytest.mark.parametrize("chunk", [3, 100])
def test_some_rollouts_wander_in_their_first_half_and_hold_each_action(
    chunk: int, g: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "ROWS_AT_ONCE_ON_CPU", chunk)
    model = EnvironmentModel(Counts(), Constant(0), Constant(0))
    starts = torch.column_stack((torch.zeros(10), torch.arange(10.0)))
    options = replace(OPTIONS, random_fraction=0.4, num_rollout=10)
    wandering = rollouts.wandering(options, 13, spaces((2,)).actions, hold_steps=4)
    steps: list[Transitions] = []
    generate(model, still, starts, 13, steps.append, g, {"implausible": Skips(2.0, 1.0)}, wandering)
    rows = torch.cat([torch.column_stack((step.obs, step.action)) for step in steps])
    by_rollout = {number: rows[rows[:, 1] == number][:, 2].tolist() for number in range(10) if number != 1}
    assert rows[rows[:, 1] == 1][:, 0].tolist() == [0.0, 1.0], "one ended, and the others kept their places"
    for number, actions in by_rollout.items():
        assert len(actions) == 13
        if number >= 4:
            assert actions == [0.0] * 13
        else:
            assert actions[6:] == [0.0] * 7
            assert len(set(actions[:4])) == len(set(actions[4:6])) == 1
            assert actions[0] != actions[4]
    assert len({by_rollout[number][0] for number in (0, 2, 3)}) == 3


class Skips:
    """Everything but the step from one observation of one rollout."""

    def __init__(self, step: float, number: float) -> None:
        self.excluded = torch.tensor([step, number])

    def contains(self, transitions: Transitions, number: Tensor) -> Tensor:
        return ~(transitions.obs == self.excluded).all(1)


@pytest.mark.parametrize(("fraction", "horizon"), [(0.0, 50), (0.01, 50), (0.5, 1)])
def test_none_wanders_without_a_fraction_or_a_first_half(fraction: float, horizon: int) -> None:
    options = replace(OPTIONS, random_fraction=fraction, num_rollout=10)
    assert rollouts.wandering(options, horizon, spaces((2,)).actions, hold_steps=4) is None


def test_random_discrete_actions_are_one_hot(g: torch.Generator) -> None:
    actions = discrete((2,), num_actions=3).actions.sample_rows(60, g)
    assert actions.sum(1).tolist() == [1.0] * 60
    assert actions.sum(0).min() > 0
