"""Deep deterministic policy gradient (DDPG): one critic, a deterministic actor, correlated noise.

Source: Lillicrap et al. 2016, "Continuous control with deep reinforcement learning".
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
from mbpo_cli.options import Component, option
from mbpo_cli.types import Transitions


@dataclass
class DDPGOptions(DeterministicActorOptions):
    """Options of DDPG: MATLAB's rlDDPGAgentOptions."""

    exploration: Component = option("exploration noise (group agent/exploration)", matlab="NoiseOptions")


class DDPG(DeterministicAgent):
    """Deep deterministic policy gradient on actions in [-1, 1].

    `generator` draws the initial weights, on its device.
    """

    Options = DDPGOptions
    options: DDPGOptions

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`, or that of version 0.1, which drew nothing after the start."""
        later = {"critic": "critics", "target_critic": "target_critics"}
        renamed = {later.get(name, name): value for name, value in state.items()}
        super().load_state_dict({"generator": self.generator.get_state()} | renamed)

    def _step(self, batch: Transitions, draws: Draws, with_targets: bool) -> dict[str, Tensor]:
        metrics = self._update_critic(batch, draws) | self._update_actor(batch)
        if with_targets:
            self._move_targets()
        return metrics

    def _update_critic(self, batch: Transitions, draws: Draws) -> dict[str, Tensor]:
        with torch.no_grad():
            next_action = self.target_actor(batch.next_obs)
            next_value = smallest(draws.subset)(
                self.target_critics(batch.next_obs, next_action, draws.target_dropout)
            )
            next_value = self.bounded(batch.reward, next_value)
            target = batch.reward + self.options.discount_factor * (1 - batch.terminated) * next_value
        return self.fit_critics(self.critics(batch.obs, batch.action, draws.dropout), target)

    def _update_actor(self, batch: Transitions) -> dict[str, Tensor]:
        loss = self.actor.loss(
            batch.obs,
            lambda action: self.critics.for_actor(self.critics(batch.obs, action)),
            self.options.actor_output_limit,
        )
        self.actor_optimizer.minimize(loss)
        self.average(self.policy, self.actor)
        return {"agent/actor_loss": loss.detach()}
