"""Known functions at the very limits, which random steps of the real environments hardly meet."""

import math

import pytest
import torch

from mbpo_cli.envs import known

# Function, a state inside all limits, the element, its limit, and whether the limit itself is an end.
# Source: Gymnasium's documentation and code of each environment.
LIMITS = [
    ("cartpole_is_done", [0.0] * 4, 0, 2.4, False),
    ("cartpole_is_done", [0.0] * 4, 0, -2.4, False),
    ("cartpole_is_done", [0.0] * 4, 2, math.radians(12), False),
    ("cartpole_is_done", [0.0] * 4, 2, -math.radians(12), False),
    ("cartpole_swingup_is_done", [0.0] * 5, 0, 2.4, False),
    ("inverted_pendulum_is_done", [0.0] * 4, 1, 0.2, False),
    ("inverted_pendulum_is_done", [0.0] * 4, 1, -0.2, False),
    ("hopper_is_done", [1.0] + [0.0] * 10, 0, 0.7, True),
    ("hopper_is_done", [1.0] + [0.0] * 10, 0, math.inf, True),
    ("hopper_is_done", [1.0] + [0.0] * 10, 1, 0.2, True),
    ("hopper_is_done", [1.0] + [0.0] * 10, 4, 100.0, True),
    ("walker2d_is_done", [1.0] + [0.0] * 16, 0, 0.8, True),
    ("walker2d_is_done", [1.0] + [0.0] * 16, 0, 2.0, True),
    ("walker2d_is_done", [1.0] + [0.0] * 16, 1, -1.0, True),
    ("ant_is_done", [0.5] + [0.0] * 26, 0, 0.2, False),
    ("ant_is_done", [0.5] + [0.0] * 26, 0, 1.0, False),
    ("humanoid_is_done", [1.5] + [0.0] * 44, 0, 1.0, True),
    ("humanoid_is_done", [1.5] + [0.0] * 44, 0, 2.0, True),
    # A state that is over; it goes on at the limit.
    ("mountain_car_is_done", [0.6, 0.1], 0, 0.5, True),
    ("mountain_car_is_done", [0.6, 0.1], 1, 0.0, True),
    ("mountain_car_continuous_is_done", [0.6, 0.1], 0, 0.45, True),
    ("mountain_car_continuous_is_done", [0.6, 0.1], 1, 0.0, True),
]


@pytest.mark.parametrize(("name", "state", "element", "limit", "ends"), LIMITS)
def test_limits_are_exact(name: str, state: list[float], element: int, limit: float, ends: bool) -> None:
    """In float64: the state, the last one before the limit, the limit, and the first one beyond it."""
    outward = math.copysign(math.inf, limit - state[element])
    states = torch.tensor([state] * 4, dtype=torch.float64)
    # A run in this process has the processor flush the numbers next to zero to zero.
    before, beyond = (
        math.nextafter(limit, side) if limit else math.copysign(2.0**-1000, side)
        for side in (-outward, outward)
    )
    for row, value in enumerate((before, limit, beyond), start=1):
        states[row, element] = value
    inside = float(name.startswith("mountain_car"))
    done = getattr(known, name)(states, torch.zeros(4, 1), states).tolist()
    assert done == [inside, inside, float(ends), 1 - inside]


def test_ants_end_by_the_state_alone_and_not_by_contact_forces() -> None:
    obs = torch.tensor([0.5] + [0.0] * 104).repeat(2, 1)
    obs[0, 26], obs[1, 27] = math.inf, math.inf
    assert known.ant_is_done(obs, obs, obs).tolist() == [1.0, 0.0]


def test_the_double_pendulum_falls_at_one_meter() -> None:
    """Both poles at the same angle from the vertical; 1.2 m times its cosine is the tip's height."""
    heights = torch.tensor([1.0 + 1e-6, 1.0 - 1e-6], dtype=torch.float64)
    angles = torch.acos(heights / 1.2)
    none = torch.zeros(2, 6, dtype=torch.float64)
    obs = torch.column_stack(
        (none[:, 0], angles.sin(), none[:, 0], angles.cos(), none[:, 0] + 1, none[:, :4])
    )
    assert known.inverted_double_pendulum_is_done(obs, obs, obs).tolist() == [0.0, 1.0]


def test_the_car_is_rewarded_at_the_goal_at_any_speed_towards_it() -> None:
    next_obs = torch.tensor([[0.45, 0.0], [0.6, 0.07], [0.45, -0.01], [0.44, 0.07]])
    action = torch.tensor([[0.5], [-1.0], [1.0], [0.0]])
    reward = known.mountain_car_continuous_reward(next_obs, action, next_obs)
    assert reward.tolist() == pytest.approx([99.975, 99.9, -0.1, 0.0])


def test_an_observation_of_one_element_may_never_end() -> None:
    obs = torch.tensor([[1.0], [math.inf]])
    assert known.never(obs, torch.zeros(2, 1), obs).tolist() == [0.0, 0.0]
