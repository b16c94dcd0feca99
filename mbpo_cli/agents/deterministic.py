"""What TD3 and DDPG share: a deterministic actor that explores by noise on its actions, and its target."""

from __future__ import annotations

import torch
from torch import Tensor

from mbpo_cli.agents.imagination import Imagining
from mbpo_cli.agents.networks import Critics, DeterministicActor, pull, smooth_update, target_of
from mbpo_cli.agents.options import DeterministicActorOptions
from mbpo_cli.exploration import Noise
from mbpo_cli.nn.optimizers import Optimizer
from mbpo_cli.types import ContinuousActions, SpaceSpec


class DeterministicAgent(Imagining):
    """Base of agents with a deterministic policy of actions in [-1, 1]; `exploration` makes it noisy."""

    actions = ContinuousActions
    options: DeterministicActorOptions
    actor: DeterministicActor
    critics: Critics

    def __init__(
        self,
        options: DeterministicActorOptions,
        spaces: SpaceSpec,
        generator: torch.Generator,
        exploration: Noise,
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

    def choose(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actor's actions (B, A), without noise and with bonuses of 0."""
        return self.actor(obs), obs.new_zeros(len(obs))

    def restraint(self, obs: Tensor, value: Tensor) -> Tensor | float:
        """Return the loss that keeps the actor's outputs within their limit."""
        limit = self.options.actor_output_limit
        return 0.0 if limit is None else pull(self.actor.outputs(obs), value, limit)

    def _move_targets(self) -> None:
        smooth_update(self.target_critics, self.critics, self.options.target_smooth_factor)
        smooth_update(self.target_actor, self.actor, self.options.target_smooth_factor)
