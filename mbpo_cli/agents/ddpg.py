"""Deep deterministic policy gradient (DDPG): one critic, a deterministic actor, correlated noise.

Source: Lillicrap et al. 2016, "Continuous control with deep reinforcement learning". Knows neither
buffers nor models.
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
class DDPGOptions(TargetNetworkOptions):
    """Options of DDPG: MATLAB's rlDDPGAgentOptions."""

    actor_optimizer: OptimizerOptions = option("how the actor is trained", matlab="ActorOptimizerOptions")
    critic_optimizer: OptimizerOptions = option("how the critic is trained", matlab="CriticOptimizerOptions")
    exploration: Component = option("noise on actions (group agent/exploration)", matlab="NoiseOptions")


class DDPG:
    """Deep deterministic policy gradient on actions in [-1, 1]."""

    Options = DDPGOptions
    actions = ContinuousActions

    def __init__(
        self, options: DDPGOptions, spaces: SpaceSpec, generator: torch.Generator, exploration: Noise
    ) -> None:
        """Build networks and optimisers on the generator's device.

        Args:
            options: Hyperparameters.
            spaces: Sizes of observations and actions.
            generator: Random stream of the initial weights.
            exploration: Noise on the greedy actions.
        """
        self.options = options
        self.exploration = exploration
        self.actor = DeterministicActor(spaces, options.hidden_sizes, generator)
        self.critic = Critics(1, spaces, options.hidden_sizes, generator)
        self.target_actor = copy.deepcopy(self.actor)
        self.target_critic = copy.deepcopy(self.critic)
        self.actor_optimizer = Optimizer(self.actor.parameters(), options.actor_optimizer)
        self.critic_optimizer = Optimizer(self.critic.parameters(), options.critic_optimizer)
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
        values: Tensor = self.critic(obs, action).mean(0)
        return values

    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real steps, with noise that moves on in time."""
        return self.exploration.advance(self.act(obs), generator, first)

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        """Take a gradient step per mini-batch on critic and actor, and move the targets when due."""
        return self._steps([self._arguments(batch) for batch in batches])

    def _arguments(self, batch: Transitions) -> dict[str, Any]:
        self.num_updates += 1
        is_due = self.num_updates % self.options.target_update_frequency == 0
        return {"batch": batch, "with_targets": is_due}

    def compile(self, accelerate: Accelerate) -> None:
        """Replace the gradient steps by what `accelerate` makes of one, which is a function of tensors."""
        self._steps = accelerate(self._step)

    def _step(self, batch: Transitions, with_targets: bool) -> dict[str, Tensor]:
        metrics = self._update_critic(batch) | self._update_actor(batch)
        if with_targets:
            smooth_update(self.target_critic, self.critic, self.options.target_smooth_factor)
            smooth_update(self.target_actor, self.actor, self.options.target_smooth_factor)
        return metrics

    def _update_critic(self, batch: Transitions) -> dict[str, Tensor]:
        with torch.no_grad():
            next_value = self.target_critic(batch.next_obs, self.target_actor(batch.next_obs))[0]
            target = batch.reward + self.options.discount_factor * (1 - batch.terminated) * next_value
        values = self.critic(batch.obs, batch.action)
        loss = 0.5 * (values - target).square().mean()
        self.critic_optimizer.minimize(loss)
        return {"agent/critic_loss": loss.detach(), "agent/q_value": values.detach().mean()}

    def _update_actor(self, batch: Transitions) -> dict[str, Tensor]:
        loss = -self.critic(batch.obs, self.actor(batch.obs))[0].mean()
        self.actor_optimizer.minimize(loss)
        return {"agent/actor_loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Return networks, targets, optimisers, noise and the count of updates."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        return {**parts, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.num_updates = state["num_updates"]

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "target_actor": self.target_actor,
            "target_critic": self.target_critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "exploration": self.exploration,
        }

    def policy_state(self) -> dict[str, Tensor]:
        """Return the actor's weights."""
        return self.actor.state_dict()
