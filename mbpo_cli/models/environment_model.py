"""The environment model: N_M transition functions, a reward function and an is-done function.

Like MATLAB's rlNeuralNetworkEnvironment, but stateless: a step maps observations to transitions. Does not
know agents or buffers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mbpo_cli.models.function import LearnedFunction
from mbpo_cli.models.is_done import LearnedIsDone
from mbpo_cli.models.known import Known
from mbpo_cli.models.reward import LearnedReward
from mbpo_cli.models.transition import LearnedTransition
from mbpo_cli.types import Accelerate, Metrics, Transitions


class Outcome(Protocol):
    """A reward or is-done function, learned or known."""

    def predict(self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator) -> Tensor:
        """Map (B, O), (B, A) in [-1, 1], and (B, O) to shape (B,)."""


class Groups:
    """A random division of N rows into groups whose sizes differ by at most one.

    Attributes:
        rows_MG: The rows of each group. Groups are padded to equal size by repeated rows.
    """

    def __init__(self, num_rows: int, num_groups: int, generator: torch.Generator) -> None:
        device = generator.device
        self._order = torch.randperm(num_rows, generator=generator, device=device)
        group_size = math.ceil(num_rows / num_groups)
        padded = self._order[torch.arange(group_size * num_groups, device=device) % num_rows]
        self.rows_MG = padded.view(group_size, num_groups).T

    def joined(self, values_MG: Tensor) -> Tensor:
        """Return values by group, shape (M, G, ...), in the order of the rows, without those of padding."""
        values = values_MG.transpose(0, 1).flatten(0, 1)[: len(self._order)]
        joined = torch.empty_like(values)
        joined[self._order] = values
        return joined


@dataclass
class EnvironmentModel:
    """Predicts the transitions of the environment."""

    transition: LearnedTransition
    reward: Outcome
    is_done: Outcome

    @property
    def learned(self) -> dict[str, LearnedFunction]:
        """The functions with a learning rate above 0, in the order of their training."""
        return {name: part for name, part in self.functions.items() if part.is_trained}

    @property
    def known(self) -> dict[str, Known]:
        """The known functions, by name."""
        parts = {"reward": self.reward, "is_done": self.is_done}
        return {name: part for name, part in parts.items() if isinstance(part, Known)}

    @property
    def knows_reward(self) -> bool:
        """True if rewards are exact."""
        return "reward" not in self.functions

    @property
    def functions(self) -> dict[str, LearnedFunction]:
        """All functions that are not known, by name."""
        parts = {"transition": self.transition, "reward": self.reward, "is_done": self.is_done}
        return {name: part for name, part in parts.items() if isinstance(part, LearnedFunction)}

    def compile(self, accelerate: Accelerate, mini_batch_size: int) -> None:
        """Accelerate the training of every learned function on mini-batches of one size."""
        for part in self.learned.values():
            part.compile(accelerate, mini_batch_size)

    def step(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Transitions:
        """Predict one step from each observation; obs (N, O), action (N, A) in [-1, 1]."""
        next_obs = self.next_obs(obs, action, generator)
        reward = self.reward.predict(obs, action, next_obs, generator)
        terminated = self.is_done.predict(obs, action, next_obs, generator)
        return Transitions(obs, action, reward, next_obs, terminated)

    def next_obs(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Predict the next observations, shape (N, O).

        The rows are split at random into one group per elite transition function, with sizes that differ by
        at most one. Source: the page, step 3.2.3.
        """
        elites = self.transition.elites
        groups = Groups(len(obs), len(elites), generator)
        predicted_MGO = self.transition.predict(
            obs[groups.rows_MG], action[groups.rows_MG], elites, generator
        )
        return groups.joined(predicted_MGO)

    def spread(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the spread of what members predict for the next observation, in its units, shape (B,).

        That is the largest norm of a member's standard deviations if these depend on the inputs, else the
        largest distance of a member's mean prediction from that of all members.
        Source: Yu et al. 2020, "MOPO: Model-based Offline Policy Optimization", section 4.3; the second, for
        functions without such deviations, is in its code.
        """
        mean_MBO, deviation_MBO = self.transition.moments(obs, action)
        if deviation_MBO is None or not self.transition.network.gaussian:
            deviation_MBO = mean_MBO - mean_MBO.mean(0)
        return deviation_MBO.square().sum(-1).sqrt().amax(0)

    def calibrate(self, real: Transitions, held_out: Transitions) -> Metrics:
        """Choose the threshold of a learned is-done function; return how good it is on hold-out data."""
        if not isinstance(self.is_done, LearnedIsDone):
            return {}
        if self.is_done.is_trained:
            self.is_done.calibrate(real)
        return self.is_done.metrics(held_out)

    def relative_errors(self, real: Transitions, held_out: Transitions, error_M: Tensor) -> Metrics:
        """Compare errors with those of knowing nothing, which are 1.

        That is, on hold-out data, that nothing changes and, of a learned reward, that it always is its mean;
        and, on all real data, that the reward always is 0. `error_M` are the errors of the transition
        functions.
        """
        transition = error_M[self.transition.elites].mean() / self.transition.error_of_no_change(held_out)
        errors = {"model/relative_error": transition}
        if isinstance(self.reward, LearnedReward):
            errors["model/relative_reward_error"] = self.reward.relative_error(held_out)
            errors["model/missed_reward"] = self.reward.missed(real)
        return errors

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every learned function."""
        return {name: part.state_dict() for name, part in self.functions.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self.functions.items():
            part.load_state_dict(state[name])
