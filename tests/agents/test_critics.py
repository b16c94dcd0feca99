"""What keeps critics from running away: layer norm, random subsets, dropout, bounds, scaled observations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from mbpo_cli.agents.bounds import ReturnBounds
from mbpo_cli.agents.networks import Critics, DeterministicActor, Scaling, Shared, smallest, target_of
from mbpo_cli.agents.options import CriticOptions
from mbpo_cli.build import build_agent
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError
from mbpo_cli.nn.networks import BatchedMLP, dropout_factors, uniform
from tests.agents.test_agents import AGENTS, EVERY_AGENT, make, modules
from tests.conftest import TINY, copies, random_transitions, same, spaces

SPACE = spaces((3,), action_size=2)
EVERYTHING = (
    "agent.critics.number=3",
    "agent.critics.num_in_target=2",
    "agent.critics.layer_norm=true",
    "agent.critics.dropout=0.2",
    "agent.critics.bound_targets=true",
    "agent.normalize_observations=true",
)
OFF = CriticOptions(
    2, 2, layer_norm=False, dropout=0.0, bound_targets=False, bound_quantile=0.0, scale_outputs=False
)


def test_layer_norm_is_that_of_each_member_before_the_activation(g: torch.Generator) -> None:
    mlp = BatchedMLP(2, (3, 8, 5, 1), functional.relu, uniform, g, layer_norm=True)
    for gain, offset in zip(mlp.gains, mlp.offsets, strict=True):
        torch.nn.init.uniform_(gain, 0.5, 2.0, generator=g)
        torch.nn.init.uniform_(offset, -1.0, 1.0, generator=g)
    inputs = torch.randn(2, 7, 3, generator=g)
    for member in range(2):
        hidden = inputs[member]
        for layer in range(2):
            hidden = hidden @ mlp.weights[layer][member] + mlp.biases[layer][member]
            gain, offset = mlp.gains[layer][member, 0], mlp.offsets[layer][member, 0]
            hidden = functional.layer_norm(hidden, hidden.shape[1:], gain, offset).relu()
        expected = hidden @ mlp.weights[2][member] + mlp.biases[2][member]
        torch.testing.assert_close(mlp(inputs)[member], expected)
        with torch.no_grad():  # one member at a time
            torch.testing.assert_close(mlp(inputs, torch.tensor([0, 1]))[member], expected)
        torch.testing.assert_close(mlp(inputs[member][None], slice(member, member + 1))[0], expected)


def test_layer_norm_bounds_how_far_values_go_outside_of_the_data(g: torch.Generator) -> None:
    options = CriticOptions(
        2, 2, layer_norm=True, dropout=0.0, bound_targets=False, bound_quantile=0.0, scale_outputs=False
    )
    near, far = torch.randn(50, 3, generator=g), 1e4 * torch.randn(50, 3, generator=g)
    action = torch.zeros(50, 2)
    bounded, free = (Critics(each, SPACE, [16, 16], g) for each in (options, OFF))
    assert bounded(far, action).abs().max() < 10 * bounded(near, action).abs().max()
    assert free(far, action).abs().max() > 100 * free(near, action).abs().max()


def test_dropout_leaves_out_the_given_fraction_and_keeps_the_mean(g: torch.Generator) -> None:
    mlp = BatchedMLP(2, (3, 400, 300, 1), functional.relu, uniform, g)
    first, second = dropout_factors(0.1, 2, 50, [400, 300], g)
    assert (first.shape, second.shape) == ((2, 50, 400), (2, 50, 300))
    for factors in (first, second):
        assert sorted(set(factors.flatten().tolist())) == pytest.approx([0.0, 1 / 0.9])
        assert float(factors.mean()) == pytest.approx(1.0, abs=0.02)
    nothing = [torch.zeros_like(first), torch.zeros_like(second)]
    inputs = torch.randn(2, 50, 3, generator=g)
    assert torch.equal(mlp(inputs, dropout=nothing), mlp.biases[2].expand(2, 50, 1))


def test_the_target_is_the_smallest_value_of_the_chosen_critics() -> None:
    values = torch.tensor([[1.0, 5.0], [2.0, 4.0], [3.0, 3.0]])
    assert smallest(None)(values).tolist() == [1.0, 3.0]
    assert smallest(torch.tensor([2, 1]))(values).tolist() == [2.0, 3.0]


def test_the_actor_follows_the_mean_if_targets_ask_some_of_the_critics(g: torch.Generator) -> None:
    values = torch.tensor([[1.0, 5.0], [2.0, 4.0], [3.0, 3.0]])
    some = CriticOptions(
        3, 2, layer_norm=False, dropout=0.0, bound_targets=False, bound_quantile=0.0, scale_outputs=False
    )
    every = CriticOptions(
        3, 3, layer_norm=False, dropout=0.0, bound_targets=False, bound_quantile=0.0, scale_outputs=False
    )
    assert Critics(some, SPACE, [4], g).for_actor(values).tolist() == [2.0, 4.0]
    assert Critics(every, SPACE, [4], g).for_actor(values).tolist() == [1.0, 3.0]


@EVERY_AGENT
def test_every_subset_of_the_critics_is_asked(name: str) -> None:
    agent = make(name, *EVERYTHING)
    subsets = {tuple(sorted(agent.draw(4).subset.tolist())) for _ in range(60)}
    assert subsets == {(0, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize(
    ("discount", "rewards", "least", "most"),
    [
        (0.9, [-2.0, 1.0], -20.0, 10.0),
        (0.9, [1.0, 3.0], 1.0, 30.0),  # an episode may end at once
        (0.9, [-3.0, -1.0], -30.0, -1.0),
        (0.0, [-2.0, 1.0], -2.0, 1.0),
        (1.0, [-2.0, 1.0], -torch.inf, torch.inf),
    ],
)
def test_values_are_limited_to_returns_that_rewards_and_discount_allow(
    discount: float, rewards: list[float], least: float, most: float
) -> None:
    bounds = ReturnBounds(discount, 0.0, torch.device("cpu"))
    values = torch.tensor([-1e6, 1e6])
    bounds.see(torch.tensor(rewards))
    limited = bounds.limited(values)
    assert limited.tolist() == pytest.approx([max(least, -1e6), min(most, 1e6)])
    bounds.see(torch.tensor([0.0]))  # rewards that were seen before count
    again = bounds.limited(values).tolist()
    assert again[0] <= limited[0]
    assert again[1] >= limited[1]


def test_bounds_can_be_moving_averages_of_quantiles() -> None:
    bounds = ReturnBounds(0.0, 0.1, torch.device("cpu"))
    bounds.see(torch.arange(11.0))
    assert [float(bounds.low), float(bounds.high)] == pytest.approx([1.0, 9.0])
    bounds.see(torch.arange(11.0) + 1_000)
    assert [float(bounds.low), float(bounds.high)] == pytest.approx([1.3, 9.3], abs=1e-4), "a rate of 3e-4"


def test_scaled_outputs_span_the_possible_returns(g: torch.Generator) -> None:
    bounds, options = ReturnBounds(0.9, 0.0, torch.device("cpu")), replace(OFF, scale_outputs=True)
    shared = Shared(bounds=bounds)
    critics = Critics(options, SPACE, [4], g, shared)
    plain = Critics(OFF, SPACE, [4], g, shared)
    plain.load_state_dict(critics.state_dict())
    obs, action = torch.randn(5, 3, generator=g), torch.zeros(5, 2)
    torch.testing.assert_close(critics(obs, action), plain(obs, action))  # before any reward
    bounds.see(torch.tensor([-1.0, 3.0]))  # returns from -10 to 30
    torch.testing.assert_close(critics(obs, action), 10 + 20 * plain(obs, action))
    bounds.load_state_dict({"low": torch.tensor(1.0), "high": torch.tensor(1.0)})  # returns from 1 to 10
    torch.testing.assert_close(critics(obs, action), 5.5 + 4.5 * plain(obs, action))
    assert target_of(critics).shared.bounds is bounds


def test_the_entropy_bonus_widens_the_bounds() -> None:
    bounds = ReturnBounds(0.9, 0.0, torch.device("cpu"))
    bounds.see(torch.tensor([-1.0, 1.0]))
    limited = bounds.limited(torch.tensor([-1e6, 1e6]), torch.tensor(-0.5), torch.tensor(0.25))
    assert limited.tolist() == pytest.approx([-15.0, 12.5])


@EVERY_AGENT
def test_bounded_targets_keep_values_within_what_is_possible(name: str) -> None:
    """Target critics that promise a million teach at most the largest return."""
    losses = {}
    for bound in (True, False):
        agent = make(name, f"agent.critics.bound_targets={bound}", "agent.discount_factor=0.9")
        target = agent.target_critics if hasattr(agent, "target_critics") else agent.target_critic
        with torch.no_grad():
            target.mlp.biases[-1].fill_(1e6)
        metrics = agent.update([random_transitions(16, AGENTS[name])])[0]
        losses[bound] = float(metrics["agent/critic_loss"])
    assert losses[True] < 1e4 < losses[False]


def test_scaling_has_the_mean_and_the_deviation_of_all_observations(g: torch.Generator) -> None:
    scaling = Scaling(3, torch.device("cpu"))
    obs = torch.randn(300, 3, generator=g) * torch.tensor([1e5, 0.0, 1e-3]) + torch.tensor([1e6, 7.0, 0.0])
    assert torch.equal(scaling(obs[:5]), obs[:5].clamp(-10, 10)), "nothing is known at first"
    for start, end in ((0, 1), (1, 4), (4, 300)):
        scaling.count_in(obs[start:end])
    scaled = scaling(obs).double()
    assert scaled.mean(0).tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-5)
    assert scaled.std(0, correction=0).tolist() == pytest.approx([1.0, 0.0, 1.0], abs=1e-4)
    assert scaling(obs * 1e6).abs().max() <= 10


def test_networks_and_their_targets_share_the_scaling_and_nothing_else(g: torch.Generator) -> None:
    scaling = Scaling(3, torch.device("cpu"))
    actor = DeterministicActor(SPACE, [4], g, Shared(scaling=scaling))
    target = target_of(actor)
    before = copies(target)
    scaling.count_in(torch.randn(9, 3, generator=g))
    assert actor.scaling is target.scaling is scaling
    with torch.no_grad():
        next(actor.parameters()).add_(1.0)
    assert same(target, before)


@EVERY_AGENT
def test_an_agent_with_every_option_is_restored_exactly(name: str, g: torch.Generator) -> None:
    agent, restored = make(name, *EVERYTHING), make(name, *EVERYTHING, "seed=9")
    batches = [random_transitions(16, AGENTS[name], seed=i) for i in range(6)]
    for batch in batches[:3]:
        agent.observe(5 + 3 * batch.obs)
        agent.update([batch])
    restored.load_state_dict(agent.state_dict())
    for batch in batches[3:]:
        for each in (agent, restored):
            each.observe(batch.obs)
            each.update([batch])
    for part, module in modules(agent).items():
        assert same(module, copies(getattr(restored, part))), part
    obs = torch.randn(20, 3, generator=g)
    assert torch.equal(agent.act(obs), restored.act(obs))
    state = agent.policy_state()
    assert any("scaling" in key for key in state), "a policy contains its scaling"


@EVERY_AGENT
def test_units_of_observations_do_not_matter_to_agents_that_scale_them(name: str) -> None:
    units, offset = torch.tensor([1e5, 1e-3, 1.0]), torch.tensor([1e6, 0.0, -30.0])
    values = []
    for factor, shift in ((torch.ones(3), torch.zeros(3)), (units, offset)):
        agent: Any = make(name, "agent.normalize_observations=true")
        for seed in range(3):
            batch = random_transitions(64, AGENTS[name], seed)
            batch.obs[:], batch.next_obs[:] = batch.obs * factor + shift, batch.next_obs * factor + shift
            agent.observe(batch.obs)
            agent.update([batch])
        values.append(agent.value(batch.obs, batch.action))
    torch.testing.assert_close(values[0], values[1], rtol=0.02, atol=0.02)


@EVERY_AGENT
def test_the_greedy_policy_is_an_average_of_the_trained_one(name: str) -> None:
    agent: Any = make(name, "agent.policy_smooth_factor=0.25")
    trained = agent.critic if name == "dqn" else agent.actor
    average = copies(trained)
    every = getattr(agent.options, "policy_update_frequency", 1)
    for seed in range(4):
        agent.update([random_transitions(16, AGENTS[name], seed)])
        if (seed + 1) % every == 0:
            average = [old.lerp(new, 0.25) for old, new in zip(average, trained.parameters(), strict=True)]
    for weight, expected in zip(agent.policy.parameters(), average, strict=True):
        torch.testing.assert_close(weight, expected)
    assert not same(trained, copies(agent.policy))
    assert agent.policy_state().keys() == agent.policy.state_dict().keys()
    assert make(name).state_dict().keys() == agent.state_dict().keys() - {"policy"}, "without an average"


@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_an_actor_whose_actions_are_stuck_at_their_limits_comes_back(name: str) -> None:
    """Where tanh is flat, critics alone do not move it."""
    sizes = {}
    for limit in ("2.0", "null"):
        agent: Any = make(name, f"agent.actor_output_limit={limit}", "agent.actor_optimizer.learn_rate=0.05")
        with torch.no_grad():
            agent.actor.mlp.biases[-1].fill_(12.0)
        for seed in range(200):
            agent.update([random_transitions(16, AGENTS[name], seed)])
        outputs = agent.actor.outputs(random_transitions(16, AGENTS[name]).obs)
        sizes[limit] = outputs.detach().abs().mean().item()
    assert sizes["2.0"] < 3
    assert sizes["null"] > 8


def test_more_critics_in_the_target_than_there_are_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"agent.critics.num_in_target=3: must be at most number=2"):
        make_config(*TINY, "agent.critics.number=2", "agent.critics.num_in_target=3")


def test_the_entropy_weight_has_a_limit() -> None:
    tiny = (*TINY, "agent.entropy_weight_options.entropy_weight=0.5", "agent.hidden_sizes=[8]")
    limit = ("agent.entropy_weight_options.entropy_weight_max=0.6",)
    weights = []
    for overrides in ((), limit):
        options = (
            "agent.entropy_weight_options.learn_rate=0.5",
            "agent.entropy_weight_options.target_entropy=5",
        )
        agent: Any = build_agent(make_config(*tiny, *options, *overrides), SPACE, torch.device("cpu"))
        for seed in range(3):
            agent.update([random_transitions(16, SPACE, seed)])
        weights.append(agent.log_alpha.exp().item())
    assert weights[0] > 0.6
    assert weights[1] == pytest.approx(0.6)
