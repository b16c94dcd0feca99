"""An agent of one's own: DQN with another target, and with options for it."""

# %% The agent. Source: Vieillard et al. 2020, "Munchausen Reinforcement Learning", equation 2.
from dataclasses import dataclass

import torch
from torch import Tensor

from mbpo_cli import evaluation_of, load, make_config, train
from mbpo_cli.agents.bookkeeping import Draws
from mbpo_cli.agents.dqn import DQN, DQNOptions
from mbpo_cli.options import option
from mbpo_cli.types import Transitions


@dataclass
class MunchausenOptions(DQNOptions):
    """Options of Munchausen-DQN."""

    temperature: float = option("softness of the policy, in units of reward", above=0)
    log_policy_weight: float = option("share of the scaled log-policy in the reward", low=0, high=1)


class MunchausenDQN(DQN):
    """DQN that adds the scaled log-policy to the reward, with a soft value of the next observation."""

    Options = MunchausenOptions
    options: MunchausenOptions

    def _update_critic(self, batch: Transitions, draws: Draws) -> dict[str, Tensor]:
        softness, discount = self.options.temperature, self.options.discount_factor
        with torch.no_grad():
            log_policy = (self.target_critic.of_all_actions(batch.obs)[0] / softness).log_softmax(-1)
            bonus = (softness * (log_policy * batch.action).sum(-1)).clamp(-1, 0)
            next_values = self.target_critic.of_all_actions(batch.next_obs)[0]
            next_value = softness * (next_values / softness).logsumexp(-1)
            reward = batch.reward + self.options.log_policy_weight * bonus
            target = reward + discount * (1 - batch.terminated) * next_value
        loss = 0.5 * (self.critic(batch.obs, batch.action, draws.dropout)[0] - target).square().mean()
        self.critic_optimizer.minimize(loss)
        self.average(self.policy, self.critic)
        return {"agent/critic_loss": loss.detach()}


# %% Train it with the values of agent=dqn and those of the new options.
RUN = "outputs/examples/munchausen"
own = (f"agent._target_={__name__}.MunchausenDQN", "agent.name=munchausen")
new = ("+agent.temperature=0.03", "+agent.log_policy_weight=0.9")
train(make_config("agent=dqn", "env=cartpole", "trainer.num_env_steps=1_000", *own, *new), RUN)

# %% A run directory is data; code outside the package is imported only if it is trusted.
print(evaluation_of(load(RUN, trust=[__name__])).return_mean)
