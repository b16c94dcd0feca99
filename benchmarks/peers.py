"""Measures of other libraries: stable-baselines3, sbx and mbrl-lib.

Runs in the environment of `make bench-peers`, where this package is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from benchmarks.sizes import (
    BATCH,
    ELITES,
    ENSEMBLE,
    MODEL_HIDDEN,
    NUM_STARTS,
    NUM_TRAINING,
    NUM_TRANSITIONS,
    POLICY_HIDDEN,
    SPACES,
    UPDATE_SPACES,
    UPDATES_PER_CALL,
)


class SpacesOnly(gym.Env[Any, Any]):
    """An environment with spaces and meaningless transitions."""

    def __init__(self, obs: int, action: int, is_discrete: bool) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs,), np.float32)
        self.action_space = (
            gym.spaces.Discrete(action) if is_discrete else gym.spaces.Box(-1.0, 1.0, (action,), np.float32)
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Return a random observation."""
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        """Return a random observation."""
        return self.observation_space.sample(), 0.0, False, False, {}


def _rows(count: int, obs_size: int, action_size: int) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((count, obs_size), np.float32)
    action = rng.uniform(-1, 1, (count, action_size)).astype(np.float32)
    return obs, action, obs[:, 0], obs + 0.1 * rng.standard_normal(obs.shape, np.float32)


def _trained_by_train(library: Any, name: str) -> Callable[[int], None]:
    obs_size, action_size = UPDATE_SPACES[name]
    is_discrete = name == "dqn"
    model = getattr(library, name.upper())(
        "MlpPolicy",
        SpacesOnly(obs_size, action_size, is_discrete),
        policy_kwargs={"net_arch": list(POLICY_HIDDEN)},
        batch_size=BATCH,
        buffer_size=NUM_TRANSITIONS,
        device="cpu",
    )
    from stable_baselines3.common.logger import Logger

    model.set_logger(Logger(None, []))
    for obs, action, reward, next_obs in zip(*_rows(2_000, obs_size, action_size), strict=True):
        taken = np.array([[0]]) if is_discrete else action[None]
        model.replay_buffer.add(
            obs[None],
            next_obs[None],
            taken,
            reward[None],
            np.array([False]),
            [{"TimeLimit.truncated": False}],
        )

    def work(count: int) -> None:
        # Always the same number of gradient steps, because sbx compiles again for each number.
        for _ in range(max(count // UPDATES_PER_CALL, 1)):
            model.train(gradient_steps=UPDATES_PER_CALL, batch_size=BATCH)

    return work


def stable_baselines3(name: str) -> Callable[[int], None]:
    """Return the work of updating an agent of stable-baselines3."""
    import stable_baselines3

    return _trained_by_train(stable_baselines3, name)


def sbx(name: str) -> Callable[[int], None]:
    """Return the work of updating an agent of sbx, with JIT compilation."""
    import sbx as library

    return _trained_by_train(library, name)


def _mbrl_buffer(count: int) -> Any:
    from mbrl.util import ReplayBuffer

    obs_size, action_size = SPACES
    buffer = ReplayBuffer(max(count, 1), (obs_size,), (action_size,), rng=np.random.default_rng(0))
    obs, action, reward, next_obs = _rows(count, obs_size, action_size)
    no = np.zeros(count, bool)
    buffer.add_batch(obs, action, next_obs, reward, no, no)
    return buffer


def _mbrl_sac() -> Any:
    from mbrl.third_party.pytorch_sac_pranz24.sac import SAC
    from omegaconf import OmegaConf

    arguments = {
        "gamma": 0.99,
        "tau": 0.005,
        "alpha": 0.2,
        "policy": "Gaussian",
        "target_update_interval": 1,
        "automatic_entropy_tuning": True,
        "target_entropy": None,
        "hidden_size": POLICY_HIDDEN[0],
        "device": "cpu",
        "lr": 3e-4,
    }
    return SAC(SPACES[0], gym.spaces.Box(-1.0, 1.0, (SPACES[1],), np.float32), OmegaConf.create(arguments))


def mbrl_update() -> Callable[[int], None]:
    """Return the work of updating mbrl-lib's SAC agent."""
    agent, buffer = _mbrl_sac(), _mbrl_buffer(NUM_TRANSITIONS)

    def work(count: int) -> None:
        for step in range(count):
            agent.update_parameters(buffer, BATCH, step, reverse_mask=True)

    return work


def _mbrl_model() -> Any:
    from mbrl.models import GaussianMLP, OneDTransitionRewardModel

    obs_size, action_size = SPACES
    network = GaussianMLP(
        obs_size + action_size,
        obs_size + 1,
        "cpu",
        num_layers=len(MODEL_HIDDEN),
        ensemble_size=ENSEMBLE,
        hid_size=MODEL_HIDDEN[0],
        propagation_method="random_model",
        learn_logvar_bounds=True,
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    network.set_elite(list(range(ELITES)))
    return OneDTransitionRewardModel(
        network, target_is_delta=True, normalize=True, learned_rewards=True, num_elites=ELITES
    )


def _mbrl_batches(transitions: Any) -> Any:
    from mbrl.util.replay_buffer import BootstrapIterator

    return BootstrapIterator(
        transitions,
        BATCH,
        ENSEMBLE,
        shuffle_each_epoch=True,
        permute_indices=True,
        rng=np.random.default_rng(0),
    )


def mbrl_fit_step() -> Callable[[int], None]:
    """Return the work of gradient steps of the ensemble, including the sampling of batches."""
    from mbrl.models import ModelTrainer

    model, buffer = _mbrl_model(), _mbrl_buffer(NUM_TRANSITIONS)
    transitions = buffer.get_all()
    model.update_normalizer(transitions)
    model.train()
    trainer = ModelTrainer(model, optim_lr=1e-3)
    batches = _mbrl_batches(transitions)

    def work(count: int) -> None:
        while count > 0:
            for batch in batches:
                if batch.obs.shape[1] < BATCH:  # (members, rows, elements)
                    continue
                model.update(batch, trainer.optimizer)
                count -= 1
                if count == 0:
                    break

    return work


def mbrl_fit_epoch() -> Callable[[int], None]:
    """Return the work of epochs of the ensemble's fit, each with the hold-out loss."""
    from mbrl.models import ModelTrainer
    from mbrl.util.replay_buffer import TransitionIterator

    model, buffer = _mbrl_model(), _mbrl_buffer(NUM_TRANSITIONS)
    transitions = buffer.get_all()
    model.update_normalizer(transitions)
    trainer = ModelTrainer(model, optim_lr=1e-3)
    training = _mbrl_batches(transitions[:NUM_TRAINING])
    held_out = TransitionIterator(transitions[NUM_TRAINING:], BATCH)

    def work(count: int) -> None:
        for _ in range(count):
            trainer.train(training, evaluate=False, num_epochs=1, silent=True)
            trainer.evaluate(held_out)

    return work


def mbrl_rollouts() -> Callable[[int], None]:
    """Return the work of one step of many rollouts: policy, one elite per row, storing."""
    from mbrl.env.termination_fns import no_termination
    from mbrl.models import ModelEnv
    from mbrl.planning.sac_wrapper import SACAgent

    model = _mbrl_model()
    starts = _mbrl_buffer(NUM_STARTS)
    model.update_normalizer(starts.get_all())
    obs = starts.get_all().obs
    environment = ModelEnv(
        SpacesOnly(*SPACES, False), model, no_termination, None, generator=torch.Generator().manual_seed(0)
    )
    agent, buffer = SACAgent(_mbrl_sac()), _mbrl_buffer(4 * NUM_STARTS)

    def work(count: int) -> None:
        for _ in range(count):
            state = environment.reset(initial_obs_batch=obs, return_as_np=True)
            action = agent.act(obs, sample=True, batched=True)
            next_obs, reward, done, _ = environment.step(action, state, sample=True)
            no = np.zeros(len(obs), bool)
            buffer.add_batch(obs, action, next_obs, reward[:, 0], done[:, 0], no)

    return work


def mbrl_replay_insert() -> Callable[[int], None]:
    """Return the work of storing single transitions."""
    buffer = _mbrl_buffer(NUM_TRANSITIONS)
    obs, action, reward, next_obs = (part[0] for part in _rows(1, *SPACES))

    def work(count: int) -> None:
        for _ in range(count):
            buffer.add(obs, action, next_obs, reward, False, False)

    return work


def mbrl_replay_sample(num_stored: str) -> Callable[[int], None]:
    """Return the work of sampling mini-batches from `num_stored` transitions."""
    buffer = _mbrl_buffer(int(num_stored))

    def work(count: int) -> None:
        for _ in range(count):
            buffer.sample(BATCH)

    return work


MEASURES = {
    "stable_baselines3": stable_baselines3,
    "sbx": sbx,
    "mbrl_update": mbrl_update,
    "mbrl_fit_step": mbrl_fit_step,
    "mbrl_fit_epoch": mbrl_fit_epoch,
    "mbrl_rollouts": mbrl_rollouts,
    "mbrl_replay_insert": mbrl_replay_insert,
    "mbrl_replay_sample": mbrl_replay_sample,
}
