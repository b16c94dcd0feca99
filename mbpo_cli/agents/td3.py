"""Twin delayed DDPG (TD3): twin critics, smoothed target actions, delayed policy updates.

Source: Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods".
Knows neither buffers nor models.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.agents.networks import Critics, DeterministicActor, smooth_update
from mbpo_cli.agents.options import TargetNetworkOptions
from mbpo_cli.exploration import Noise
from mbpo_cli.nn.compilation import one_by_one
from mbpo_cli.nn.optimizers import Optimizer, OptimizerOptions
from mbpo_cli.options import Component, option
from mbpo_cli.types import Accelerate, ContinuousActions, Metrics, SpaceSpec, Transitions


@dataclass
class TargetPolicySmoothOptions:
    """Gaussian noise on target actions, in units of the scaled action."""

    standard_deviation: float = option(
        "standard deviation of the noise", low=0, high=10, matlab="StandardDeviation"
    )
    limit: float = option(
        "largest size of the noise, either way", low=0, high=2, matlab=("LowerLimit", "UpperLimit")
    )


@dataclass
class TD3Options(TargetNetworkOptions):
    """Options of TD3: MATLAB's rlTD3AgentOptions."""

    actor_optimizer: OptimizerOptions = option("how the actor is trained", matlab="ActorOptimizerOptions")
    critic_optimizer: OptimizerOptions = option(
        "how the critics are trained", matlab="CriticOptimizerOptions"
    )
    exploration: Component = option("noise on actions (group agent/exploration)", matlab="ExplorationModel")
    target_policy_smooth_options: TargetPolicySmoothOptions = option(
        "noise on target actions", matlab="TargetPolicySmoothModel"
    )
    policy_update_frequency: int = option(
        "updates between two of the actor", low=1, matlab="PolicyUpdateFrequency"
    )


class TD3:
    """Twin delayed DDPG on actions in [-1, 1]."""

    Options = TD3Options
    actions = ContinuousActions

    def __init__(
        self, options: TD3Options, spaces: SpaceSpec, generator: torch.Generator, exploration: Noise
    ) -> None:
        """Build networks and optimisers on the generator's device.

        Args:
            options: Hyperparameters.
            spaces: Sizes of observations and actions.
            generator: Random stream of the initial weights and of the noise on target actions.
            exploration: Noise on the greedy actions.
        """
        self.options = options
        self.generator = generator
        self.exploration = exploration
        self.actor = DeterministicActor(spaces, options.hidden_sizes, generator)
        self.critics = Critics(2, spaces, options.hidden_sizes, generator)
        self.target_actor = copy.deepcopy(self.actor)
        self.target_critics = copy.deepcopy(self.critics)
        self.actor_optimizer = Optimizer(self.actor.parameters(), options.actor_optimizer)
        self.critic_optimizer = Optimizer(self.critics.parameters(), options.critic_optimizer)
        self.num_updates = 0
        self._steps = one_by_one(self._step)

    @torch.no_grad()
    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return actions, shape (B, A): the actor's, with noise if they explore."""
        action: Tensor = self.actor(obs)
        return action if explore is None else self.exploration(action, explore)

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the Q-values of actions, shape (B,), mean over critics."""
        values: Tensor = self.critics(obs, action).mean(0)
        return values

    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real steps, with noise that moves on in time."""
        return self.exploration.advance(self.act(obs), generator, first)

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        """Take a gradient step per mini-batch on the critics, and when due on the actor and the targets."""
        return self._steps([self._arguments(batch) for batch in batches])

    def _arguments(self, batch: Transitions) -> dict[str, Any]:
        self.num_updates += 1
        return {
            "batch": batch,
            "noise": torch.randn(batch.action.shape, generator=self.generator, device=batch.action.device),
            "with_actor": self.num_updates % self.options.policy_update_frequency == 0,
            "with_targets": self.num_updates % self.options.target_update_frequency == 0,
        }

    def compile(self, accelerate: Accelerate) -> None:
        """Replace the gradient steps by what `accelerate` makes of one, which is a function of tensors."""
        self._steps = accelerate(self._step)

    def _step(
        self, batch: Transitions, noise: Tensor, with_actor: bool, with_targets: bool
    ) -> dict[str, Tensor]:
        metrics = self._update_critics(batch, noise)
        if with_actor:
            metrics |= self._update_actor(batch)
        if with_targets:
            smooth_update(self.target_critics, self.critics, self.options.target_smooth_factor)
            smooth_update(self.target_actor, self.actor, self.options.target_smooth_factor)
        return metrics

    def _update_critics(self, batch: Transitions, noise: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            next_action = self._smoothed(self.target_actor(batch.next_obs), noise)
            next_value = self.target_critics(batch.next_obs, next_action).amin(0)
            target = batch.reward + self.options.discount_factor * (1 - batch.terminated) * next_value
        values = self.critics(batch.obs, batch.action)
        loss = 0.5 * (values - target).square().mean(1).sum()
        self.critic_optimizer.minimize(loss)
        return {"agent/critic_loss": loss.detach(), "agent/q_value": values.detach().mean()}

    def _smoothed(self, action: Tensor, noise: Tensor) -> Tensor:
        smoothing = self.options.target_policy_smooth_options
        noise = (noise * smoothing.standard_deviation).clamp(-smoothing.limit, smoothing.limit)
        return (action + noise).clamp(-1, 1)

    def _update_actor(self, batch: Transitions) -> dict[str, Tensor]:
        loss = -self.critics.first(batch.obs, self.actor(batch.obs)).mean()
        self.actor_optimizer.minimize(loss)
        return {"agent/actor_loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Return networks, targets, optimisers, noise and the count of updates."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        return {**parts, "num_updates": self.num_updates, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.num_updates = state["num_updates"]
        self.generator.set_state(state["generator"])

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "critics": self.critics,
            "target_actor": self.target_actor,
            "target_critics": self.target_critics,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "exploration": self.exploration,
        }

    def policy_state(self) -> dict[str, Tensor]:
        """Return the actor's weights."""
        return self.actor.state_dict()
