"""Where predictions of the environment model may lie: outside, rollouts end.

Knows real transitions and a model; does not know rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.types import Transitions


class Region(Protocol):
    """Where predictions may lie: a rollout ends with the first one outside, which is dropped."""

    def contains(self, transitions: Transitions, number: Tensor) -> Tensor:
        """Return a mask of the predicted transitions inside, shape (N,).

        `number` are the numbers of their rollouts in a generation.
        """


EVERYWHERE: Mapping[str, Region] = {}


class PlausibleRange:
    """The range of each next observation, reward and termination in real experience, widened on both sides.

    `max_departure` is the margin on either side, in widths of the range. If rewards are exact, every finite
    one is plausible, because a first success may bring a reward that was never seen.
    """

    def __init__(self, real: Transitions, max_departure: float, knows_reward: bool = False) -> None:
        outcomes = _outcomes(real)
        low, high = outcomes.amin(0), outcomes.amax(0)
        width = high - low
        # An element that never varied may vary by 1, or by rounding errors if they are larger.
        margin = max_departure * torch.where(width > 0, width, (1e-6 * high.abs()).clamp(min=1.0))
        self._low, self._high = low - margin, high + margin
        if knows_reward:  # the last column but one
            largest = torch.finfo(real.reward.dtype).max
            self._low[-2], self._high[-2] = -largest, largest

    def contains(self, transitions: Transitions, number: Tensor | None = None) -> Tensor:
        """Return a mask of the plausible transitions, shape (N,); those that are not finite never are."""
        outcomes = _outcomes(transitions)
        return ((outcomes >= self._low) & (outcomes <= self._high)).all(1)


class Agreement:
    """Where the two best members of the ensemble agree.

    Their mean predictions differ by at most `max_disagreement`: a weighted sum of squares, relative to the
    mean squared change from one real observation to the next.
    """

    def __init__(self, model: EnvironmentModel, real: Transitions, max_disagreement: float) -> None:
        self._transition, self._limit = model.transition, max_disagreement
        change_O = (real.next_obs - real.obs).square().mean(0)
        self._factors_O = self._transition.network.weights / torch.where(change_O > 0, change_O, 1.0)

    def contains(self, transitions: Transitions, number: Tensor | None = None) -> Tensor:
        """Return a mask of the transitions from where the members agree, shape (N,)."""
        pair = self._transition.elites[:2]
        obs, action = (rows.expand(len(pair), -1, -1) for rows in (transitions.obs, transitions.action))
        means_MNO, _ = self._transition.moments_of_groups(obs, action, pair)
        return (means_MNO[0] - means_MNO[-1]).square() @ self._factors_O <= self._limit


def plausible_range(
    model: EnvironmentModel, real: Transitions, max_departure: float | None
) -> PlausibleRange | None:
    """Return where predictions are plausible, or None if `max_departure` sets no limit."""
    return None if max_departure is None else PlausibleRange(real, max_departure, model.knows_reward)


def regions(
    model: EnvironmentModel, real: Transitions, max_departure: float | None, max_disagreement: float | None
) -> dict[str, Region]:
    """Return where predictions may lie, by the word for those that do not; None sets no limit."""
    found: dict[str, Region] = {}
    if plausible := plausible_range(model, real, max_departure):
        found["implausible"] = plausible
    if max_disagreement is not None:
        found["disputed"] = Agreement(model, real, max_disagreement)
    return found


def _outcomes(transitions: Transitions) -> Tensor:
    return torch.column_stack((transitions.next_obs, transitions.reward, transitions.terminated))
