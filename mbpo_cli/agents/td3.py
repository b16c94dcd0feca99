"""Twin delayed DDPG (TD3): twin critics, smoothed target actions, delayed policy updates.

Source: Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.agents.bookkeeping import Draws
from mbpo_cli.agents.deterministic import DeterministicAgent
from mbpo_cli.agents.networks import smallest
from mbpo_cli.agents.options import DeterministicActorOptions
from mbpo_cli.exploration import SCALED
from mbpo_cli.options import Component, option
from mbpo_cli.types import Transitions


@dataclass
class TargetPolicySmoothOptions:
    """Gaussian noise on target actions."""

    standard_deviation: float = option(
        f"standard deviation of the noise, {SCALED}", low=0, high=10, matlab="StandardDeviation"
    )
    limit: float = option(
        "largest absolute value of the noise, in the same units",
        low=0,
        high=2,
        matlab=("LowerLimit", "UpperLimit"),
    )


@dataclass
class TD3Options(DeterministicActorOptions):
    """Options of TD3: MATLAB's rlTD3AgentOptions."""

    exploration: Component = option("exploration noise (group agent/exploration)", matlab="ExplorationModel")
    target_policy_smooth_options: TargetPolicySmoothOptions = option(
        "noise on target actions", matlab="TargetPolicySmoothModel"
    )
    policy_update_frequency: int = option(
        "updates per update of the actor (in SAC also of the entropy weight)",
        low=1,
        matlab="PolicyUpdateFrequency",
    )


class TD3(DeterministicAgent):
    """Twin delayed DDPG on actions in [-1, 1].

    `generator` draws the initial weights, on its device, and the noise on target actions.
    """

    Options = TD3Options
    options: TD3Options

    def arguments(self, batch: Transitions) -> dict[str, Any]:
        """Return the arguments of `_step`, with standard normal noise for the target actions."""
        return super().arguments(batch) | {
            "noise": torch.randn(batch.action.shape, generator=self.generator, device=batch.action.device),
            "with_actor": self.is_due(self.options.policy_update_frequency),
        }

    def _step(
        self,
        batch: Transitions,
        draws: Draws,
        noise: Tensor,
        with_actor: bool,
        with_targets: bool,
    ) -> dict[str, Tensor]:
        metrics = self._update_critics(batch, draws, noise)
        if with_actor:
            metrics |= self._update_actor(batch)
        if with_targets:
            self._move_targets()
        return metrics

    def _update_critics(self, batch: Transitions, draws: Draws, noise: Tensor) -> dict[str, Tensor]:
        smoothing = self.options.target_policy_smooth_options
        with torch.no_grad():
            noise = (noise * smoothing.standard_deviation).clamp(-smoothing.limit, smoothing.limit)
            next_action = (self.target_actor(batch.next_obs) + noise).clamp(-1, 1)
            next_value = smallest(draws.subset)(
                self.target_critics(batch.next_obs, next_action, draws.target_dropout)
            )
            next_value = self.bounded(batch.reward, next_value)
            target = batch.reward + self.options.discount_factor * (1 - batch.terminated) * next_value
        return self.fit_critics(self.critics(batch.obs, batch.action, draws.dropout), target)

    def _update_actor(self, batch: Transitions) -> dict[str, Tensor]:
        loss = self.actor.loss(
            batch.obs, lambda action: self.critics.first(batch.obs, action), self.options.actor_output_limit
        )
        self.actor_optimizer.minimize(loss)
        self.average(self.policy, self.actor)
        return {"agent/actor_loss": loss.detach()}
