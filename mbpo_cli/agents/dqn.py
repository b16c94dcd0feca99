"""Deep Q-network (DQN) for discrete actions, double by default.

Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; van Hasselt et
al. 2016, "Deep Reinforcement Learning with Double Q-learning".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbpo_cli.agents.bookkeeping import Bookkeeping, Draws
from mbpo_cli.agents.networks import DiscreteCritics, smallest, smooth_update, target_of
from mbpo_cli.agents.options import TargetNetworkOptions
from mbpo_cli.exploration import Noise
from mbpo_cli.nn.optimizers import Optimizer, OptimizerOptions
from mbpo_cli.options import Component, option
from mbpo_cli.types import DiscreteActions, SpaceSpec, Transitions


@dataclass
class DQNOptions(TargetNetworkOptions):
    """Options of DQN: MATLAB's rlDQNAgentOptions."""

    critic_optimizer: OptimizerOptions = option("critic training", matlab="CriticOptimizerOptions")
    exploration: Component = option(
        "exploration noise (group agent/exploration)", matlab="EpsilonGreedyExploration"
    )
    use_double_dqn: bool = option(
        "choose the next action with the critic and evaluate it with the target critic", matlab="UseDoubleDQN"
    )


class DQN(Bookkeeping):
    """Deep Q-network on one-hot actions.

    `generator` draws the initial weights, on its device.
    """

    Options = DQNOptions
    actions = DiscreteActions
    options: DQNOptions

    def __init__(
        self, options: DQNOptions, spaces: SpaceSpec, generator: torch.Generator, exploration: Noise
    ) -> None:
        super().__init__(options, spaces, generator)
        self.exploration = exploration
        self.num_actions = spaces.action_size
        self.critic = DiscreteCritics(options.critics, spaces, options.hidden_sizes, generator, self.shared)
        self.policy = self.policy_of(self.critic)
        self.target_critic = target_of(self.critic)
        self.critic_optimizer = Optimizer(self.critic.parameters(), options.critic_optimizer)

    @torch.no_grad()
    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return the best actions, one-hot, shape (B, A); with `explore`, some are random."""
        if explore is None:
            return self._best(self.policy, obs)
        return self.exploration(self._best(self.critic, obs), explore)

    def _best(self, critic: DiscreteCritics, obs: Tensor) -> Tensor:
        values = critic.for_actor(critic.of_all_actions(obs))
        return DiscreteActions(self.num_actions).one_hot(values.argmax(-1))

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real steps, and decay exploration."""
        return self.exploration.advance(self._best(self.critic, obs), generator, first)

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the Q-values of actions, shape (B,)."""
        values: Tensor = self.critic(obs, action).mean(0)
        return values

    def _step(self, batch: Transitions, draws: Draws, with_targets: bool) -> dict[str, Tensor]:
        metrics = self._update_critic(batch, draws)
        if with_targets:
            smooth_update(self.target_critic, self.critic, self.options.target_smooth_factor)
        return metrics

    def _update_critic(self, batch: Transitions, draws: Draws) -> dict[str, Tensor]:
        with torch.no_grad():
            next_values_BA = smallest(draws.subset)(
                self.target_critic.of_all_actions(batch.next_obs, draws.target_dropout)
            )
            chosen_by_BA = next_values_BA
            if self.options.use_double_dqn:
                chosen_by_BA = self.critic.for_actor(self.critic.of_all_actions(batch.next_obs))
            next_value = next_values_BA.gather(1, chosen_by_BA.argmax(-1, keepdim=True))[:, 0]
            next_value = self.bounded(batch.reward, next_value)
            target = batch.reward + self.options.discount_factor * (1 - batch.terminated) * next_value
        metrics = self.fit_critics(self.critic(batch.obs, batch.action, draws.dropout), target)
        self.average(self.policy, self.critic)
        return metrics
