"""The learned model of a run as a Gymnasium vector environment: MATLAB's rlNeuralNetworkEnvironment.

Any program that trains in vector environments can train in it. Knows a model and where episodes start; does
not know the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from mbpo_cli.build import build_env
from mbpo_cli.envs.environment import Environment
from mbpo_cli.envs.functions import EnvSource
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.regions import PlausibleRange, plausible_range
from mbpo_cli.nn.seeding import torch_seed
from mbpo_cli.trained.load import Trained, load
from mbpo_cli.types import SpaceSpec, Transitions

Starts = Callable[[int, torch.Generator], Tensor]
Flags = NDArray[np.bool_]
Observations = NDArray[np.float32]


class LearnedVectorEnv(VectorEnv[Observations, NDArray[Any], NDArray[Any]]):
    """Environments side by side whose steps are predicted by the learned model, all in one batch.

    Observations are flat, float32 of shape (num_envs, O), and not limited to the bounds of the real
    environment; actions are the real environment's own. An episode ends when the model predicts termination
    (terminated), at the time limit (truncated), or at a prediction that is not plausible. Such a prediction
    is discarded: the observation stays the same, the reward is 0, the episode is truncated, and
    `infos["implausible"]` is true. `reset(options={"obs": ...})` starts episodes from given observations,
    shape (num_envs, O).

    All three autoreset modes behave as in Gymnasium's SyncVectorEnv.

    Args:
        model: The model, on the CPU. With `member`, its elites are replaced by that member.
        spaces: The spaces of the real environment.
        action_space: The action space of the real environment.
        starts: Draws the given number n of first observations, shape (n, O), from a random stream.
        num_envs: The number of environments.
        member: The transition function that predicts; None uses a random elite at each step, as rollouts do.
        max_steps: The time limit; None sets none.
        plausible: The range of plausible predictions; None allows every finite one.
        autoreset_mode: When the next episode starts after one has ended.
    """

    def __init__(
        self,
        model: EnvironmentModel,
        spaces: SpaceSpec,
        action_space: gym.Space[Any],
        starts: Starts,
        num_envs: int = 1,
        *,
        member: int | None = None,
        max_steps: int | None = None,
        plausible: PlausibleRange | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        if member is not None:
            num_members = model.transition.network.num_members
            if not 0 <= member < num_members:
                raise ConfigError(f"member={member}: must be from 0 to {num_members - 1}")
            model.transition.elites = torch.tensor([member])
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": autoreset_mode, "render_modes": []}
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (spaces.obs_size,), np.float32)
        self.single_action_space = action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._model, self._actions, self._starts = model, spaces.actions, starts
        self._max_steps = torch.inf if max_steps is None else max_steps
        self._plausible, self._mode = plausible, autoreset_mode
        self._stream = torch.Generator()
        self._stream.seed()
        self._obs = torch.zeros(num_envs, spaces.obs_size)
        self._steps = torch.zeros(num_envs, dtype=torch.long)
        self._ended = torch.zeros(num_envs, dtype=torch.bool)
        self._was_reset = False

    @classmethod
    def from_run(
        cls,
        path: str | Path,
        num_envs: int = 1,
        *,
        best: bool = False,
        trust: Sequence[str] = (),
        env: EnvSource | None = None,
        member: int | None = None,
        starts: Literal["experience", "resets"] = "experience",
        max_steps: int | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> LearnedVectorEnv:
        """Make environments of the model of a run, which may still be in progress.

        Predictions must be plausible as in the run's rollouts (`max_departure`). `best`, `trust` and
        `env` choose what to load as in `load`; `max_steps` replaces the time limit of the real environment.

        Episodes start where the run's own did, as far as its replay buffer goes back (`starts="experience"`),
        or where the real environment starts them (`"resets"`), which is then reset for each episode.

        Raises:
            ConfigError: There is no such run, it has no model, or no episode starts in its replay buffer.
            NoUsableCheckpoint: Nothing that it has saved is usable.
        """
        trained = load(Path(path), best, trust, env=env)
        model, experience = trained.model(), trained.experience()
        real = build_env(trained.config)
        if starts == "experience":
            real.close()
            draw = partial(_drawn, _recorded_starts(trained, experience))
        else:
            draw = partial(_reset, real)
        options = trained.config.mbpo.model_rollout_options
        return cls(
            model,
            trained.spaces,
            real.action_space,
            draw,
            num_envs,
            member=member,
            max_steps=real.max_steps if max_steps is None else max_steps,
            plausible=plausible_range(model, experience, options.max_departure),
            autoreset_mode=autoreset_mode,
        )

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start an episode in each environment, or in those of `options["reset_mask"]`; see the class."""
        entropy = [number for number in np.ravel(np.asarray(seed, dtype=object)) if number is not None]
        if entropy:  # one stream serves all environments
            self._stream.manual_seed(torch_seed(np.random.SeedSequence(entropy)))
        options = options or {}
        mask = torch.from_numpy(np.asarray(options.get("reset_mask", [True] * self.num_envs), dtype=np.bool_))
        self._start(mask)
        self._was_reset = True
        if "obs" in options:
            chosen = torch.as_tensor(np.asarray(options["obs"], dtype=np.float32)).reshape(self._obs.shape)
            self._obs[mask] = chosen[mask]
        return self._obs.numpy().copy(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Predict one step of each environment, from the real environment's own actions.

        Raises:
            ResetNeeded: An episode has not started, and the autoreset mode does not start it.
        """
        starting = self._ended & (self._mode == AutoresetMode.NEXT_STEP)
        if not self._was_reset or bool((self._ended & ~starting).any()):
            raise gym.error.ResetNeeded("call reset before the first step, and for episodes that have ended")
        with torch.no_grad():
            predicted = self._model.step(self._obs, self._scaled(actions), self._stream)
        implausible = ~self._is_plausible(predicted) & ~starting
        kept = ~implausible & ~starting
        self._obs = torch.where(kept[:, None], predicted.next_obs, self._obs)
        self._steps += 1
        terminated = kept & (predicted.terminated > 0)
        truncated = implausible | (kept & (self._steps >= self._max_steps))
        rewards = torch.where(kept, predicted.reward, 0.0).double().numpy()
        infos: dict[str, Any] = {"implausible": implausible.numpy()}
        infos["_implausible"] = np.ones(self.num_envs, np.bool_)
        self._start(starting)
        self._ended = terminated | truncated
        if self._mode == AutoresetMode.SAME_STEP and bool(self._ended.any()):
            ended = self._ended.numpy()
            final = np.full(self.num_envs, None, dtype=object)  # as in Gymnasium
            for row in np.flatnonzero(ended):
                final[row] = self._obs[row].numpy().copy()
            infos |= {"final_obs": final, "_final_obs": ended, "final_info": {}, "_final_info": ended}
            self._start(self._ended)
        return self._obs.numpy().copy(), rewards, terminated.numpy(), truncated.numpy(), infos

    def _start(self, mask: Tensor) -> None:
        count = int(mask.sum())
        if count > 0:
            self._obs[mask] = self._starts(count, self._stream)
        self._steps[mask] = 0
        self._ended = self._ended & ~mask

    def _scaled(self, actions: NDArray[Any]) -> Tensor:
        if isinstance(self.single_action_space, gym.spaces.Discrete):
            return self._actions.from_env(torch.as_tensor(np.asarray(actions, dtype=np.int64)))
        flat = np.asarray(actions, dtype=np.float32).reshape(self.num_envs, -1)
        return self._actions.from_env(torch.as_tensor(flat))

    def _is_plausible(self, predicted: Transitions) -> Tensor:
        if self._plausible is not None:
            return self._plausible.contains(predicted)
        return predicted.next_obs.isfinite().all(1) & predicted.reward.isfinite()


def first_observations(experience: Transitions, num_envs: int, is_complete: bool) -> Tensor:
    """Return the first observations of the episodes in an experience, oldest first, shape (n, O).

    They are those to which no earlier step led. With `num_envs` environments side by side, the last step of
    each is fewer than 2 `num_envs` rows back. Unless the experience is complete, with nothing overwritten,
    it is not known what led to the oldest rows.
    """
    reach = min(2 * num_envs, len(experience))
    follows = torch.zeros(len(experience), dtype=torch.bool)
    for back in range(1, reach):
        follows[back:] |= (experience.obs[back:] == experience.next_obs[:-back]).all(1)
    if not is_complete:
        follows[: reach - 1] = True
    return experience.obs[~follows]


def _reset(env: Environment, count: int, stream: torch.Generator) -> Tensor:
    """Draw first observations by resetting the real environment."""
    seeds = torch.randint(2**31, (count,), generator=stream)
    return torch.stack([env.reset(int(seed)) for seed in seeds])


def _drawn(rows: Tensor, count: int, stream: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (count,), generator=stream)]


def _recorded_starts(trained: Trained, experience: Transitions) -> Tensor:
    """Return the first observations in the experience of a run."""
    assert trained.checkpoint is not None
    is_complete = len(experience) == trained.checkpoint.step
    first = first_observations(experience, trained.config.env.num_envs, is_complete)
    if len(first) == 0:
        raise ConfigError(f"{trained.path}: no episode starts in its replay buffer; use starts='resets'")
    return first
