"""Whole runs of other libraries: `python -m benchmarks.peers_jobs JOB SEED`; one JSON line per evaluation.

Runs in the environment of `make bench-peers`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

START = time.perf_counter()


def report(steps: int, mean_return: float) -> None:
    """Print an evaluation with the seconds since this module was imported."""
    line = {"steps": steps, "return": float(mean_return), "seconds": time.perf_counter() - START}
    print(json.dumps(line), flush=True)


def box(low: list[float], high: list[float], shape: list[int]) -> gym.spaces.Box:
    """Build a Box from lists, which current Gymnasium does not accept."""
    return gym.spaces.Box(np.array(low, np.float32), np.array(high, np.float32), tuple(shape))


def mbrl_cartpole(seed: int) -> None:
    """Train mbrl-lib's MBPO on its continuous cart-pole, with the configuration of its examples."""
    import mbrl
    import mbrl.algorithms.mbpo as mbpo
    from mbrl.env.termination_fns import cartpole
    from omegaconf import OmegaConf

    import benchmarks.cart_pole  # noqa: F401 - registers the environment

    folder = Path(mbrl.__file__).parent / "examples" / "conf"
    config = OmegaConf.create(
        {"seed": seed, "device": "cpu", "log_frequency_agent": 1000, "debug_mode": False}
    )
    for group, name in (
        ("algorithm", "mbpo"),
        ("dynamics_model", "gaussian_mlp_ensemble"),
        ("overrides", "mbpo_cartpole"),
    ):
        config[group] = OmegaConf.load(folder / group / f"{name}.yaml")
    config.algorithm.agent.action_space._target_ = "benchmarks.peers_jobs.box"
    config.dynamics_model._recursive_ = False  # it builds its own activation
    config.overrides.num_steps = 2_000
    config.overrides.num_sac_updates_per_step = 16
    evaluations = 0

    def evaluate(env: Any, agent: Any, num_episodes: int, recorder: Any) -> float:
        nonlocal evaluations
        value = float(original(env, agent, num_episodes, recorder))
        evaluations += 1
        report(evaluations * config.overrides.epoch_length, value)
        return value

    original, mbpo.evaluate = mbpo.evaluate, evaluate

    # Its own environment lacks an argument that current Gymnasium passes; this one is the same task.
    envs = [gym.make("benchmarks/CartPole-v0") for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder_of_run:
        mbpo.train(*envs, cartpole, config, silent=True, work_dir=folder_of_run)


def sb3_pendulum(seed: int) -> None:
    """Train SAC of stable-baselines3 on Pendulum, with the values of its zoo."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy

    class Evaluate(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            if self.num_timesteps % 250 != 0:
                return True
            env = gym.make("Pendulum-v1")
            env.reset(seed=1)
            mean, _ = evaluate_policy(self.model, env, n_eval_episodes=10, warn=False)
            report(self.num_timesteps, float(np.mean(mean)))
            return True

    agent = SAC("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=seed, device="cpu")
    agent.learn(10_000, callback=Evaluate())


JOBS = {"mbrl_cartpole": mbrl_cartpole, "sb3_pendulum": sb3_pendulum}

if __name__ == "__main__":
    torch.set_num_threads(1)
    JOBS[sys.argv[1]](int(sys.argv[2]))
