import math

import pytest
import torch

from mbpo_cli.agents.networks import CategoricalActor, DiscreteCritics, SquashedGaussianActor
from mbpo_cli.agents.sac import SAC
from mbpo_cli.build import build_agent
from mbpo_cli.config.compose import make_config
from mbpo_cli.types import SpaceSpec
from tests.conftest import TINY, copies, discrete, random_transitions, same, spaces

SPACE = spaces((3,), action_size=2)


def sac(*overrides: str, space: SpaceSpec = SPACE) -> SAC:
    agent = build_agent(make_config(*TINY, *overrides), space, torch.device("cpu"))
    assert isinstance(agent, SAC)
    return agent


def test_log_density_equals_that_of_a_tanh_transformed_normal(g: torch.Generator) -> None:
    actor = SquashedGaussianActor(SPACE, [8], g)
    obs = torch.randn(50, 3, generator=g)
    action, log_density = actor.act_with_log_density(obs, actor.noise(50, g))
    mean, log_std = actor.moments(obs)
    reference = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()), [torch.distributions.TanhTransform()]
    )
    by_library = reference.log_prob(action)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_density, by_library.sum(-1), atol=1e-3, rtol=1e-3)


def test_log_density_is_finite_where_tanh_saturates(g: torch.Generator) -> None:
    actor = SquashedGaussianActor(spaces((1,)), [4], g)
    with torch.no_grad():
        actor.mlp.biases[-1][..., 0] = 50.0
    action, log_density = actor.act_with_log_density(torch.zeros(10, 1), actor.noise(10, g))
    assert action.abs().max() <= 1
    assert torch.isfinite(log_density).all()


def test_actions_are_greedy_without_a_stream_and_random_with_one(g: torch.Generator) -> None:
    agent, obs = sac(), torch.randn(5, 3, generator=g)
    assert torch.equal(agent.act(obs), agent.act(obs))
    assert not torch.equal(agent.act(obs, explore=g), agent.act(obs, explore=g))
    assert agent.act(obs, explore=g).abs().max() <= 1


def test_target_entropy_is_minus_the_size_of_the_action() -> None:
    assert sac(space=spaces((11, 3), action_size=4)).target_entropy == -4
    assert sac("agent.entropy_weight_options.target_entropy=-0.5").target_entropy == -0.5


def perturb(agent: SAC) -> SAC:
    """Change all weights, so that targets differ from networks and the entropy weight is not 1."""
    for parameter in [*agent.critics.parameters(), *agent.actor.parameters(), agent.log_alpha]:
        parameter.data += 0.1
    return agent


def test_critic_loss_by_hand() -> None:
    agent = perturb(sac("agent.discount_factor=0.9"))
    batch = random_transitions(16, SPACE)
    state = agent.generator.get_state()
    with torch.no_grad():
        assert isinstance(agent.actor, SquashedGaussianActor)
        next_noise = agent.actor.noise(16, agent.generator)
        next_action, log_density = agent.actor.act_with_log_density(batch.next_obs, next_noise)
        q = agent.target_critics(batch.next_obs, next_action)
        soft_value = torch.minimum(q[0], q[1]) - agent.log_alpha.exp() * log_density
        target = batch.reward + 0.9 * (1 - batch.terminated) * soft_value
        values = agent.critics(batch.obs, batch.action)
        by_hand = 0.5 * ((values[0] - target) ** 2).mean() + 0.5 * ((values[1] - target) ** 2).mean()
    agent.generator.set_state(state)
    torch.testing.assert_close(agent.update([batch])[0]["agent/critic_loss"], by_hand)


def test_terminal_states_have_no_value() -> None:
    agent = sac()
    batch = random_transitions(16, SPACE)
    batch.terminated = torch.ones(16)
    values = agent.critics(batch.obs, batch.action).detach()
    loss = agent.update([batch])[0]["agent/critic_loss"]
    torch.testing.assert_close(loss, 0.5 * (values - batch.reward).square().mean(1).sum())


def test_actor_loss_leaves_no_gradient_in_the_critics() -> None:
    agent = sac()
    agent.update([random_transitions(16, SPACE)])
    before = copies(agent.critics)
    agent._update_actor(random_transitions(16, SPACE), agent.actor.noise(16, agent.generator))
    assert same(agent.critics, before)
    assert all(p.grad is None for p in agent.critics.parameters())


@pytest.mark.parametrize(("entropy_is_low", "sign"), [(True, 1), (False, -1)])
def test_entropy_weight_moves_towards_the_target_entropy(entropy_is_low: bool, sign: int) -> None:
    target = 100.0 if entropy_is_low else -100.0
    agent = sac(f"agent.entropy_weight_options.target_entropy={target}", "agent.policy_update_frequency=1")
    before = agent.log_alpha.item()
    agent.update([random_transitions(16, SPACE)])
    assert math.copysign(1, agent.log_alpha.item() - before) == sign


def test_entropy_weight_keeps_its_initial_value_with_learning_rate_0() -> None:
    agent = sac(
        "agent.entropy_weight_options.entropy_weight=0.3", "agent.entropy_weight_options.learn_rate=0"
    )
    agent.update([random_transitions(16, SPACE)])
    torch.testing.assert_close(agent.log_alpha.exp(), torch.tensor([0.3]))


def test_targets_move_by_the_smooth_factor() -> None:
    agent = sac("agent.target_smooth_factor=0.25")
    before = copies(agent.target_critics)
    agent.update([random_transitions(16, SPACE)])
    for target, old, source in zip(
        agent.target_critics.parameters(), before, agent.critics.parameters(), strict=True
    ):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * source)


def test_update_frequencies() -> None:
    agent = sac("agent.target_update_frequency=3", "agent.policy_update_frequency=2")
    moved = []
    for _ in range(6):
        targets, actor = copies(agent.target_critics), copies(agent.actor)
        (metrics,) = agent.update([random_transitions(16, SPACE)])
        moved.append((not same(agent.target_critics, targets), not same(agent.actor, actor)))
        assert ("agent/actor_loss" in metrics) == moved[-1][1]
    assert [target for target, _ in moved] == [False, False, True] * 2
    assert [actor for _, actor in moved] == [False, True] * 3


def test_twin_critics_differ() -> None:
    values = sac().critics(torch.randn(4, 3), torch.randn(4, 2))
    assert not torch.equal(values[0], values[1])


def test_discrete_actions_use_a_categorical_policy_and_its_target_entropy(g: torch.Generator) -> None:
    agent = sac(space=discrete(num_actions=4))
    assert agent.target_entropy == pytest.approx(0.3 * math.log(4))
    obs = torch.randn(500, 3, generator=g)
    assert isinstance(agent.actor, CategoricalActor)
    drawn = agent.act(obs, explore=g)
    assert drawn.sum(1).tolist() == [1.0] * 500
    assert set(drawn.argmax(1).tolist()) == {0, 1, 2, 3}
    assert torch.equal(agent.act(obs).argmax(1), agent.actor.log_probabilities(obs).argmax(1))


def test_discrete_critic_loss_by_hand() -> None:
    space = discrete(num_actions=3)
    agent = perturb(sac("agent.discount_factor=0.9", space=space))
    batch = random_transitions(16, space)
    assert isinstance(agent.actor, CategoricalActor)
    assert isinstance(agent.critics, DiscreteCritics)
    assert isinstance(agent.target_critics, DiscreteCritics)
    alpha = agent.log_alpha.exp().item()
    with torch.no_grad():
        log_p = agent.actor.log_probabilities(batch.next_obs)
        q = agent.target_critics.of_all_actions(batch.next_obs)
        expected = torch.zeros(16)
        for a in range(3):
            expected += log_p[:, a].exp() * (torch.minimum(q[0, :, a], q[1, :, a]) - alpha * log_p[:, a])
        target = batch.reward + 0.9 * (1 - batch.terminated) * expected
        taken = batch.action.argmax(1)
        values = agent.critics.of_all_actions(batch.obs)[:, torch.arange(16), taken]
        by_hand = 0.5 * (values - target).square().mean(1).sum()
    torch.testing.assert_close(agent.update([batch])[0]["agent/critic_loss"], by_hand)


def test_discrete_actor_loss_and_entropy_by_hand() -> None:
    space = discrete(num_actions=3)
    agent, batch = perturb(sac(space=space)), random_transitions(16, space)
    assert isinstance(agent.actor, CategoricalActor)
    assert isinstance(agent.critics, DiscreteCritics)
    with torch.no_grad():
        log_p = agent.actor.log_probabilities(batch.obs)
        q = agent.critics.of_all_actions(batch.obs).amin(0)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        by_hand = (log_p.exp() * (agent.log_alpha.exp() * log_p - q)).sum(1).mean()
    metrics = agent._update_actor(batch, agent.actor.noise(16, agent.generator))
    torch.testing.assert_close(metrics["agent/actor_loss"], by_hand)
    torch.testing.assert_close(metrics["agent/entropy"], entropy)


def test_actor_loss_by_hand() -> None:
    agent, batch = perturb(sac()), random_transitions(16, SPACE)
    assert isinstance(agent.actor, SquashedGaussianActor)
    noise = agent.actor.noise(16, agent.generator)
    with torch.no_grad():
        action, log_density = agent.actor.act_with_log_density(batch.obs, noise)
        q = agent.critics(batch.obs, action)
        by_hand = (agent.log_alpha.exp() * log_density - torch.minimum(q[0], q[1])).mean()
    torch.testing.assert_close(agent._update_actor(batch, noise)["agent/actor_loss"], by_hand)
