"""Cart-poles with a continuous force: balancing, as in MATLAB's predefined environment, and swing-up.

Importing this module registers both with Gymnasium. Does not know agents, models or tensors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

GRAVITY = 9.8  # m/s^2
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
HALF_LENGTH = 0.5  # m, from the joint to the pole's center of mass
MAX_FORCE = 10.0  # N
STEP_SECONDS = 0.02
TRACK_LIMIT = 2.4  # m, from the center to either end of the track
ANGLE_LIMIT = math.radians(12)  # beyond this, the pole has fallen
FALL_REWARD = -50.0

State = tuple[float, float, float, float]
"""Position (m), velocity (m/s), angle from upright (rad) and angular velocity (rad/s)."""
Observation = NDArray[np.float32]


def euler_step(state: State, force: float, seconds: float) -> State:
    """Advance a cart-pole under a horizontal force (N, positive to the right) by one step of Euler's method.

    The pole is uniform, whose moment of inertia gives the 4/3, and there is no friction.

    Source: Florian 2007, "Correct equations for the dynamics of the cart-pole system", eq. 23 and 24
    without friction, with the constants of Gymnasium's CartPole-v1.
    """
    position, velocity, angle, angular_velocity = state
    mass, sine, cosine = CART_MASS + POLE_MASS, math.sin(angle), math.cos(angle)
    push = (force + POLE_MASS * HALF_LENGTH * angular_velocity**2 * sine) / mass
    inertia = HALF_LENGTH * (4 / 3 - POLE_MASS * cosine**2 / mass)
    angular_acceleration = (GRAVITY * sine - push * cosine) / inertia
    acceleration = push - POLE_MASS * HALF_LENGTH * angular_acceleration * cosine / mass
    return (
        position + seconds * velocity,
        velocity + seconds * acceleration,
        angle + seconds * angular_velocity,
        angular_velocity + seconds * angular_acceleration,
    )


class _CartPole(gym.Env[Observation, NDArray[np.float32]], ABC):
    """The common base of both tasks: spaces, dynamics, and a start near a given angle."""

    obs_limits: tuple[float, ...]
    start_angle: float
    substeps: int

    def __init__(self) -> None:
        limits = np.array(self.obs_limits, np.float32)
        self.observation_space = gym.spaces.Box(-limits, limits, dtype=np.float32)
        self.action_space = gym.spaces.Box(-MAX_FORCE, MAX_FORCE, (1,), np.float32)
        self.state: State = (0.0, 0.0, self.start_angle, 0.0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start within 0.05 (m, m/s, rad, rad/s) of rest, uniformly; `options` has no effect."""
        super().reset(seed=seed)
        position, velocity, angle, angular_velocity = self.np_random.uniform(-0.05, 0.05, 4).tolist()
        self.state = (position, velocity, self.start_angle + angle, angular_velocity)
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply a force in newtons, shape (1,), for 0.02 s."""
        force = min(max(float(action[0]), -MAX_FORCE), MAX_FORCE)
        for _ in range(self.substeps):
            self.state = euler_step(self.state, force, STEP_SECONDS / self.substeps)
        reward, terminated = self._outcome()
        return self._observation(), reward, terminated, False, {}

    @abstractmethod
    def _observation(self) -> Observation:
        """Return the observation of the present state."""

    @abstractmethod
    def _outcome(self) -> tuple[float, bool]:
        """Return the reward of the present state, and True if it is terminal."""


class CartPoleContinuous(_CartPole):
    """Balance an upright pole: CartPole-v1 with any force between -10 and 10 N.

    Observation: position (m), velocity (m/s), angle (rad, 0 = upright), angular velocity (rad/s).
    Reward: 0.5 + 0.5 (1 - |x| / 2.4) in the next state, or -50 if the pole has fallen (more than 12 degrees
    from upright) or the cart has left the track (|x| > 2.4 m), which ends the episode.
    """

    # Twice the limits, as in CartPole-v1, because the state that ends an episode lies outside of them.
    obs_limits = (2 * TRACK_LIMIT, math.inf, 2 * ANGLE_LIMIT, math.inf)
    start_angle = 0.0
    substeps = 1

    def _observation(self) -> Observation:
        return np.array(self.state, np.float32)

    def _outcome(self) -> tuple[float, bool]:
        position, _, angle, _ = self.state
        fallen = abs(position) > TRACK_LIMIT or abs(angle) > ANGLE_LIMIT
        return FALL_REWARD if fallen else 0.5 + 0.5 * (1 - abs(position) / TRACK_LIMIT), fallen


class CartPoleSwingUp(_CartPole):
    """Swing a hanging pole up and hold it upright in the middle of the track.

    Observation: position (m), velocity (m/s), cosine and sine of the angle (0 = upright), angular velocity
    (rad/s). Reward: (1 + cos angle) / 2 * exp(-x^2 / 2) in the next state, between 0 and 1. Leaving the track
    (|x| > 2.4 m) ends the episode.
    """

    obs_limits = (2 * TRACK_LIMIT, math.inf, 1, 1, math.inf)
    start_angle = math.pi
    # With steps of 0.02 s, Euler's method would add energy to a swinging pole.
    substeps = 10

    def _observation(self) -> Observation:
        position, velocity, angle, angular_velocity = self.state
        return np.array([position, velocity, math.cos(angle), math.sin(angle), angular_velocity], np.float32)

    def _outcome(self) -> tuple[float, bool]:
        position, _, angle, _ = self.state
        return (1 + math.cos(angle)) / 2 * math.exp(-(position**2) / 2), abs(position) > TRACK_LIMIT


for _name in ("CartPoleContinuous", "CartPoleSwingUp"):
    gym.register(f"mbpo/{_name}-v0", f"{__name__}:{_name}", max_episode_steps=500)
