"""An environment of one's own, from a class to a trained policy, without a registered id or a file."""

# %% The environment: keep the level of a tank at its target.
from typing import Any

import gymnasium as gym
import numpy as np

from mbpo_cli import evaluation_of, load, make_config, train


class Tank(gym.Env[Any, Any]):
    """A tank with a valve for the inflow; observes level and target in meters."""

    def __init__(self, outflow: float = 0.3) -> None:
        self.observation_space = gym.spaces.Box(0.0, 2.0, (2,), np.float32)
        self.action_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.outflow, self.state = outflow, np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Draw level and target."""
        super().reset(seed=seed)  # seeds self.np_random
        self.state = self.np_random.uniform(0.2, 1.8, 2)
        return self.state.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Fill for 0.2 s; the outflow grows with the square root of the level."""
        level, target = self.state
        level += 0.2 * (float(action[0]) - self.outflow * level**0.5)
        self.state = np.clip([level, target], 0.0, 2.0)
        return self.state.astype(np.float32), -abs(level - target), False, False, {}


def make_env(outflow: float = 0.3) -> gym.Env[Any, Any]:
    """Make a tank whose episodes end after 50 steps."""
    return gym.wrappers.TimeLimit(Tank(outflow), 50)


# %% Train. make_config sees the sizes of the spaces, from which many values follow.
RUN = "outputs/examples/tank"
config = make_config("agent=sac", "env.name=tank", "trainer.num_env_steps=600", env=make_env)
train(config, RUN, env=make_env)

# %% Evaluate it, also in a tank that it has not seen.
for outflow in (0.3, 0.6):
    trained = load(RUN, env=lambda outflow=outflow: make_env(outflow))
    print(f"outflow {outflow}: return {evaluation_of(trained).return_mean:.1f}")
