"""The environment model as agents see it: steps that are differentiable in observation and action.

It holds copies of the elites' weights, which get no gradients and stay as they are between two fits.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.function import LearnedFunction, Network
from mbpo_cli.models.is_done import LearnedIsDone
from mbpo_cli.models.transition import LearnedTransition
from mbpo_cli.models.uncertainty import Uncertainty


class Noiseless(Protocol):
    """A reward or is-done function without its noise."""

    def most_likely(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Return the most likely outcomes, shape (B,); those of a reward are differentiable."""


Learned = TypeVar("Learned", bound=LearnedFunction)


class Draws(NamedTuple):
    """What is random in the T steps of one update.

    Attributes:
        rows_TEG: The rows that each of the E elites predicts; some twice, if they cannot be dealt equally.
        place_TB: The place of each row among the predictions, E times G.
        noise_TEGO: Standard normal noise of the predictions.
    """

    rows_TEG: Tensor
    place_TB: Tensor
    noise_TEGO: Tensor


class LearnedWorld:
    """Steps in an environment model, each row by an elite that is drawn anew at every step.

    Rewards are mean predictions. Gradients flow through next observations and rewards, not through ends.
    """

    def __init__(
        self, model: EnvironmentModel, num_steps: int, uncertainty: Uncertainty | None = None
    ) -> None:
        self.num_steps = num_steps
        self._uncertainty = uncertainty or Uncertainty()
        self._transition = _frozen(model.transition, len(model.transition.elites))
        self._reward, self._is_done = (
            cast(Noiseless, _frozen(part, 1) if isinstance(part, LearnedFunction) else part)
            for part in (model.reward, model.is_done)
        )
        self._pairs = [(part, getattr(self, f"_{name}")) for name, part in model.functions.items()]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy what has changed, in place: compiled steps rely on where it lies in memory."""
        for part, mine in self._pairs:
            members = part.elites if isinstance(part, LearnedTransition) else slice(None)
            for copied, weight in zip(mine.network.parameters(), part.network.parameters(), strict=True):
                copied.copy_(weight[members])
            for copied, buffer in zip(mine.network.buffers(), part.network.buffers(), strict=True):
                copied.copy_(buffer)
            if isinstance(part, LearnedIsDone) and isinstance(mine, LearnedIsDone):
                mine.threshold.copy_(part.threshold)

    def draw(self, num_rows: int, generator: torch.Generator) -> Draws:
        """Draw what is random in the steps of one update on `num_rows` rows."""
        device, count = generator.device, self._transition.network.num_members
        group_size = math.ceil(num_rows / count)
        keys = torch.rand(self.num_steps, num_rows, generator=generator, device=device)
        order_TB = keys.argsort(dim=1)
        index = torch.arange(group_size * count, device=device)
        rows_TEG = order_TB[:, (index % num_rows).view(count, group_size)]
        place_TB = torch.empty_like(order_TB).scatter_(1, order_TB, index[:num_rows].expand_as(order_TB))
        shape = (self.num_steps, count, group_size, self._transition.obs_size)
        return Draws(rows_TEG, place_TB, torch.randn(shape, generator=generator, device=device))

    def certain(
        self, obs: Tensor, action: Tensor, earlier: Tensor | None, draws: Draws, number: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return a mask of the rows in which elites agree, shape (B,), and sums of what was measured (B, C).

        Both are None if there is no limit.
        """
        if not self._uncertainty.is_limited:
            return None, None
        rows_EG, network = draws.rows_TEG[number], self._transition.network
        count = self._uncertainty.num_compared(len(rows_EG))
        with torch.no_grad():  # gradients flow through the prediction of the row's own elite alone
            compared = self._transition.compared(obs[rows_EG], action[rows_EG], count)
            measured_EGC = self._uncertainty.measured(*compared, network.targets.std)
            measured_BC = measured_EGC.flatten(0, 1)[draws.place_TB[number]]
            return self._uncertainty.is_certain(measured_BC, earlier)

    def step(self, obs: Tensor, action: Tensor, draws: Draws, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next observation (B, O), the reward (B,) and 1.0 where the episode ends (B,)."""
        rows_EG = draws.rows_TEG[number]
        mean, log_variance = self._transition.moments_of_groups(obs[rows_EG], action[rows_EG])
        if log_variance is not None:
            mean = mean + draws.noise_TEGO[number] * torch.exp(0.5 * log_variance)
        next_obs = mean.flatten(0, 1)[draws.place_TB[number]]
        reward = self._reward.most_likely(obs, action, next_obs)
        with torch.no_grad():
            terminated = self._is_done.most_likely(obs, action, next_obs)
        return next_obs, reward, terminated

    @property
    def networks(self) -> list[Network]:
        """The networks of the functions that are not known."""
        return [part.network for _, part in self._pairs]

    def expected(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mean and standard deviation of the next observation, both (B, O), and what follows the mean.

        That is its reward (B,), and 1.0 where the episode ends there (B,).
        """
        next_obs, deviation = self._transition.mixture(obs, action)
        reward = self._reward.most_likely(obs, action, next_obs)
        return next_obs, deviation, reward, self._is_done.most_likely(obs, action, next_obs)


def _frozen(part: Learned, num_members: int) -> Learned:
    """Return a function with a network of its own for the elites, which gets no gradients.

    Hidden weights have the type of their products, so that they are not converted at every step.
    """
    frozen = copy.copy(part)
    frozen.network = network = copy.deepcopy(part.network)
    network.num_members = num_members
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data[:num_members].clone()
    for weight in list(network.mlp.weights)[1:-1]:
        weight.data = weight.data.to(network.mlp.product_dtype)
    if isinstance(frozen, LearnedIsDone):
        frozen.threshold = frozen.threshold.clone()
    return frozen
