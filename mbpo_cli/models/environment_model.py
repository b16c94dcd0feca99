"""The model of the environment: N_M transition functions, a reward and an is-done function.

Like rlNeuralNetworkEnvironment, but stateless: a step maps observations to transitions. It does not
know agents or buffers.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from mbpo_cli.models.function import LearnedFunction
from mbpo_cli.models.transition import LearnedTransition
from mbpo_cli.types import Accelerate, Transitions


class Outcome(Protocol):
    """A reward or is-done function, learned or known."""

    def predict(self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator) -> Tensor:
        """Map (B, O), (B, A) in [-1, 1], and (B, O) to shape (B,)."""
        ...


class EnvironmentModel:
    """Predicts what the environment would do."""

    def __init__(self, transition: LearnedTransition, reward: Outcome, is_done: Outcome) -> None:
        """Put the three functions together."""
        self.transition = transition
        self.reward = reward
        self.is_done = is_done

    @property
    def learned(self) -> dict[str, LearnedFunction]:
        """The functions that are learned and have a learn rate above 0, in the order of training."""
        return {name: part for name, part in self._functions.items() if part.is_trained}

    @property
    def knows_reward(self) -> bool:
        """Whether rewards are exact."""
        return "reward" not in self._functions

    @property
    def _functions(self) -> dict[str, LearnedFunction]:
        parts = {"transition": self.transition, "reward": self.reward, "is_done": self.is_done}
        return {name: part for name, part in parts.items() if isinstance(part, LearnedFunction)}

    def compile(self, accelerate: Accelerate, mini_batch_size: int) -> None:
        """Make the training of every learned function faster, on mini-batches of that size."""
        for part in self.learned.values():
            part.compile(accelerate, mini_batch_size)

    def step(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Transitions:
        """Predict one step from each observation.

        The rows are split at random into one group per elite transition function; sizes differ by
        at most one. Source: the page, step 3.2.3.

        Args:
            obs: Observations, shape (N, O).
            action: Actions in [-1, 1], shape (N, A).
            generator: Random stream of the grouping and of stochastic predictions.
        """
        num_rows = len(obs)
        elites = self.transition.elites
        order = torch.randperm(num_rows, generator=generator, device=obs.device)
        # Dealt out like cards; the last round is filled up with rows whose prediction is dropped.
        num_rounds = -(-num_rows // len(elites))
        dealt = order[torch.arange(num_rounds * len(elites), device=obs.device) % num_rows]
        groups_MG = dealt.view(num_rounds, len(elites)).T
        predicted_MGO = self.transition.predict(obs[groups_MG], action[groups_MG], elites, generator)
        next_obs = torch.empty_like(obs)
        next_obs[order] = predicted_MGO.transpose(0, 1).flatten(0, 1)[:num_rows]
        reward = self.reward.predict(obs, action, next_obs, generator)
        terminated = self.is_done.predict(obs, action, next_obs, generator)
        return Transitions(obs, action, reward, next_obs, terminated)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every learned function."""
        return {name: part.state_dict() for name, part in self._functions.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._functions.items():
            part.load_state_dict(state[name])
