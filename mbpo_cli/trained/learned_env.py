"""The learned model of a run as a vector environment of Gymnasium: MATLAB's rlNeuralNetworkEnvironment.

Any program that trains in vector environments can train in it. Knows a model and where episodes begin; does
not know who acts.
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
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.rollouts import PlausibleRange
from mbpo_cli.seeding import torch_seed
from mbpo_cli.trained.load import Trained, load
from mbpo_cli.types import SpaceSpec, Transitions

Starts = Callable[[int, torch.Generator], Tensor]
Flags = NDArray[np.bool_]
Observations = NDArray[np.float32]


class LearnedVectorEnv(VectorEnv[Observations, NDArray[Any], NDArray[Any]]):
    """Environments side by side whose steps the learned model predicts, all in one batch.

    Observations are flat, float32 of shape (num_envs, O), and not held to the bounds that the real
    environment's have; actions are the real environment's own. An episode ends where the model says so
    (terminated), at the time limit (truncated), or where a prediction is not plausible: that one is dropped,
    the last observation stays with a reward of 0, and the episode is truncated, which
    `infos["implausible"]` tells. `reset(options={"obs": ...})` begins episodes with chosen observations,
    shape (num_envs, O).

    All three autoreset modes of Gymnasium work as they do in its SyncVectorEnv.
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
        """Make environments of a model.

        Args:
            model: The model, on the CPU; its elites become the chosen member.
            spaces: The spaces of the real environment.
            action_space: The real environment's space of actions.
            starts: Draws so many first observations, shape (n, O), from a random stream.
            num_envs: How many environments there are.
            member: The transition function that predicts; None takes a random elite at each step, as
                rollouts do.
            max_steps: The time limit; None for none.
            plausible: What a prediction may be; None allows every finite one.
            autoreset_mode: What happens to an episode that has ended.

        Raises:
            ConfigError: There is no such member.
        """
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
        """Make environments of what a run has learned, finished or not.

        Predictions are plausible as in the run's rollouts (`max_departure`).

        Args:
            path: The run's directory.
            num_envs: How many environments there are.
            best: Take the checkpoint of the best evaluation instead of the newest.
            trust: Packages outside of this one from which the run's configuration may name things.
            member: The transition function that predicts; None takes a random elite at each step.
            starts: Where episodes begin: where the run's own episodes did, as far as its experience tells,
                or where the real environment does, which is reset for each of them.
            max_steps: The time limit; None for the real environment's.
            autoreset_mode: What happens to an episode that has ended.

        Raises:
            ConfigError: There is no such run, it has no model, or no episode begins in its experience.
            NoUsableCheckpoint: What it has kept cannot be used.
        """
        trained = load(Path(path), best, trust)
        model, experience = trained.model(), trained.experience()
        env = build_env(trained.config)
        plausible, departure = None, trained.config.mbpo.model_rollout_options.max_departure
        if departure is not None:
            plausible = PlausibleRange(experience, departure, model.knows_reward)

        if starts == "experience":
            env.close()

        def reset(count: int, stream: torch.Generator) -> Tensor:
            seeds = torch.randint(2**31, (count,), generator=stream)
            return torch.stack([env.reset(int(seed)) for seed in seeds])

        return cls(
            model,
            trained.spaces,
            env.action_space,
            reset if starts == "resets" else _drawn_from(_own_starts(trained, experience)),
            num_envs,
            member=member,
            max_steps=env.max_steps if max_steps is None else max_steps,
            plausible=plausible,
            autoreset_mode=autoreset_mode,
        )

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin an episode in each environment, or in those of `options["reset_mask"]`; see the class."""
        entropy = [number for number in np.ravel(np.asarray(seed, dtype=object)) if number is not None]
        if entropy:  # one stream serves all environments
            self._stream.manual_seed(torch_seed(np.random.SeedSequence(entropy)))
        options = options or {}
        mask = torch.ones(self.num_envs, dtype=torch.bool)
        if "reset_mask" in options:
            mask = torch.from_numpy(np.asarray(options["reset_mask"], dtype=np.bool_))
        self._begin(mask)
        self._was_reset = True
        if "obs" in options:
            chosen = torch.as_tensor(np.asarray(options["obs"], dtype=np.float32)).reshape(self._obs.shape)
            self._obs[mask] = chosen[mask]
        return self._shown(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Predict one step of each environment, from the real environment's own actions.

        Raises:
            ResetNeeded: An episode has not begun, and this mode begins none by itself.
        """
        begins = torch.zeros_like(self._ended)
        if self._mode == AutoresetMode.NEXT_STEP:
            begins = self._ended.clone()
        if not self._was_reset or bool((self._ended & ~begins).any()):
            raise gym.error.ResetNeeded("an episode has not begun: call reset first, for all that have ended")
        with torch.no_grad():
            predicted = self._model.step(self._obs, self._scaled(actions), self._stream)
        kept = self._is_plausible(predicted)
        self._obs = torch.where(kept[:, None], predicted.next_obs, self._obs)
        self._steps += 1
        terminated = kept & (predicted.terminated > 0) & ~begins
        at_limit = self._steps >= self._max_steps if self._max_steps is not None else begins
        truncated = (~kept | at_limit) & ~begins
        reward = torch.where(kept & ~begins, predicted.reward, 0.0)
        infos: dict[str, Any] = {
            "implausible": (~kept & ~begins).numpy(),
            "_implausible": np.ones(self.num_envs, np.bool_),
        }
        self._begin(begins)
        self._ended = terminated | truncated
        if self._mode == AutoresetMode.SAME_STEP and bool(self._ended.any()):
            ended = self._ended.numpy().copy()
            shown, final = self._shown(), np.full(self.num_envs, None, dtype=object)  # as in Gymnasium's own
            for row in np.flatnonzero(ended):
                final[row] = shown[row]
            infos |= {"final_obs": final, "_final_obs": ended, "final_info": {}, "_final_info": ended}
            self._begin(self._ended.clone())
        rewards = reward.double().numpy()
        return self._shown(), rewards, terminated.numpy(), truncated.numpy(), infos

    def _begin(self, mask: Tensor) -> None:
        count = int(mask.sum())
        if count > 0:
            self._obs[mask] = self._starts(count, self._stream)
        self._steps[mask] = 0
        self._ended = self._ended & ~mask

    def _shown(self) -> Observations:
        """Return the observations, as a copy that later steps leave alone."""
        shown: Observations = self._obs.numpy().copy()
        return shown

    def _scaled(self, actions: NDArray[Any]) -> Tensor:
        if isinstance(self.single_action_space, gym.spaces.Discrete):
            return self._actions.from_env(torch.as_tensor(np.asarray(actions, dtype=np.int64)))
        flat = np.asarray(actions, dtype=np.float32).reshape(self.num_envs, -1)
        return self._actions.from_env(torch.as_tensor(flat))

    def _is_plausible(self, predicted: Transitions) -> Tensor:
        if self._plausible is not None:
            return self._plausible.contains(predicted)
        return predicted.next_obs.isfinite().all(1) & predicted.reward.isfinite()


def first_observations(experience: Transitions, num_envs: int, is_whole: bool) -> Tensor:
    """Return the observations with which the episodes in an experience began, shape (n, O).

    They are those that no step before has led to. Of `num_envs` environments side by side the last step of
    each lies fewer than 2 `num_envs` rows back.

    Args:
        experience: Real transitions, oldest first.
        num_envs: Environments that they are from.
        is_whole: Whether it is all that there ever was; else nobody knows what led to the oldest.
    """
    reach = min(2 * num_envs, len(experience))
    follows = torch.zeros(len(experience), dtype=torch.bool)
    for back in range(1, reach):
        follows[back:] |= (experience.obs[back:] == experience.next_obs[:-back]).all(1)
    if not is_whole:
        follows[: reach - 1] = True
    return experience.obs[~follows]


def _own_starts(trained: Trained, experience: Transitions) -> Tensor:
    assert trained.checkpoint is not None
    is_whole = len(experience) == trained.checkpoint.step
    starts = first_observations(experience, trained.config.env.num_envs, is_whole)
    if len(starts) == 0:
        raise ConfigError(f"{trained.path}: no episode begins in its experience; use starts='resets'")
    return starts


def _drawn_from(starts: Tensor) -> Starts:
    """Return what draws from first observations, uniformly with replacement."""
    return lambda count, stream: starts[torch.randint(len(starts), (count,), generator=stream)]
