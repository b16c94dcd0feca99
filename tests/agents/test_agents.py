"""The contract of all agents, and hand-computed losses of TD3, DDPG and DQN; SAC has its own file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mbpo_cli.agents.ddpg import DDPG
from mbpo_cli.agents.dqn import DQN
from mbpo_cli.agents.networks import smooth_update
from mbpo_cli.agents.td3 import TD3
from mbpo_cli.build import build_agent
from mbpo_cli.config.compose import make_config
from mbpo_cli.nn.networks import BatchedMLP, uniform
from mbpo_cli.types import SpaceSpec
from tests.conftest import TINY, copies, discrete, gym_env, random_transitions, same, spaces

BOX, DISCRETE = spaces((3,), action_size=2), discrete((3,), num_actions=4)
AGENTS = {"sac": BOX, "td3": BOX, "ddpg": BOX, "dqn": DISCRETE, "discrete sac": DISCRETE}
ONE_CRITIC = {"td3": (), "ddpg": ("agent.critics.number=1", "agent.critics.num_in_target=1")}
"""Overrides that give DDPG the critic of its paper."""
EVERY_AGENT = pytest.mark.parametrize("name", AGENTS)


def make(name: str, *overrides: str) -> Any:
    """An agent for random transitions, without values tuned for an environment."""
    tiny = (*TINY, *gym_env("any"), "agent.hidden_sizes=[8,8]", f"agent={name.split()[-1]}", *overrides)
    return build_agent(make_config(*tiny), AGENTS[name], torch.device("cpu"))


def modules(agent: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in vars(agent).items() if isinstance(part, nn.Module)}


def spaces_of(name: str) -> SpaceSpec:
    return AGENTS[name]


@EVERY_AGENT
def test_actions_are_legal_greedy_without_a_stream_and_random_with_one(name: str, g: torch.Generator) -> None:
    agent, obs = make(name), torch.randn(200, 3, generator=g)
    assert torch.equal(agent.act(obs), agent.act(obs))
    assert not torch.equal(agent.act(obs, explore=g), agent.act(obs, explore=g))
    for action in (agent.act(obs), agent.act(obs, explore=g)):
        assert action.shape == (200, spaces_of(name).action_size)
        assert action.dtype == torch.float32
        assert action.abs().max() <= 1
        if spaces_of(name) is DISCRETE:
            assert sorted(action.unique().tolist()) == [0.0, 1.0]
            assert action.sum(1).tolist() == [1.0] * 200
    assert agent.explore(obs[:1], g, first=torch.tensor([True])).shape == (1, spaces_of(name).action_size)


@EVERY_AGENT
def test_restored_agent_continues_as_if_uninterrupted(name: str, g: torch.Generator) -> None:
    agent, restored = make(name), make(name, "seed=9")
    batches = [random_transitions(16, spaces_of(name), seed=i) for i in range(7)]
    for batch in batches[:3]:
        agent.explore(batch.obs[:1], g, first=torch.tensor([False]))
        agent.update([batch])
    restored.load_state_dict(agent.state_dict())
    streams = [torch.Generator().manual_seed(5) for _ in range(2)]
    for batch in batches[3:]:
        for one, stream in zip((agent, restored), streams, strict=True):
            one.update([batch])
            one.last_action = one.explore(batch.obs[:1], stream, first=torch.tensor([False]))
        assert torch.equal(agent.last_action, restored.last_action)
    for part, module in modules(agent).items():
        assert same(module, copies(getattr(restored, part))), part
    assert agent.num_updates == restored.num_updates == 7


@EVERY_AGENT
def test_restored_agent_shares_no_tensor_with_its_source(name: str) -> None:
    agent = make(name)
    agent.update([random_transitions(16, spaces_of(name))])
    other = make(name, "seed=9")
    other.load_state_dict(agent.state_dict())
    before = {part: copies(module) for part, module in modules(agent).items()}
    other.update([random_transitions(16, spaces_of(name), seed=1)])
    assert all(same(module, before[part]) for part, module in modules(agent).items())


@EVERY_AGENT
def test_metrics_are_detached_scalars(name: str) -> None:
    for value in make(name).update([random_transitions(16, spaces_of(name))])[0].values():
        assert isinstance(value, Tensor)
        assert not value.requires_grad
        assert value.ndim == 0


@EVERY_AGENT
def test_terminal_states_have_no_value(name: str) -> None:
    agent, batch = make(name), random_transitions(16, spaces_of(name))
    batch.terminated = torch.ones(16)
    critics = getattr(agent, "critics", None) or agent.critic
    values = critics(batch.obs, batch.action).detach()
    by_hand = 0.5 * (values - batch.reward).square().mean(1).sum()
    torch.testing.assert_close(agent.update([batch])[0]["agent/critic_loss"], by_hand)


@EVERY_AGENT
@pytest.mark.parametrize(
    ("smooth_factor", "frequency"),
    [(0.25, 1), (1.0, 3), (0.5, 3)],
    ids=["smoothing", "periodic", "periodic-smoothing"],  # MATLAB's names of TargetUpdateMethod
)
def test_target_networks_move_by_the_smooth_factor_when_due(
    name: str, smooth_factor: float, frequency: int
) -> None:
    options = f"agent.target_smooth_factor={smooth_factor}", f"agent.target_update_frequency={frequency}"
    agent = make(name, *options)
    targets = {part: module for part, module in modules(agent).items() if part.startswith("target_")}
    assert targets
    for update in range(1, 7):
        before = {part: copies(module) for part, module in targets.items()}
        agent.update([random_transitions(16, spaces_of(name), seed=update)])
        for part, target in targets.items():
            source = getattr(agent, part.removeprefix("target_"))
            factor = smooth_factor if update % frequency == 0 else 0.0
            for new, old, now in zip(target.parameters(), before[part], source.parameters(), strict=True):
                torch.testing.assert_close(new, (1 - factor) * old + factor * now)


@EVERY_AGENT
def test_a_learning_rate_of_0_leaves_networks_unchanged(name: str) -> None:
    rates = ["agent.critic_optimizer.learn_rate=0"]
    agent = make(name, *rates, *([] if name == "dqn" else ["agent.actor_optimizer.learn_rate=0"]))
    before = {part: copies(module) for part, module in modules(agent).items()}
    for seed in range(4):
        agent.update([random_transitions(16, spaces_of(name), seed=seed)])
    assert all(same(module, before[part]) for part, module in modules(agent).items())


@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_actor_loss_is_minus_the_first_critics_value_and_does_not_change_critics(name: str) -> None:
    agent, batch = make(name, *ONE_CRITIC[name]), random_transitions(16, BOX)
    critics = getattr(agent, "critics", None) or agent.critic
    by_hand = -critics(batch.obs, agent.actor(batch.obs))[0].mean().detach()
    before, actor = copies(critics), copies(agent.actor)
    torch.testing.assert_close(agent._update_actor(batch)["agent/actor_loss"], by_hand)
    assert same(critics, before)
    assert all(p.grad is None for p in critics.parameters())
    assert not same(agent.actor, actor)


def test_ddpg_critic_loss_by_hand() -> None:
    agent, batch = make("ddpg", *ONE_CRITIC["ddpg"]), random_transitions(16, BOX)
    assert isinstance(agent, DDPG)
    for module in (agent.actor, agent.critics):  # makes targets differ from networks
        for parameter in module.parameters():
            parameter.data += 0.1
    with torch.no_grad():
        next_value = agent.target_critics(batch.next_obs, agent.target_actor(batch.next_obs))[0]
        target = batch.reward + 0.99 * (1 - batch.terminated) * next_value
        by_hand = 0.5 * (agent.critics(batch.obs, batch.action)[0] - target).square().mean()
    torch.testing.assert_close(agent.update([batch])[0]["agent/critic_loss"], by_hand)


def test_td3_critic_loss_by_hand() -> None:
    agent, batch = make("td3", "agent.target_policy_smooth_options.limit=0.3"), random_transitions(16, BOX)
    assert isinstance(agent, TD3)
    for module in (agent.actor, agent.critics):
        for parameter in module.parameters():
            parameter.data += 0.1
    state = agent.generator.get_state()
    with torch.no_grad():
        noise = (0.2 * torch.randn(16, 2, generator=agent.generator)).clamp(-0.3, 0.3)
        next_action = (agent.target_actor(batch.next_obs) + noise).clamp(-1, 1)
        q = agent.target_critics(batch.next_obs, next_action)
        target = batch.reward + 0.99 * (1 - batch.terminated) * torch.minimum(q[0], q[1])
        values = agent.critics(batch.obs, batch.action)
        by_hand = 0.5 * ((values[0] - target) ** 2).mean() + 0.5 * ((values[1] - target) ** 2).mean()
    agent.generator.set_state(state)
    torch.testing.assert_close(agent.update([batch])[0]["agent/critic_loss"], by_hand)


def test_td3_delays_actor_and_targets() -> None:
    agent = make("td3", "agent.policy_update_frequency=2", "agent.target_update_frequency=3")
    moved = []
    for seed in range(6):
        before = [copies(module) for module in (agent.actor, agent.target_actor, agent.target_critics)]
        agent.update([random_transitions(16, BOX, seed)])
        now = (agent.actor, agent.target_actor, agent.target_critics)
        moved.append(tuple(not same(module, old) for module, old in zip(now, before, strict=True)))
    assert [actor for actor, _, _ in moved] == [False, True] * 3
    assert [(a, c) for _, a, c in moved] == [(False, False), (False, False), (True, True)] * 2


@pytest.mark.parametrize("double", [True, False])
def test_dqn_loss_by_hand(double: bool) -> None:
    agent, batch = make("dqn", f"agent.use_double_dqn={double}"), random_transitions(64, DISCRETE)
    assert isinstance(agent, DQN)
    for parameter in agent.critic.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    losses = []
    for is_double in (True, False):
        with torch.no_grad():
            online, of_target = (
                c.of_all_actions(batch.next_obs)[0] for c in (agent.critic, agent.target_critic)
            )
            best = (online if is_double else of_target).argmax(1)
            target = batch.reward + 0.99 * (1 - batch.terminated) * of_target[torch.arange(64), best]
            value = agent.critic.of_all_actions(batch.obs)[0, torch.arange(64), batch.action.argmax(1)]
            losses.append(0.5 * (value - target).square().mean())
    assert losses[0] != losses[1]
    torch.testing.assert_close(agent.update([batch])[0]["agent/critic_loss"], losses[0 if double else 1])


def test_dqn_chooses_the_action_of_greatest_value(g: torch.Generator) -> None:
    agent, obs = make("dqn"), torch.randn(50, 3, generator=g)
    assert torch.equal(agent.act(obs).argmax(1), agent.critic.of_all_actions(obs)[0].argmax(1))


def test_epsilon_of_dqn_decays_with_real_steps_only(g: torch.Generator) -> None:
    agent = make(
        "dqn",
        "agent.exploration.epsilon=0.8",
        "agent.exploration.epsilon_decay=0.5",
        "agent.exploration.epsilon_min=0.1",
    )
    obs, seen = torch.zeros(1, 3), []
    for _ in range(5):
        seen.append(agent.exploration.epsilon)
        agent.act(obs, explore=g)
        agent.explore(obs, g, first=torch.tensor([False]))
    assert seen == [0.8, 0.4, 0.2, 0.1, 0.1]


def test_smooth_update_with_factor_1_copies(g: torch.Generator) -> None:
    a, b = (BatchedMLP(2, (3, 4, 1), functional.relu, uniform, g) for _ in range(2))
    smooth_update(a, b, 1.0)
    assert same(a, copies(b))


@pytest.mark.parametrize(
    ("agent", "env"),
    [
        ("sac", "tests/PointMass-v0"),
        ("td3", "tests/PointMass-v0"),
        ("ddpg", "tests/PointMass-v0"),
        ("dqn", "tests/DiscretePointMass-v0"),
        ("sac", "tests/DiscretePointMass-v0"),
    ],
)
@pytest.mark.parametrize("mbpo", ["on", "off"])
def test_every_agent_learns_to_push_a_point_to_the_origin(
    agent: str, env: str, mbpo: str, train_in: Callable[..., dict[str, Any]]
) -> None:
    """Returns: random actions about -25, no push -15, pushing straight to the origin about -2.5."""
    overrides = (
        "agent.hidden_sizes=[32]",
        "agent.critic_optimizer.learn_rate=3e-3",
        "agent.mini_batch_size=64",
    )
    run = train_in(
        *TINY,
        *gym_env(env),
        f"agent={agent}",
        f"mbpo={mbpo}",
        *overrides,
        "agent.num_warm_start_steps=100",
        "agent.num_gradient_steps_per_update=4",
        "agent.discount_factor=0.9",
        "agent.target_smooth_factor=0.02",
        "model.transition.hidden_sizes=[32]",
        "model.training.num_mini_batches=20",
        "mbpo.num_epoch_for_training_model=3",
        "mbpo.model_rollout_options.num_rollout=100",
        "mbpo.model_rollout_options.horizon=3",
        "trainer.num_env_steps=300",
        "trainer.evaluate_every_steps=300",
        "trainer.num_eval_episodes=20",
    )
    assert run["score"] > -5
