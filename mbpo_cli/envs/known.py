"""Known reward and is-done functions, in the environments' own units, on batches of tensors.

Tests compare each with the real environment. Observations are float32 of shape (B, O). Actions are float32 of
shape (B, A) within the bounds of a Box, or int64 of shape (B,) if they are Discrete. All functions return
float32 of shape (B,); is-done functions return 1.0 where o' is terminal. Rewards that o, a and o' do not
determine exactly, such as the distance covered by a walking robot, have no function here and are learned.

Keyword-only parameters are the environment's own, with its default values; they get what `env.kwargs` sets.

Observations of walking robots start with the height; positions along the ground are left out.

Source: `cart_pole` for this package's environments, Gymnasium's documentation for all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mbpo_cli.envs import cart_pole


def never(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return zeros: episodes end at a time limit only."""
    return torch.zeros_like(obs[:, 0])


def pendulum_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return the negative cost of Pendulum-v1's angle and speed before the step, and of the torque.

    obs = (cos, sin, angular velocity).
    """
    angle = torch.atan2(obs[:, 1], obs[:, 0])
    return -(angle.square() + 0.1 * obs[:, 2].square() + 0.001 * action[:, 0].square())


def cartpole_reward(
    obs: Tensor, action: Tensor, next_obs: Tensor, *, sutton_barto_reward: bool = False
) -> Tensor:
    """Return CartPole-v1's reward: 1 for every step, or Sutton and Barto's -1 for the last one and else 0."""
    if sutton_barto_reward:
        return -cartpole_is_done(obs, action, next_obs)
    return torch.ones_like(obs[:, 0])


def cartpole_is_done(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return 1.0 where cart or pole is outside the limits of CartPole-v1 and mbpo/CartPoleContinuous-v0.

    obs = (x, velocity, angle, angular velocity).
    """
    off_track = next_obs[:, 0].abs() > cart_pole.TRACK_LIMIT
    return (off_track | (next_obs[:, 2].abs() > cart_pole.ANGLE_LIMIT)).to(obs.dtype)


def mountain_car_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return MountainCar-v0's reward: -1 for every step, including the last."""
    return -torch.ones_like(obs[:, 0])


def mountain_car_is_done(
    obs: Tensor, action: Tensor, next_obs: Tensor, *, goal_velocity: float = 0
) -> Tensor:
    """Return 1.0 where MountainCar-v0's goal is reached; obs = (position, velocity)."""
    return ((next_obs[:, 0] >= 0.5) & (next_obs[:, 1] >= goal_velocity)).to(obs.dtype)


def mountain_car_continuous_reward(
    obs: Tensor, action: Tensor, next_obs: Tensor, *, goal_velocity: float = 0
) -> Tensor:
    """Return MountainCarContinuous-v0's reward: 100 at the goal, minus the cost of the force."""
    is_done = mountain_car_continuous_is_done(obs, action, next_obs, goal_velocity=goal_velocity)
    return 100 * is_done - 0.1 * action[:, 0].square()


def mountain_car_continuous_is_done(
    obs: Tensor, action: Tensor, next_obs: Tensor, *, goal_velocity: float = 0
) -> Tensor:
    """Return 1.0 where MountainCarContinuous-v0's goal is reached, which is nearer than MountainCar's."""
    return ((next_obs[:, 0] >= 0.45) & (next_obs[:, 1] >= goal_velocity)).to(obs.dtype)


def acrobot_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return Acrobot-v1's reward: -1 for every step except the one that reaches the goal."""
    return acrobot_is_done(obs, action, next_obs) - 1


def acrobot_is_done(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return 1.0 where Acrobot-v1's tip is one link above the joint.

    obs = (cos, sin of the first angle, cos, sin of the second, two velocities). The second angle is relative.
    """
    cos_1, sin_1, cos_2, sin_2 = next_obs[:, :4].unbind(1)
    return (-cos_1 - (cos_1 * cos_2 - sin_1 * sin_2) > 1).to(obs.dtype)


def cartpole_continuous_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return the reward of mbpo/CartPoleContinuous-v0."""
    reward = 0.5 + 0.5 * (1 - next_obs[:, 0].abs() / cart_pole.TRACK_LIMIT)
    return torch.where(cartpole_is_done(obs, action, next_obs) > 0, cart_pole.FALL_REWARD, reward)


def cartpole_swingup_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return the reward of mbpo/CartPoleSwingUp-v0; obs = (x, velocity, cos, sin, ...)."""
    return (1 + next_obs[:, 2]) / 2 * torch.exp(-next_obs[:, 0].square() / 2)


def cartpole_swingup_is_done(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return 1.0 where the cart of mbpo/CartPoleSwingUp-v0 is off the track."""
    return (next_obs[:, 0].abs() > cart_pole.TRACK_LIMIT).to(obs.dtype)


def inverted_pendulum_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return InvertedPendulum-v5's reward: 1 while the pole stands."""
    return 1 - inverted_pendulum_is_done(obs, action, next_obs)


def inverted_pendulum_is_done(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return 1.0 where InvertedPendulum-v5's pole has fallen; obs = (x, angle, two velocities)."""
    stands = next_obs.isfinite().all(1) & (next_obs[:, 1].abs() <= 0.2)
    return (~stands).to(obs.dtype)


def inverted_double_pendulum_reward(
    obs: Tensor, action: Tensor, next_obs: Tensor, *, healthy_reward: float = 10.0
) -> Tensor:
    """Return InvertedDoublePendulum-v5's reward: `healthy_reward` while it stands, minus two penalties.

    Exact to about 1e-4 below 10 rad/s. The environment itself uses the tip at the last stage of the
    integration, and velocities that are not clipped to 10 rad/s.
    """
    x, y = _double_pendulum_tip(next_obs)
    distance_penalty = 0.01 * x.square() + (y - 2).square()
    velocity_penalty = 1e-3 * next_obs[:, 6].square() + 5e-3 * next_obs[:, 7].square()
    stands = 1 - inverted_double_pendulum_is_done(obs, action, next_obs)
    return healthy_reward * stands - distance_penalty - velocity_penalty


def inverted_double_pendulum_is_done(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return 1.0 where InvertedDoublePendulum-v5's tip is at most 1 m high."""
    return (_double_pendulum_tip(next_obs)[1] <= 1).to(obs.dtype)


def _double_pendulum_tip(obs: Tensor) -> tuple[Tensor, Tensor]:
    """Return position and height of the tip in meters, shape (B,) each, for two poles of 0.6 m.

    obs = (x, sines of both angles, their cosines, three velocities, a force). The second angle is relative.
    """
    x, sin_1, sin_2, cos_1, cos_2 = obs[:, :5].unbind(1)
    height = 0.6 * (cos_1 + cos_1 * cos_2 - sin_1 * sin_2)
    return x + 0.6 * (sin_1 + sin_1 * cos_2 + cos_1 * sin_2), height


def reacher_reward(
    obs: Tensor,
    action: Tensor,
    next_obs: Tensor,
    *,
    reward_dist_weight: float = 1.0,
    reward_control_weight: float = 1.0,
) -> Tensor:
    """Return Reacher-v5's reward: minus the distance to the target, minus the cost of the torque.

    Elements 8 and 9 of obs are the vector from target to fingertip.
    """
    cost = reward_control_weight * action.square().sum(1)
    return -reward_dist_weight * _length(next_obs[:, 8:10]) - cost


def pusher_reward(
    obs: Tensor,
    action: Tensor,
    next_obs: Tensor,
    *,
    reward_near_weight: float = 0.5,
    reward_dist_weight: float = 1.0,
    reward_control_weight: float = 0.1,
) -> Tensor:
    """Return Pusher-v5's reward: minus the distances tip-object and object-goal, and the cost of the torque.

    The last nine elements of obs are the positions of fingertip, object and goal.
    """
    tip, pushed, goal = next_obs[:, 14:17], next_obs[:, 17:20], next_obs[:, 20:23]
    near, distance = _length(pushed - tip), _length(pushed - goal)
    cost = reward_control_weight * action.square().sum(1)
    return -reward_near_weight * near - reward_dist_weight * distance - cost


def _length(vectors: Tensor) -> Tensor:
    """Return Euclidean lengths, from shape (B, N) to (B,)."""
    return vectors.square().sum(1).sqrt()


def hopper_is_done(
    obs: Tensor,
    action: Tensor,
    next_obs: Tensor,
    *,
    terminate_when_unhealthy: bool = True,
    healthy_state_range: Sequence[float] = (-100.0, 100.0),
    healthy_z_range: Sequence[float] = (0.7, math.inf),
    healthy_angle_range: Sequence[float] = (-0.2, 0.2),
) -> Tensor:
    """Return 1.0 where Hopper-v5 is not healthy; obs = (z, angle, ...).

    The environment also ends if a velocity reaches 100, which obs does not show because it is clipped to 10.
    """
    healthy = _within(next_obs[:, 0], healthy_z_range) & _within(next_obs[:, 1], healthy_angle_range)
    healthy &= _within(next_obs[:, 1:], healthy_state_range).all(1)
    return _unhealthy(obs, healthy, terminate_when_unhealthy)


def walker2d_is_done(
    obs: Tensor,
    action: Tensor,
    next_obs: Tensor,
    *,
    terminate_when_unhealthy: bool = True,
    healthy_z_range: Sequence[float] = (0.8, 2.0),
    healthy_angle_range: Sequence[float] = (-1.0, 1.0),
) -> Tensor:
    """Return 1.0 where Walker2d-v5 is not healthy; obs = (z, angle, ...)."""
    healthy = _within(next_obs[:, 0], healthy_z_range) & _within(next_obs[:, 1], healthy_angle_range)
    return _unhealthy(obs, healthy, terminate_when_unhealthy)


def ant_is_done(
    obs: Tensor,
    action: Tensor,
    next_obs: Tensor,
    *,
    terminate_when_unhealthy: bool = True,
    healthy_z_range: Sequence[float] = (0.2, 1.0),
) -> Tensor:
    """Return 1.0 where Ant-v5 is not healthy; positions and velocities are the first 27 elements."""
    low, high = healthy_z_range
    healthy = next_obs[:, :27].isfinite().all(1) & (next_obs[:, 0] >= low) & (next_obs[:, 0] <= high)
    return _unhealthy(obs, healthy, terminate_when_unhealthy)


def humanoid_is_done(
    obs: Tensor,
    action: Tensor,
    next_obs: Tensor,
    *,
    terminate_when_unhealthy: bool = True,
    healthy_z_range: Sequence[float] = (1.0, 2.0),
) -> Tensor:
    """Return 1.0 where Humanoid-v5 is not healthy."""
    return _unhealthy(obs, _within(next_obs[:, 0], healthy_z_range), terminate_when_unhealthy)


def _within(values: Tensor, limits: Sequence[float]) -> Tensor:
    """Return where values lie between two limits; NaN never does."""
    low, high = limits
    return (values > low) & (values < high)


def _unhealthy(obs: Tensor, healthy: Tensor, terminate: bool) -> Tensor:
    return (~healthy).to(obs.dtype) if terminate else torch.zeros_like(obs[:, 0])
