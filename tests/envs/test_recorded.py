"""Recorded arrays become the transitions that the environment would have given."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mbpo_cli.envs.recorded import transitions_of
from mbpo_cli.failures import ConfigError
from mbpo_cli.types import ContinuousActions, DiscreteActions, SpaceSpec

SPACE = SpaceSpec((2,), ContinuousActions((-3.0,), (1.0,)))
Arrays = dict[str, NDArray[Any]]


def steps(count: int = 4) -> Arrays:
    """Observations (n, -n) of step n, without their successors; a time limit ends the last step."""
    number = np.arange(count)
    return {
        "observations": np.stack([number, -number], axis=1).astype(np.float32),
        "actions": np.linspace(-3, 1, count)[:, None],
        "rewards": number / 3,
        "terminals": np.zeros(count, bool),
        "timeouts": number == count - 1,
    }


def test_actions_are_scaled_and_all_else_is_kept_to_the_bit() -> None:
    arrays = steps()
    arrays["next_observations"] = arrays["observations"] + np.float32(0.1)
    arrays["terminals"][2] = True
    found = transitions_of(arrays, SPACE)
    assert torch.equal(found.obs, torch.from_numpy(arrays["observations"]))
    assert torch.equal(found.next_obs, torch.from_numpy(arrays["next_observations"]))
    assert found.reward.tolist() == arrays["rewards"].astype(np.float32).tolist()
    assert found.action[:, 0].tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-7)
    assert found.terminated.tolist() == [0, 0, 1, 0]
    assert {tensor.dtype for tensor in vars(found).values()} == {torch.float32}


def test_a_time_limit_is_no_termination_and_both_flags_are_one() -> None:
    arrays = steps()
    arrays["next_observations"] = arrays["observations"]
    arrays["terminals"], arrays["timeouts"] = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])
    assert transitions_of(arrays, SPACE).terminated.tolist() == [0, 1, 1, 0]


def test_without_next_observations_the_next_row_of_the_episode_has_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    arrays = steps(6)
    arrays["terminals"][1] = True
    with caplog.at_level(logging.INFO):
        found = transitions_of(arrays, SPACE)
    assert found.obs[:, 0].tolist() == [0, 2, 3, 4]
    assert found.next_obs[:, 0].tolist() == [1, 3, 4, 5]
    assert found.action[:, 0].tolist() == pytest.approx([-1, -0.2, 0.2, 0.6], abs=1e-6)
    assert not found.terminated.any()
    assert "the last steps of episodes, 2 of 6 rows, are left out" in caplog.text


def test_the_last_row_has_no_successor_even_if_no_flag_ends_it() -> None:
    arrays = steps()
    arrays["timeouts"][:] = False
    assert transitions_of(arrays, SPACE).next_obs[:, 0].tolist() == [1, 2, 3]


def test_discrete_actions_are_the_numbers_of_the_environment() -> None:
    arrays = steps()
    arrays["actions"] = np.array([3, 1, 2, 3], np.int32)
    found = transitions_of(arrays, SpaceSpec((2,), DiscreteActions(3, start=1)))
    assert found.action.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("form", ["flat", "channels"])
def test_channels_are_flattened_as_the_environment_does(form: str) -> None:
    arrays, space = steps(), SpaceSpec((4, 1), SPACE.actions, ("a", "b"))
    flat = np.arange(20.0).reshape(4, 5)
    if form == "flat":
        arrays["observations"] = flat
    else:
        del arrays["observations"]
        arrays["observations/b"], arrays["observations/a"] = flat[:, 4:], flat[:, :4].reshape(4, 2, 2)
    found = transitions_of(arrays, space)
    assert found.obs.tolist() == flat[:3].tolist()
    assert found.next_obs.tolist() == flat[1:].tolist()


def test_actions_may_exceed_a_bound_by_rounding_and_are_clipped() -> None:
    arrays = steps()
    arrays["actions"][3] = 1 + 1e-6
    arrays["next_observations"] = arrays["observations"]
    assert transitions_of(arrays, SPACE).action[3] == 1


def limits(lengths: list[int], name: str) -> Arrays:
    arrays = steps(sum(lengths))
    arrays["terminals"][:] = arrays["timeouts"][:] = False
    arrays[name][np.cumsum(lengths) - 1] = True
    return arrays


@pytest.mark.parametrize(
    ("lengths", "max_steps", "is_refused"),
    [
        ([5, 5, 5], 5, True),
        ([5, 4, 5], 5, False),
        ([5, 5, 5], 6, False),
        ([5, 5], None, False),
        ([5], 5, False),
    ],
)
def test_terminations_that_are_all_at_the_time_limit_are_refused(
    lengths: list[int], max_steps: int | None, is_refused: bool
) -> None:
    arrays = limits(lengths, "terminals")
    if not is_refused:
        assert len(transitions_of(arrays, SPACE, max_steps)) == sum(lengths) - len(lengths)
        return
    with pytest.raises(ConfigError, match="terminals: all 3 are set after exactly 5 steps, which is the env"):
        transitions_of(arrays, SPACE, max_steps)


@pytest.mark.parametrize(("lengths", "warns"), [([5, 3], False), ([5, 5], False), ([3, 5], True)])
def test_time_limits_that_come_too_early_are_reported(
    lengths: list[int], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    transitions_of(limits(lengths, "timeouts"), SPACE, max_steps=5)
    assert ("timeouts: 1 episodes end there before" in caplog.text) == warns


def changed(name: str, value: Any, *place: int) -> Arrays:
    """Return steps in which one array, or one number of it, is another."""
    arrays = steps()
    if place:
        arrays[name] = arrays[name].astype(np.result_type(arrays[name], np.asarray(value)))
        arrays[name][place] = value
    else:
        arrays[name] = np.asarray(value)
    return arrays


def without(*names: str) -> Arrays:
    return {name: array for name, array in steps().items() if name not in names}


OBS = steps()["observations"]
FAULTS: dict[str, tuple[Arrays, str]] = {
    "nothing": ({}, "actions: is missing; there is no known array"),
    "no observations": (without("observations"), "observations: is missing; there are actions, rewards"),
    "no actions": (without("actions"), "actions: is missing; there are observations, rewards, terminals"),
    "no rewards": (without("rewards"), "rewards: is missing; there are observations, actions"),
    "no terminals": (without("terminals"), "terminals: is missing; there are"),
    "no successors": (without("timeouts"), "next_observations: is missing, and without timeouts nothing"),
    "empty": (
        {name: array[:0] for name, array in steps().items()},
        "observations: has no rows",
    ),
    "one row": (
        {name: array[:1] for name, array in steps().items()},
        "next_observations: is missing, and no row is followed by another of its episode",
    ),
    "three elements": (
        changed("observations", np.zeros((4, 3))),
        "observations: has shape (4, 3), but must have 2 numbers in each row",
    ),
    "transposed": (changed("observations", OBS.T), "observations: has shape (2, 4), but must have 2 numbers"),
    "a scalar": (changed("observations", 1.0), "observations: has shape (), but must have 2 numbers"),
    "other successors": (
        changed("next_observations", np.zeros((4, 1))),
        "next_observations: has shape (4, 1), but must have 2 numbers",
    ),
    "two actions": (changed("actions", np.zeros((4, 2))), "actions: has shape (4, 2), but must have 1"),
    "two rewards": (changed("rewards", np.zeros((4, 2))), "rewards: has shape (4, 2), but must have 1"),
    "short actions": (changed("actions", np.zeros((3, 1))), "actions: has 3 rows, but observations 4"),
    "short rewards": (changed("rewards", np.zeros(3)), "rewards: has 3 rows, but observations 4"),
    "long flags": (changed("terminals", np.zeros(5)), "terminals: has 5 rows, but observations 4"),
    "short successors": (changed("next_observations", OBS[:3]), "next_observations: has 3 rows, but obs"),
    "nan": (changed("observations", np.nan, 2, 1), "observations: row 2, element 1 is nan, must be finite"),
    "infinite": (changed("rewards", np.inf, 3), "rewards: row 3, element 0 is inf, must be finite"),
    "too large": (changed("rewards", 1e39, 1), "rewards: row 1, element 0 is 1e+39, must be finite"),
    "nan action": (changed("actions", np.nan, 0, 0), "actions: row 0, element 0 is nan, must be finite"),
    "out of bounds": (
        changed("actions", 1.5, 1, 0),
        "actions: row 1, element 0 is 1.5, but the environment's bounds are -3 and 1",
    ),
    "below": (changed("actions", -3.1, 2, 0), "actions: row 2, element 0 is -3.1, but the environment's"),
    "a flag of 2": (changed("terminals", 2, 1), "terminals: row 1 is 2, but must be 0 or 1"),
    "a flag of 0.5": (changed("timeouts", 0.5, 3), "timeouts: row 3 is 0.5, but must be 0 or 1"),
    "nan flag": (changed("terminals", np.nan, 0), "terminals: row 0, element 0 is nan, must be finite"),
    "text": (changed("actions", ["left"] * 4), "actions: holds <U4, but must hold numbers"),
    "complex": (changed("rewards", np.zeros(4, complex)), "rewards: holds complex128, but must hold numbers"),
    "truth values": (changed("rewards", np.zeros(4, bool)), "rewards: holds bool, but must hold numbers"),
    "dates": (changed("observations", np.zeros((4, 2), "M8[s]")), "observations: holds datetime64[s], but"),
    "records": (changed("rewards", np.zeros(4, [("a", float)])), "rewards: holds [('a', '<f8')], but must"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    arrays, message = FAULTS[fault]
    with pytest.raises(ConfigError) as error:
        transitions_of(arrays, SPACE)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (0.5, "actions: row 2 is 0.5, but must be a whole number"),
        (2, "actions: row 2, element 0 is 2, but the environment's bounds are 0 and 1"),
        (-1, "actions: row 2, element 0 is -1, but the environment's bounds are 0 and 1"),
        (math.nan, "actions: row 2, element 0 is nan, must be finite"),
    ],
)
def test_an_action_that_does_not_exist_is_named(action: float, message: str) -> None:
    arrays = steps()
    arrays["actions"] = np.array([0, 1, action, 1])
    with pytest.raises(ConfigError) as error:
        transitions_of(arrays, SpaceSpec((2,), DiscreteActions(2)))
    assert str(error.value) == message


def test_a_missing_channel_is_named() -> None:
    arrays, space = steps(), SpaceSpec((1, 1), SPACE.actions, ("a", "b"))
    arrays["observations/a"] = arrays.pop("observations")[:, :1]
    with pytest.raises(ConfigError, match=r"observations/b: is missing; there are actions, .*observations/a"):
        transitions_of(arrays, space)
