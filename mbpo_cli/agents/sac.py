"""Soft actor-critic (SAC) with twin critics and a learned entropy weight, for both kinds of actions.

Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications"; for discrete actions
Christodoulou 2019, "Soft Actor-Critic for Discrete Action Settings".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbpo_cli.agents.bookkeeping import Draws
from mbpo_cli.agents.imagination import Imagining, Path
from mbpo_cli.agents.networks import (
    CategoricalActor,
    Critics,
    DiscreteCritics,
    SquashedGaussianActor,
    smallest,
    smooth_update,
    target_of,
)
from mbpo_cli.agents.options import TargetNetworkOptions
from mbpo_cli.nn.optimizers import Optimizer, OptimizerOptions
from mbpo_cli.options import option
from mbpo_cli.types import ContinuousActions, SpaceSpec, Transitions


@dataclass
class EntropyWeightOptions(OptimizerOptions):
    """Training of the entropy weight alpha: MATLAB's EntropyWeightOptions."""

    entropy_weight: float = option("initial alpha", above=0, high=1000, matlab="EntropyWeight")
    entropy_weight_max: float | None = option("limit of alpha; null = no limit", above=0, high=1000)
    target_entropy: float | None = option(
        "target entropy; null = -dim(action), or 0.3 log(n) for n discrete actions", matlab="TargetEntropy"
    )


@dataclass
class SACOptions(TargetNetworkOptions):
    """Options of SAC: MATLAB's rlSACAgentOptions."""

    actor_optimizer: OptimizerOptions = option("actor training", matlab="ActorOptimizerOptions")
    critic_optimizer: OptimizerOptions = option("critic training", matlab="CriticOptimizerOptions")
    entropy_weight_options: EntropyWeightOptions = option(
        "entropy weight training", matlab="EntropyWeightOptions"
    )
    policy_update_frequency: int = option(
        "updates per update of the actor (in SAC also of the entropy weight)",
        low=1,
        matlab="PolicyUpdateFrequency",
    )


class SAC(Imagining):
    """Soft actor-critic: a squashed Gaussian policy, or a categorical one if actions are discrete.

    `generator` draws the initial weights, on its device, and the actions in updates.
    """

    Options = SACOptions
    options: SACOptions

    def __init__(self, options: SACOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        super().__init__(options, spaces, generator)
        self.generator = generator
        self.actor: SquashedGaussianActor | CategoricalActor
        self.critics: Critics | DiscreteCritics
        if isinstance(spaces.actions, ContinuousActions):
            self.actor = SquashedGaussianActor(spaces, options.hidden_sizes, generator, self.shared)
            self.critics = Critics(options.critics, spaces, options.hidden_sizes, generator, self.shared)
            target_entropy = -float(spaces.action_size)
            self.most_entropy = spaces.action_size * math.log(2)
        else:
            self.actor = CategoricalActor(spaces, options.hidden_sizes, generator, self.shared)
            self.critics = DiscreteCritics(
                options.critics, spaces, options.hidden_sizes, generator, self.shared
            )
            # Christodoulou 2019 uses 0.98 of the largest possible entropy, which keeps the policy nearly
            # uniform; with two actions that does not balance a pole.
            target_entropy = 0.3 * math.log(spaces.action_size)
            self.most_entropy = math.log(spaces.action_size)
        self.policy = self.policy_of(self.actor)
        self.target_critics = target_of(self.critics)
        entropy = options.entropy_weight_options
        limit = entropy.entropy_weight_max
        self.max_log_alpha = None if limit is None else math.log(limit)
        self.target_entropy = target_entropy if entropy.target_entropy is None else entropy.target_entropy
        self.least_entropy = min(self.target_entropy, 0.0)  # that of a density has no limit, only a target
        self.log_alpha = nn.Parameter(
            torch.full((1,), math.log(entropy.entropy_weight), device=generator.device)
        )
        self.actor_optimizer = Optimizer(self.actor.parameters(), options.actor_optimizer)
        self.critic_optimizer = Optimizer(self.critics.parameters(), options.critic_optimizer)
        self.alpha_optimizer = Optimizer([self.log_alpha], entropy)

    @torch.no_grad()
    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return the policy's mode, shape (B, A); with `explore`, actions drawn from it."""
        return self.policy.greedy(obs) if explore is None else self.actor.sample(obs, explore)

    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real steps, drawn from the policy."""
        return self.act(obs, generator)

    def arguments(self, batch: Transitions) -> dict[str, Any]:
        """Return the arguments of `_step`, with noise for the actions at o' and o."""
        return super().arguments(batch) | {
            "next_noise": self.actor.noise(len(batch), self.generator),
            "noise": self.actor.noise(len(batch), self.generator),
            "with_actor": self.is_due(self.options.policy_update_frequency),
        }

    def _step(
        self,
        batch: Transitions,
        draws: Draws,
        next_noise: Tensor,
        noise: Tensor,
        with_actor: bool,
        with_targets: bool,
    ) -> dict[str, Tensor]:
        metrics = self._update_critics(batch, draws, next_noise)
        if with_actor:
            metrics |= self._update_actor(batch, noise)
        if with_targets:
            self._move_targets()
        return metrics

    def _update_critics(self, batch: Transitions, draws: Draws, next_noise: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            next_value, entropy = self.actor.expect(
                batch.next_obs, self.target_critics, smallest(draws.subset), next_noise, draws.target_dropout
            )
            next_value = next_value + self.log_alpha.exp() * entropy
            next_value = self.bounded(batch.reward, next_value)
            target = batch.reward + self.options.discount_factor * (1 - batch.terminated) * next_value
        return self.fit_critics(self.critics(batch.obs, batch.action, draws.dropout), target)

    def _update_actor(self, batch: Transitions, noise: Tensor) -> dict[str, Tensor]:
        alpha = self.log_alpha.detach().exp()
        value, entropy_B = self.actor.expect(batch.obs, self.critics, self.critics.for_actor, noise)
        loss = -(value + alpha * entropy_B).mean()
        self.actor_optimizer.minimize(loss)
        self.average(self.policy, self.actor)
        entropy = entropy_B.detach().mean()
        return {"agent/actor_loss": loss.detach()} | self._update_alpha(entropy, alpha)

    def _update_alpha(self, entropy: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        self.alpha_optimizer.minimize((self.log_alpha.exp() * (entropy - self.target_entropy)).sum())
        if self.max_log_alpha is not None:
            with torch.no_grad():
                self.log_alpha.clamp_(max=self.max_log_alpha)
        return {"agent/entropy": entropy, "agent/entropy_weight": alpha[0]}

    def choose(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions (B, A); their bonuses (B,) are the negative log densities times the entropy weight."""
        assert isinstance(self.actor, SquashedGaussianActor)
        action, log_density = self.actor.act_with_log_density(obs, noise)
        return action, -self.log_alpha.detach().exp() * log_density

    def bonus_range(self) -> tuple[Tensor, Tensor]:
        """Return the range of the bonuses."""
        alpha = self.log_alpha.detach().exp()
        return alpha * self.least_entropy, alpha * self.most_entropy

    def _after_actor(self, path: Path) -> dict[str, Tensor]:
        alpha = self.log_alpha.detach().exp()
        return self._update_alpha((path.bonus.detach() / alpha).mean(), alpha)

    def _move_targets(self) -> None:
        smooth_update(self.target_critics, self.critics, self.options.target_smooth_factor)
