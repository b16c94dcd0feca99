import math

import pytest
import torch
from torch import Tensor, nn

from mbpo_cli.agents.networks import SquashedGaussianActor, smooth_update
from mbpo_cli.agents.sac import SAC
from mbpo_cli.build import build_agent
from mbpo_cli.compose import make_config
from mbpo_cli.networks import BatchedMLP, uniform
from mbpo_cli.optimizers import Optimizer, OptimizerOptions
from mbpo_cli.types import SpaceSpec
from tests.conftest import TINY, random_transitions, spaces

SPACE = spaces((3,), action_size=2)


def sac(*overrides: str, space: SpaceSpec = SPACE) -> SAC:
    agent = build_agent(make_config(*TINY, *overrides), space, torch.device("cpu"))
    assert isinstance(agent, SAC)
    return agent


def copies(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(module: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def test_log_density_is_that_of_a_tanh_transformed_normal(g: torch.Generator) -> None:
    actor = SquashedGaussianActor(3, 2, [8], g)
    obs = torch.randn(50, 3, generator=g)
    action, log_density = actor.sample(obs, g)
    mean, log_std = actor.moments(obs)
    reference = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()), [torch.distributions.TanhTransform()]
    )
    by_library = reference.log_prob(action)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_density, by_library.sum(-1), atol=1e-3, rtol=1e-3)


def test_log_density_is_finite_where_tanh_saturates(g: torch.Generator) -> None:
    actor = SquashedGaussianActor(1, 1, [4], g)
    with torch.no_grad():
        actor.mlp.biases[-1][..., 0] = 50.0
    action, log_density = actor.sample(torch.zeros(10, 1), g)
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


def test_critic_loss_by_hand() -> None:
    agent = sac()
    batch = random_transitions(16, SPACE)
    state = agent.generator.get_state()
    with torch.no_grad():
        next_action, log_density = agent.actor.sample(batch.next_obs, agent.generator)
        q = agent.target_critics(batch.next_obs, next_action)
        soft_value = torch.minimum(q[0], q[1]) - agent.log_alpha.exp() * log_density
        target = batch.reward + 0.99 * (1 - batch.terminated) * soft_value
        values = agent.critics(batch.obs, batch.action)
        by_hand = 0.5 * ((values[0] - target) ** 2).mean() + 0.5 * ((values[1] - target) ** 2).mean()
    agent.generator.set_state(state)
    torch.testing.assert_close(agent.update(batch)["agent/critic_loss"], by_hand)


def test_terminal_states_are_worth_nothing() -> None:
    agent = sac()
    batch = random_transitions(16, SPACE)
    batch.terminated = torch.ones(16)
    values = agent.critics(batch.obs, batch.action).detach()
    loss = agent.update(batch)["agent/critic_loss"]
    torch.testing.assert_close(loss, 0.5 * (values - batch.reward).square().mean(1).sum())


def test_actor_loss_leaves_no_gradient_in_the_critics() -> None:
    agent = sac()
    agent.update(random_transitions(16, SPACE))
    agent.critic_optimizer.adam.zero_grad()
    agent._update_actor(random_transitions(16, SPACE))
    assert all(p.grad is None for p in agent.critics.parameters())


@pytest.mark.parametrize(("entropy_is_low", "sign"), [(True, 1), (False, -1)])
def test_entropy_weight_moves_towards_the_target_entropy(entropy_is_low: bool, sign: int) -> None:
    target = 100.0 if entropy_is_low else -100.0
    agent = sac(f"agent.entropy_weight_options.target_entropy={target}")
    before = agent.log_alpha.item()
    agent.update(random_transitions(16, SPACE))
    assert math.copysign(1, agent.log_alpha.item() - before) == sign


def test_entropy_weight_starts_as_told_and_stays_with_learn_rate_0() -> None:
    agent = sac(
        "agent.entropy_weight_options.entropy_weight=0.3", "agent.entropy_weight_options.learn_rate=0"
    )
    agent.update(random_transitions(16, SPACE))
    torch.testing.assert_close(agent.log_alpha.exp(), torch.tensor([0.3]))


def test_targets_follow_by_the_smooth_factor() -> None:
    agent = sac("agent.target_smooth_factor=0.25")
    before = copies(agent.target_critics)
    agent.update(random_transitions(16, SPACE))
    for target, old, source in zip(
        agent.target_critics.parameters(), before, agent.critics.parameters(), strict=True
    ):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * source)


def test_smooth_update_with_factor_1_copies(g: torch.Generator) -> None:
    a, b = (BatchedMLP(2, (3, 4, 1), torch.relu, uniform, g) for _ in range(2))
    smooth_update(a, b, 1.0)
    assert same(a, copies(b))


def test_update_frequencies() -> None:
    agent = sac("agent.target_update_frequency=3", "agent.policy_update_frequency=2")
    moved = []
    for _ in range(6):
        targets, actor = copies(agent.target_critics), copies(agent.actor)
        metrics = agent.update(random_transitions(16, SPACE))
        moved.append((not same(agent.target_critics, targets), not same(agent.actor, actor)))
        assert ("agent/actor_loss" in metrics) == moved[-1][1]
    assert [target for target, _ in moved] == [False, False, True] * 2
    assert [actor for _, actor in moved] == [False, True] * 3


def test_twin_critics_differ() -> None:
    values = sac().critics(torch.randn(4, 3), torch.randn(4, 2))
    assert not torch.equal(values[0], values[1])


def test_gradient_threshold_limits_each_network_by_itself() -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    options = OptimizerOptions(learn_rate=1.0, gradient_threshold=1.0, l2_regularization=0.0)
    optimizer = Optimizer([parameter], options)
    slope = torch.tensor([[30.0, 40.0, 0.0], [0.3, 0.4, 0.0]])
    optimizer.minimize((parameter * slope).sum())
    expected = torch.tensor([[0.6, 0.8, 0.0], [0.3, 0.4, 0.0]])
    torch.testing.assert_close(parameter.grad, expected)


def test_l2_regularization_pulls_weights_to_zero() -> None:
    parameter = nn.Parameter(torch.ones(1, 3))
    options = OptimizerOptions(learn_rate=0.1, gradient_threshold=None, l2_regularization=0.1)
    Optimizer([parameter], options).minimize((parameter * 0).sum())
    assert (parameter < 1).all()


def test_interrupted_and_restored_equals_uninterrupted() -> None:
    agent, restored = sac(), sac("seed=9")
    batches = [random_transitions(16, SPACE, seed=i) for i in range(6)]
    for batch in batches[:3]:
        agent.update(batch)
    restored.load_state_dict(agent.state_dict())
    for batch in batches[3:]:
        agent.update(batch)
        restored.update(batch)
    for part in ("actor", "critics", "target_critics"):
        assert same(getattr(agent, part), copies(getattr(restored, part)))
    assert torch.equal(agent.log_alpha, restored.log_alpha)
    assert agent.num_updates == restored.num_updates


def test_metrics_are_detached() -> None:
    for value in sac().update(random_transitions(16, SPACE)).values():
        assert isinstance(value, Tensor)
        assert not value.requires_grad
        assert value.ndim == 0
