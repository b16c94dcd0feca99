"""The learned model of a run as a Gymnasium vector environment: MATLAB's rlNeuralNetworkEnvironment.

Any program that trains in vector environments can train in it. Knows a model and where episodes start; does
not know the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.nn.seeding import torch_seed
from mbpo_cli.rollouts import PlausibleRange, plausible_range
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

    Raises:
        ConfigError: There is no such member.
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
        num_members = model.transition.network.num_members
        if member is not None:
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
        self._max_steps, self._plausible, self._mode = max_steps, plausible, autoreset_mode
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
        member: int | None = None,
        starts: Literal["experience", "resets"] = "experience",
        max_steps: int | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> LearnedVectorEnv:
        """Make environments of the model of a run, which may still be in progress.

        Predictions must be plausible as in the run's rollouts (`max_departure`).

        Args:
            path: The run directory.
            num_envs: The number of environments.
            best: Load the checkpoint of the best evaluation instead of the newest.
            trust: Packages outside this one from which the run's configuration may import.
            member: The transition function that predicts; None uses a random elite at each step.
            starts: Where episodes start: where the run's own did, as far as its replay buffer goes back, or
                where the real environment starts them; it is then reset for each episode.
            max_steps: The time limit; None uses that of the real environment.
            autoreset_mode: When the next episode starts after one has ended.

        Raises:
            ConfigError: There is no such run, it has no model, or no episode starts in its replay buffer.
            NoUsableCheckpoint: Nothing that it has saved is usable.
        """
        trained = load(Path(path), best, trust)
        model, experience = trained.model(), trained.experience()
        options = trained.config.mbpo.model_rollout_options
        env = build_env(trained.config)
        draw = _starts_by_reset(env)
        if starts == "experience":
            env.close()
            draw = _recorded_starts(trained, experience)
        return cls(
            model,
            trained.spaces,
            env.action_space,
            draw,
            num_envs,
            member=member,
            max_steps=env.max_steps if max_steps is None else max_steps,
            plausible=plausible_range(options, experience, model.knows_reward),
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
        mask = torch.ones(self.num_envs, dtype=torch.bool)
        if "reset_mask" in options:
            mask = torch.from_numpy(np.asarray(options["reset_mask"], dtype=np.bool_))
        self._start(mask)
        self._was_reset = True
        if "obs" in options:
            chosen = torch.as_tensor(np.asarray(options["obs"], dtype=np.float32)).reshape(self._obs.shape)
            self._obs[mask] = chosen[mask]
        return self._copy_of_obs(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Predict one step of each environment, from the real environment's own actions.

        Raises:
            ResetNeeded: An episode has not started, and the autoreset mode does not start it.
        """
        starting = torch.zeros_like(self._ended)
        if self._mode == AutoresetMode.NEXT_STEP:
            starting = self._ended.clone()
        if not self._was_reset or bool((self._ended & ~starting).any()):
            raise gym.error.ResetNeeded("call reset before the first step, and for episodes that have ended")
        with torch.no_grad():
            predicted = self._model.step(self._obs, self._scaled(actions), self._stream)
        kept = self._is_plausible(predicted)
        self._obs = torch.where(kept[:, None], predicted.next_obs, self._obs)
        self._steps += 1
        terminated = kept & (predicted.terminated > 0) & ~starting
        at_limit = self._steps >= self._max_steps if self._max_steps is not None else starting
        truncated = (~kept | at_limit) & ~starting
        reward = torch.where(kept & ~starting, predicted.reward, 0.0)
        infos: dict[str, Any] = {
            "implausible": (~kept & ~starting).numpy(),
            "_implausible": np.ones(self.num_envs, np.bool_),
        }
        self._start(starting)
        self._ended = terminated | truncated
        if self._mode == AutoresetMode.SAME_STEP and bool(self._ended.any()):
            ended = self._ended.numpy().copy()
            last, final = self._copy_of_obs(), np.full(self.num_envs, None, dtype=object)  # as in Gymnasium
            for row in np.flatnonzero(ended):
                final[row] = last[row]
            infos |= {"final_obs": final, "_final_obs": ended, "final_info": {}, "_final_info": ended}
            self._start(self._ended.clone())
        rewards = reward.double().numpy()
        return self._copy_of_obs(), rewards, terminated.numpy(), truncated.numpy(), infos

    def _start(self, mask: Tensor) -> None:
        count = int(mask.sum())
        if count > 0:
            self._obs[mask] = self._starts(count, self._stream)
        self._steps[mask] = 0
        self._ended = self._ended & ~mask

    def _copy_of_obs(self) -> Observations:
        obs: Observations = self._obs.numpy().copy()
        return obs

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
    """Return the first observations of the episodes in an experience, shape (n, O).

    They are those to which no earlier step led. With `num_envs` environments side by side, the last step of
    each is fewer than 2 `num_envs` rows back.

    Args:
        experience: Real transitions, oldest first.
        num_envs: The number of environments that they come from.
        is_complete: True if nothing has been overwritten; otherwise what led to the oldest rows is unknown.
    """
    reach = min(2 * num_envs, len(experience))
    follows = torch.zeros(len(experience), dtype=torch.bool)
    for back in range(1, reach):
        follows[back:] |= (experience.obs[back:] == experience.next_obs[:-back]).all(1)
    if not is_complete:
        follows[: reach - 1] = True
    return experience.obs[~follows]


def _starts_by_reset(env: Environment) -> Starts:
    """Return a function that draws first observations by resetting the real environment."""

    def draw(count: int, stream: torch.Generator) -> Tensor:
        seeds = torch.randint(2**31, (count,), generator=stream)
        return torch.stack([env.reset(int(seed)) for seed in seeds])

    return draw


def _recorded_starts(trained: Trained, experience: Transitions) -> Starts:
    """Return a function that draws from the first observations in the experience of a run.

    Raises:
        ConfigError: There is none.
    """
    assert trained.checkpoint is not None
    is_complete = len(experience) == trained.checkpoint.step
    first = first_observations(experience, trained.config.env.num_envs, is_complete)
    if len(first) == 0:
        raise ConfigError(f"{trained.path}: no episode starts in its replay buffer; use starts='resets'")

    def draw(count: int, stream: torch.Generator) -> Tensor:
        return first[torch.randint(len(first), (count,), generator=stream)]

    return draw
