"""Deep Q-network (DQN) for discrete actions, double by default.

Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; van Hasselt et
al. 2016, "Deep Reinforcement Learning with Double Q-learning". Knows neither buffers nor models.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.agents.networks import DiscreteCritics, smooth_update
from mbpo_cli.agents.options import TargetNetworkOptions
from mbpo_cli.exploration import Noise
from mbpo_cli.nn.compilation import one_by_one
from mbpo_cli.nn.optimizers import Optimizer, OptimizerOptions
from mbpo_cli.options import Component, option
from mbpo_cli.types import Accelerate, DiscreteActions, Metrics, SpaceSpec, Transitions


@dataclass
class DQNOptions(TargetNetworkOptions):
    """Options of DQN: MATLAB's rlDQNAgentOptions."""

    critic_optimizer: OptimizerOptions = option("how the critic is trained", matlab="CriticOptimizerOptions")
    exploration: Component = option(
        "what makes some actions random (group agent/exploration)", matlab="EpsilonGreedyExploration"
    )
    use_double_dqn: bool = option(
        "choose the next action by the critic, and value it by the target critic", matlab="UseDoubleDQN"
    )


class DQN:
    """Deep Q-network on one-hot actions."""

    Options = DQNOptions
    actions = DiscreteActions

    def __init__(
        self, options: DQNOptions, spaces: SpaceSpec, generator: torch.Generator, exploration: Noise
    ) -> None:
        """Build networks and the optimiser on the generator's device.

        Args:
            options: Hyperparameters.
            spaces: Sizes of observations and actions.
            generator: Random stream of the initial weights.
            exploration: Replaces some greedy actions.
        """
        self.options = options
        self.exploration = exploration
        self.num_actions = spaces.action_size
        self.critic = DiscreteCritics(1, spaces, options.hidden_sizes, generator)
        self.target_critic = copy.deepcopy(self.critic)
        self.critic_optimizer = Optimizer(self.critic.parameters(), options.critic_optimizer)
        self.num_updates = 0
        self._steps = one_by_one(self._step)

    @torch.no_grad()
    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        """Return actions, one-hot, shape (B, A): those of greatest value, some replaced if they explore."""
        values = self.critic.of_all_actions(obs)[0]
        action = DiscreteActions(self.num_actions).one_hot(values.argmax(-1))
        return action if explore is None else self.exploration(action, explore)

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the Q-values of actions, shape (B,), mean over critics."""
        values: Tensor = self.critic(obs, action).mean(0)
        return values

    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        """Return the actions of the next real steps; exploration decays."""
        return self.exploration.advance(self.act(obs), generator, first)

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        """Take a gradient step per mini-batch on the critic, and move its target when due."""
        return self._steps([self._arguments(batch) for batch in batches])

    def _arguments(self, batch: Transitions) -> dict[str, Any]:
        self.num_updates += 1
        is_due = self.num_updates % self.options.target_update_frequency == 0
        return {"batch": batch, "with_target": is_due}

    def compile(self, accelerate: Accelerate) -> None:
        """Replace the gradient steps by what `accelerate` makes of one, which is a function of tensors."""
        self._steps = accelerate(self._step)

    def _step(self, batch: Transitions, with_target: bool) -> dict[str, Tensor]:
        metrics = self._update_critic(batch)
        if with_target:
            smooth_update(self.target_critic, self.critic, self.options.target_smooth_factor)
        return metrics

    def _update_critic(self, batch: Transitions) -> dict[str, Tensor]:
        with torch.no_grad():
            next_values_BA = self.target_critic.of_all_actions(batch.next_obs)[0]
            chosen_by_BA = next_values_BA
            if self.options.use_double_dqn:
                chosen_by_BA = self.critic.of_all_actions(batch.next_obs)[0]
            next_value = next_values_BA.gather(1, chosen_by_BA.argmax(-1, keepdim=True))[:, 0]
            target = batch.reward + self.options.discount_factor * (1 - batch.terminated) * next_value
        values = self.critic(batch.obs, batch.action)
        loss = 0.5 * (values - target).square().mean()
        self.critic_optimizer.minimize(loss)
        return {"agent/critic_loss": loss.detach(), "agent/q_value": values.detach().mean()}

    def state_dict(self) -> dict[str, Any]:
        """Return critic, target, optimiser, exploration and the count of updates."""
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
            "critic": self.critic,
            "target_critic": self.target_critic,
            "critic_optimizer": self.critic_optimizer,
            "exploration": self.exploration,
        }

    def policy_state(self) -> dict[str, Tensor]:
        """Return the critic's weights: the greedy policy takes the action of greatest value."""
        return self.critic.state_dict()
