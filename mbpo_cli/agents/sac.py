"""Soft actor-critic (SAC) with twin critics and a learned entropy weight, for both kinds of actions.

Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications"; for discrete actions
Christodoulou 2019, "Soft Actor-Critic for Discrete Action Settings". Knows neither buffers nor models.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbpo_cli.agents.networks import (
    CategoricalActor,
    Critics,
    DiscreteCritics,
    SquashedGaussianActor,
    smooth_update,
)
from mbpo_cli.agents.options import TargetNetworkOptions
from mbpo_cli.nn.compilation import one_by_one
from mbpo_cli.nn.optimizers import Optimizer, OptimizerOptions
from mbpo_cli.options import option
from mbpo_cli.types import Accelerate, ContinuousActions, Metrics, SpaceSpec, Transitions

# Share of the largest possible entropy, log(n). Christodoulou 2019 has 0.98, which keeps the policy nearly
# uniform; with two actions that does not balance a pole.
DISCRETE_TARGET_ENTROPY = 0.3


@dataclass
class EntropyWeightOptions(OptimizerOptions):
    """How the entropy weight alpha is found: MATLAB's EntropyWeightOptions."""

    entropy_weight: float = option("alpha, at first", above=0, high=1000, matlab="EntropyWeight")
    target_entropy: float | None = option(
        "entropy to hold; null = -dim(action), or 0.3 log(n) for n discrete actions", matlab="TargetEntropy"
    )


@dataclass
class SACOptions(TargetNetworkOptions):
    """Options of SAC: MATLAB's rlSACAgentOptions."""

    actor_optimizer: OptimizerOptions = option("how the actor is trained", matlab="ActorOptimizerOptions")
    critic_optimizer: OptimizerOptions = option(
        "how the critics are trained", matlab="CriticOptimizerOptions"
    )
    entropy_weight_options: EntropyWeightOptions = option(
        "how the entropy weight is found", matlab="EntropyWeightOptions"
    )
    policy_update_frequency: int = option(
        "updates between two of the actor (and, for SAC, the entropy weight)",
        low=1,
        matlab="PolicyUpdateFrequency",
    )


class SAC:
    """Soft actor-critic: a squashed Gaussian policy, or a categorical one if actions are discrete."""

    Options = SACOptions

    def __init__(self, options: SACOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        """Build networks and optimisers on the generator's device.

        Args:
            options: Hyperparameters.
            spaces: Sizes of observations and actions.
            generator: Random stream of the initial weights and of the actions drawn in updates.
        """
        self.options = options
        self.generator = generator
        self.actor: SquashedGaussianActor | CategoricalActor
        self.critics: Critics | DiscreteCritics
        if isinstance(spaces.actions, ContinuousActions):
            self.actor = SquashedGaussianActor(spaces, options.hidden_sizes, generator)
            self.critics = Critics(2, spaces, options.hidden_sizes, generator)
            target_entropy = -float(spaces.action_size)
        else:
            self.actor = CategoricalActor(spaces, options.hidden_sizes, generator)
            self.critics = DiscreteCritics(2, spaces, options.hidden_sizes, generator)
            target_entropy = DISCRETE_TARGET_ENTROPY * math.log(spaces.action_size)
        self.target_critics = copy.deepcopy(self.critics)
        entropy = options.entropy_weight_options
        self.target_entropy = target_entropy if entropy.target_entropy is None else entropy.target_entropy
        self.log_alpha = nn.Parameter(
            torch.full((1,), math.log(entropy.entropy_weight), device=generator.device)
        )
        self.actor_optimizer = Optimizer(self.actor.parameters(), options.actor_optimizer)
        self.critic_optimizer = Optimizer(self.critics.parameters(), options.critic_optimizer)
        self.alpha_optimizer = Optimizer([self.log_alpha], entropy)
        self.num_updates = 0
        self._steps = one_by_one(self._step)

    @torch.no_grad()
    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return actions, shape (B, A): drawn from the policy, or its mode."""
        return self.actor.greedy(obs) if explore is None else self.actor.sample(obs, explore)

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the Q-values of actions, shape (B,), mean over critics."""
        values: Tensor = self.critics(obs, action).mean(0)
        return values

    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real steps, drawn from the policy."""
        return self.act(obs, generator)

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        """Take a gradient step per mini-batch on the critics, and when due on actor and entropy weight."""
        return self._steps([self._arguments(batch) for batch in batches])

    def _arguments(self, batch: Transitions) -> dict[str, Any]:
        self.num_updates += 1
        return {
            "batch": batch,
            "next_noise": self.actor.noise(len(batch), self.generator),
            "noise": self.actor.noise(len(batch), self.generator),
            "with_actor": self.num_updates % self.options.policy_update_frequency == 0,
            "with_targets": self.num_updates % self.options.target_update_frequency == 0,
        }

    def compile(self, accelerate: Accelerate) -> None:
        """Replace the gradient steps by what `accelerate` makes of one, which is a function of tensors."""
        self._steps = accelerate(self._step)

    def _step(
        self, batch: Transitions, next_noise: Tensor, noise: Tensor, with_actor: bool, with_targets: bool
    ) -> dict[str, Tensor]:
        metrics = self._update_critics(batch, next_noise)
        if with_actor:
            metrics |= self._update_actor(batch, noise)
        if with_targets:
            smooth_update(self.target_critics, self.critics, self.options.target_smooth_factor)
        return metrics

    def _update_critics(self, batch: Transitions, next_noise: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            next_value, entropy = self.actor.expect(batch.next_obs, self.target_critics, next_noise)
            next_value = next_value + self.log_alpha.exp() * entropy
            target = batch.reward + self.options.discount_factor * (1 - batch.terminated) * next_value
        values = self.critics(batch.obs, batch.action)
        loss = 0.5 * (values - target).square().mean(1).sum()
        self.critic_optimizer.minimize(loss)
        return {"agent/critic_loss": loss.detach(), "agent/q_value": values.detach().mean()}

    def _update_actor(self, batch: Transitions, noise: Tensor) -> dict[str, Tensor]:
        alpha = self.log_alpha.detach().exp()
        value, entropy_B = self.actor.expect(batch.obs, self.critics, noise)
        loss = -(value + alpha * entropy_B).mean()
        self.actor_optimizer.minimize(loss)
        entropy = entropy_B.detach().mean()
        self.alpha_optimizer.minimize((self.log_alpha.exp() * (entropy - self.target_entropy)).sum())
        return {
            "agent/actor_loss": loss.detach(),
            "agent/entropy": entropy,
            "agent/entropy_weight": alpha[0],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return networks, targets, optimisers, entropy weight and the count of updates."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        return {
            **parts,
            "log_alpha": self.log_alpha.detach().clone(),
            "num_updates": self.num_updates,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self.num_updates = state["num_updates"]
        self.generator.set_state(state["generator"])

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "critics": self.critics,
            "target_critics": self.target_critics,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "alpha_optimizer": self.alpha_optimizer,
        }

    def policy_state(self) -> dict[str, Tensor]:
        """Return the actor's weights."""
        return self.actor.state_dict()
