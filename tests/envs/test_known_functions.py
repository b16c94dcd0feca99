"""Known functions against the real environments, and the cart-poles of this package."""

import importlib
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from mbpo_cli.config.compose import make_config
from mbpo_cli.envs import cart_pole
from mbpo_cli.envs.cart_pole import CartPoleContinuous, CartPoleSwingUp, State, euler_step
from mbpo_cli.options import resolve
from tests.conftest import CONF

ENVS: dict[str, dict[str, Any]] = {
    path.stem: vars(make_config(f"env={path.stem}").env)
    for path in sorted((CONF / "env").glob("*.yaml"))
    if path.stem not in ("gym", "dmc")  # these need an id, and have no known functions
}
NEVER = "mbpo_cli.envs.known.never"
KNOWN = {name: env for name, env in ENVS.items() if env["reward_function"] or env["is_done_function"]}
# Known functions also hold for the full observations, which the configuration reduces.
KNOWN |= {f"{name} (all observations)": KNOWN[name] | {"kwargs": None} for name in ("ant", "humanoid")}


def make(env: dict[str, Any], **kwargs: Any) -> gym.Env[Any, Any]:
    if env["module"]:
        importlib.import_module(env["module"])
    return gym.make(env["id"], disable_env_checker=True, **(env["kwargs"] or {}), **kwargs)


def choose(env_id: str, obs: Any, sample: Any) -> Any:
    """Return a random action, or one that adds energy where random ones hardly reach the goal."""
    speed = {"MountainCar": 1, "Acrobot": 5}.get(env_id.split("Continuous")[0].split("-")[0])
    if speed is None:
        return sample
    push = obs[speed] > 0
    return np.array([push * 2 - 1.0], np.float32) if env_id.startswith("MountainCarC") else int(push) * 2


@pytest.mark.parametrize("name", KNOWN)
def test_known_functions_agree_with_the_environment(name: str) -> None:
    """At least 1,000 steps as one float32 batch, with terminal ones if the environment has any."""
    config = KNOWN[name]
    env = make(config)
    env.action_space.seed(0)
    ends, steps, terminals = config["is_done_function"] != NEVER, 0, 0
    rows: list[tuple[Any, ...]] = []
    while steps < 1000 or (ends and terminals < 3 and steps < 5000):
        obs, _ = env.reset(seed=steps)
        over = False
        while not over:
            action = env.action_space.sample()
            if steps % 2:  # every other action is random
                action = choose(config["id"], obs, action)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            rows.append((obs.copy(), action, next_obs.copy(), float(reward), float(terminated)))
            obs, over = next_obs, terminated or truncated
            steps, terminals = steps + 1, terminals + terminated
    env.close()
    obs, action, next_obs, reward, done = (np.array(column) for column in zip(*rows, strict=True))
    batch = (torch.from_numpy(obs).float(), torch.from_numpy(action), torch.from_numpy(next_obs).float())
    assert action.dtype == (np.int64 if action.ndim == 1 else np.float32)
    assert (terminals > 0) == ends
    # The double pendulum takes its tip from the last stage of the integration.
    tolerance = 1e-3 if "double" in name else 1e-4
    if config["is_done_function"]:
        assert torch.equal(resolve(config["is_done_function"])(*batch), torch.from_numpy(done).float())
    if config["reward_function"]:
        known = resolve(config["reward_function"])(*batch)
        torch.testing.assert_close(known, torch.from_numpy(reward).float(), atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("name", ["hopper", "walker2d", "ant", "humanoid"])
def test_healthy_states_agree_with_the_environment(name: str) -> None:
    """States around every limit and NaN anywhere; velocities stay in the range that obs does not clip."""
    robot: Any = make(ENVS[name]).unwrapped
    robot.reset(seed=0)
    rest, rng = robot.data.qpos.copy(), np.random.default_rng(0)
    obs, healthy = [], []
    for row in range(1000):
        robot.data.qpos[:] = rest + rng.normal(size=rest.shape) * rng.choice([0.1, 0.5])
        robot.data.qvel[:] = rng.uniform(-9, 9, robot.data.qvel.shape)
        if row % 10 == 0:
            # Hopper limits angles, too. Positions along the ground, which obs omits, stay finite.
            robot.data.qpos[rng.integers(2, rest.size)] = rng.choice([-101, 101, np.nan])
        if row % 10 == 5:
            robot.data.qvel[rng.integers(robot.data.qvel.size)] = np.nan
        obs.append(robot._get_obs())
        healthy.append(bool(robot.is_healthy))
    assert 100 < sum(healthy) < 900
    next_obs = torch.tensor(np.array(obs), dtype=torch.float32)
    is_done = resolve(ENVS[name]["is_done_function"])(next_obs, torch.zeros(1000, 1), next_obs)
    assert is_done.tolist() == [float(not h) for h in healthy]


# Velocities are unbounded, and actions are scaled by Environment, not by each Gymnasium environment.
@pytest.mark.filterwarnings("ignore:.*A Box observation space m.* value is")
@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend")
@pytest.mark.parametrize("name", ["CartPoleContinuous", "CartPoleSwingUp"])
def test_cart_poles_pass_gymnasiums_environment_checker(name: str) -> None:
    env = gym.make(f"mbpo/{name}-v0")
    check_env(env.unwrapped, skip_render_check=True)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 500
    assert env.action_space == gym.spaces.Box(-10, 10, (1,), np.float32)
    trajectories = []
    for seed in (3, 3, 4):
        first, _ = env.reset(seed=seed)
        trajectories.append([first, *(env.step(np.array([5.0], np.float32))[0] for _ in range(10))])
    assert np.array_equal(trajectories[0], trajectories[1])
    assert not np.array_equal(trajectories[0], trajectories[2])


@pytest.mark.parametrize("seed", range(10))
def test_full_force_equals_gymnasiums_cart_pole(seed: int) -> None:
    ours, theirs = gym.make("mbpo/CartPoleContinuous-v0"), gym.make("CartPole-v1")
    # Both draw their initial states in the same way.
    assert np.array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
    terminated, rng = False, np.random.default_rng(seed)
    while not terminated:
        right = rng.integers(2)
        obs, _, terminated, *_ = ours.step(np.array([10.0 if right else -10.0], np.float32))
        expected, _, expected_end, *_ = theirs.step(right)
        np.testing.assert_allclose(obs, expected, rtol=1e-5, atol=1e-7)
        assert terminated == expected_end


@pytest.mark.parametrize(
    ("state", "reward", "terminated"),
    [
        ((0.0, 0.0, 0.1, 0.0), 1.0, False),
        ((-1.2, 0.0, 0.0, 0.0), 0.75, False),
        ((2.4, 0.0, 0.0, 0.0), 0.5, False),
        ((-2.41, 0.0, 0.0, 0.0), -50.0, True),
        ((0.0, 0.0, -math.radians(11.9), 0.0), 1.0, False),
        ((0.0, 0.0, math.radians(12.1), 0.0), -50.0, True),
    ],
)
def test_a_fall_costs_fifty(state: State, reward: float, terminated: bool) -> None:
    """From rest, the first Euler step changes neither position nor angle."""
    env = CartPoleContinuous()
    env.reset(seed=0)
    env.state = state
    _, got, ended, *_ = env.step(np.zeros(1, np.float32))
    assert got == pytest.approx(reward)
    assert ended == terminated


def test_forces_are_limited() -> None:
    velocities = []
    for force in (10.0, 1000.0):
        env = CartPoleContinuous()
        env.reset(seed=0)
        velocities.append(env.step(np.array([force], np.float32))[0][1])
    assert velocities[0] == velocities[1] > 0.1


def test_swing_up_starts_hanging_and_rewards_upright_and_centered_states() -> None:
    env = CartPoleSwingUp()
    obs, _ = env.reset(seed=0)
    assert obs[2] < -0.99
    for state, reward, terminated in (
        ((0.0, 0.0, 0.0, 0.0), 1.0, False),
        ((0.0, 0.0, math.pi, 0.0), 0.0, False),
        ((2.0, 0.0, 0.0, 0.0), math.exp(-2), False),
        ((2.5, 0.0, 0.0, 0.0), math.exp(-3.125), True),
    ):
        env.state = state
        _, got, ended, *_ = env.step(np.zeros(1, np.float32))
        assert got == pytest.approx(reward, abs=1e-3)
        assert ended == terminated


def energy(state: State) -> float:
    """Kinetic and potential energy in joules of a cart and a uniform pole."""
    _, velocity, angle, angular_velocity = state
    arm, mass = cart_pole.HALF_LENGTH, cart_pole.POLE_MASS
    return (
        0.5 * (cart_pole.CART_MASS + mass) * velocity**2
        + mass * arm * velocity * angular_velocity * math.cos(angle)
        + 0.5 * (4 / 3) * mass * arm**2 * angular_velocity**2
        + mass * cart_pole.GRAVITY * arm * math.cos(angle)
    )


def test_energy_is_conserved_without_force() -> None:
    state: State = (0.0, 0.3, 2.0, -1.0)
    start = energy(state)
    for _ in range(20_000):
        state = euler_step(state, 0.0, 1e-4)
    assert energy(state) == pytest.approx(start, abs=2e-3)
    env = CartPoleSwingUp()
    env.reset(seed=0)
    env.state = (0.0, 0.0, math.pi - 0.5, 0.0)
    hanging = energy((0.0, 0.0, math.pi, 0.0))
    start = energy(env.state) - hanging
    for _ in range(500):
        env.step(np.zeros(1, np.float32))
    swing = energy(env.state) - hanging
    assert 0 < swing < 2 * start, "a pole without force does not swing up"
