"""Benchmarks compare with no more than what must be computed, and their page shows the stored figures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floor, ours
from benchmarks.compare import DATA, PAGE, page
from benchmarks.jobs import reached
from benchmarks.sizes import BATCH, ENSEMBLE, POLICY_HIDDEN, UPDATE_SPACES


def flops(products: Sequence[floor.Product]) -> int:
    """Multiplications and additions; layers with one output are no products of matrices here."""
    return sum(2 * math.prod(product) for product in products if 1 not in product[1:])


@pytest.mark.parametrize("name", UPDATE_SPACES)
def test_an_update_multiplies_no_more_than_its_limit(name: str) -> None:
    work = ours.update(name)
    critic_part, actor_part = floor.update_products(name, *UPDATE_SPACES[name], POLICY_HIDDEN, BATCH)
    with FlopCounterMode(display=False) as counter:
        work(2)
    num_actor_updates = 1 if name == "td3" else 2
    assert counter.get_total_flops() == 2 * flops(critic_part) + num_actor_updates * flops(actor_part)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_an_update_through_the_model_multiplies_no_more_than_its_limit(num_steps: int) -> None:
    work = ours.unrolled_update(str(num_steps))
    with FlopCounterMode(display=False) as counter:
        work(2)
    assert counter.get_total_flops() == 2 * flops(floor.unrolled_products(num_steps))


def test_a_step_of_a_fit_multiplies_no_more_than_its_limit() -> None:
    fit = ours.Fit()
    with FlopCounterMode(display=False) as counter:
        fit.steps(2)
    assert counter.get_total_flops() == 2 * flops(floor.fit_products(ENSEMBLE, BATCH, floor.MODEL_SIZES))


def test_the_page_shows_the_stored_figures() -> None:
    assert PAGE.read_text() == page(json.loads(DATA.read_text()))


def test_a_target_is_reached_once_and_three_times_in_a_row() -> None:
    returns = (100.0, 200.0, 150.0, 200.0, 210.0, 200.0, 0.0)
    points = [(250 * i, value, 1.5 * i) for i, value in enumerate(returns, start=1)]
    assert reached(points, 200.0) == {
        "target": 200.0,
        "steps_to_first": 500,
        "seconds_to_first": 3.0,
        "steps_to_target": 1_000,
        "seconds_to_target": 6.0,
    }
    assert reached(points, 205.0)["steps_to_first"] == 1_250
    assert reached(points, 205.0)["steps_to_target"] is None
