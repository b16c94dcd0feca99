"""Plan with the model that a run has learned, and compare that with the run's policy."""

# %% Train a policy and a model, briefly: the model is good before the policy is.
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch

from mbpo_cli import load, make_config, train

RUN = "outputs/examples/planning"
train(make_config("env=pendulum", "trainer.num_env_steps=250", "seed=1"), RUN)
trained = load(RUN)
agent, model, actions = trained.agent, trained.fitted_model(), trained.spaces.actions
stream = torch.Generator().manual_seed(0)

# %% Plan: of many noisy copies of the policy's plan, return the first action of the best.
HORIZON, NUM_PLANS, NOISE = 10, 200, 0.3


@torch.no_grad()
def plan(obs: Any) -> Any:
    """Map an observation of the environment to an action of the environment."""
    states = torch.as_tensor(obs).repeat(NUM_PLANS, 1)
    returns, first = torch.zeros(NUM_PLANS), torch.empty(0)
    for step in range(HORIZON):
        action = agent.act(states)
        action = (action + NOISE * torch.randn(action.shape, generator=stream)).clamp(-1, 1)
        first = action if step == 0 else first
        predicted = model.step(states, action, stream)  # each state by a random elite
        states, returns = predicted.next_obs, returns + predicted.reward
    returns += agent.value(states, agent.act(states))  # what follows, as the critics see it
    return actions.to_env(first[returns.argmax()]).numpy()


# %% Play the same episode with both. For other agents there is mbpo_cli.LearnedVectorEnv.
def play(act: Callable[[Any], Any]) -> float:
    """Return the return of one episode in the real environment."""
    env = gym.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    total, ended = 0.0, False
    while not ended:
        obs, reward, terminated, truncated, _ = env.step(act(obs))
        total, ended = total + float(reward), terminated or truncated
    return total


print(f"policy {play(lambda obs: trained.policy.predict(obs)[0]):.0f}, plans {play(plan):.0f}")
