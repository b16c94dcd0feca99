"""Twin delayed DDPG (TD3): twin critics, smoothed target actions, delayed policy updates.

Source: Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.agents.bookkeeping import Draws
from mbpo_cli.agents.imagination import Imagining
from mbpo_cli.agents.networks import Critics, DeterministicActor, pull, smallest, smooth_update, target_of
from mbpo_cli.agents.options import DeterministicActorOptions
from mbpo_cli.exploration import Noise
from mbpo_cli.nn.optimizers import Optimizer, OptimizerOptions
from mbpo_cli.options import Component, option
from mbpo_cli.types import ContinuousActions, SpaceSpec, Transitions


@dataclass
class TargetPolicySmoothOptions:
    """Gaussian noise on target actions, in units of the scaled action."""

    standard_deviation: float = option(
        "standard deviation of the noise", low=0, high=10, matlab="StandardDeviation"
    )
    limit: float = option(
        "largest absolute value of the noise", low=0, high=2, matlab=("LowerLimit", "UpperLimit")
    )


@dataclass
class TD3Options(DeterministicActorOptions):
    """Options of TD3: MATLAB's rlTD3AgentOptions."""

    actor_optimizer: OptimizerOptions = option("actor training", matlab="ActorOptimizerOptions")
    critic_optimizer: OptimizerOptions = option("critic training", matlab="CriticOptimizerOptions")
    exploration: Component = option("exploration noise (group agent/exploration)", matlab="ExplorationModel")
    target_policy_smooth_options: TargetPolicySmoothOptions = option(
        "noise on target actions", matlab="TargetPolicySmoothModel"
    )
    policy_update_frequency: int = option(
        "updates per update of the actor (in SAC also of the entropy weight)",
        low=1,
        matlab="PolicyUpdateFrequency",
    )


class TD3(Imagining):
    """Twin delayed DDPG on actions in [-1, 1].

    `generator` draws the initial weights, on its device, and the noise on target actions.
    """

    Options = TD3Options
    actions = ContinuousActions
    options: TD3Options
    actor: DeterministicActor
    critics: Critics

    def __init__(
        self, options: TD3Options, spaces: SpaceSpec, generator: torch.Generator, exploration: Noise
    ) -> None:
        super().__init__(options, spaces, generator)
        self.generator = generator
        self.exploration = exploration
        self.actor = DeterministicActor(spaces, options.hidden_sizes, generator, self.shared)
        self.critics = Critics(options.critics, spaces, options.hidden_sizes, generator, self.shared)
        self.policy = self.policy_of(self.actor)
        self.target_actor = target_of(self.actor)
        self.target_critics = target_of(self.critics)
        self.actor_optimizer = Optimizer(self.actor.parameters(), options.actor_optimizer)
        self.critic_optimizer = Optimizer(self.critics.parameters(), options.critic_optimizer)

    @torch.no_grad()
    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return greedy actions, shape (B, A); with `explore`, the trained actor's with noise."""
        return self.policy(obs) if explore is None else self.exploration(self.actor(obs), explore)

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real steps, and advance the noise."""
        return self.exploration.advance(self.actor(obs), generator, first)

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the Q-values of actions, shape (B,), averaged over the critics."""
        values: Tensor = self.critics(obs, action).mean(0)
        return values

    def policy_state(self) -> dict[str, Tensor]:
        """Return the weights of the greedy actor."""
        state: dict[str, Tensor] = self.policy.state_dict()
        return state

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

    def _move_targets(self) -> None:
        smooth_update(self.target_critics, self.critics, self.options.target_smooth_factor)
        smooth_update(self.target_actor, self.actor, self.options.target_smooth_factor)

    def choose(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actor's actions (B, A), without noise and with bonuses of 0."""
        return self.actor(obs), obs.new_zeros(len(obs))

    def restraint(self, obs: Tensor, value: Tensor) -> Tensor | float:
        """Return the loss that keeps the actor's outputs within their limit."""
        limit = self.options.actor_output_limit
        return 0.0 if limit is None else pull(self.actor.outputs(obs), value, limit)

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
        values = self.critics(batch.obs, batch.action, draws.dropout)
        loss = 0.5 * (values - target).square().mean(1).sum()
        self.critic_optimizer.minimize(loss)
        return {"agent/critic_loss": loss.detach(), "agent/q_value": values.detach().mean()}

    def _update_actor(self, batch: Transitions) -> dict[str, Tensor]:
        loss = self.actor.loss(
            batch.obs, lambda action: self.critics.first(batch.obs, action), self.options.actor_output_limit
        )
        self.actor_optimizer.minimize(loss)
        self.average(self.policy, self.actor)
        return {"agent/actor_loss": loss.detach()}
