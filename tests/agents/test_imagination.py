"""Value expansion and policy gradients through a model, by hand and in every agent that has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mbpo_cli.agents.imagination import unroll
from tests.agents.test_agents import make
from tests.conftest import copies, same

IMAGINING = pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
DISCOUNT = 0.9


class LinearWorld:
    """o' = 0.8 o + 0.5 u, r = 2 o' - u; an episode ends where o' is above 3."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def draw(self, num_rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return ()

    def certain(
        self, obs: Tensor, action: Tensor, earlier: Any, draws: Any, number: int
    ) -> tuple[Tensor | None, Any]:
        return None, None

    def step(self, obs: Tensor, action: Tensor, draws: Any, number: int) -> tuple[Tensor, Tensor, Tensor]:
        next_obs = 0.8 * obs + 0.5 * action.sum(1, keepdim=True)
        return next_obs, 2 * next_obs[:, 0] - action.sum(1), (next_obs[:, 0] > 3).float()


def by_hand(start: float, gain: float, num_steps: int, bonus: float) -> tuple[float, float, float]:
    """Return what the policy u = gain * o gains, its derivative by the gain, and the weight of what follows.

    A derivative is carried along with each number, by the rules of the product and the sum.
    """
    obs, obs_, gained, gained_, weight = start, 0.0, 0.0, 0.0, 1.0
    for _ in range(num_steps):
        action, action_ = gain * obs, obs + gain * obs_
        obs, obs_ = 0.8 * obs + 0.5 * action, 0.8 * obs_ + 0.5 * action_
        gained += weight * (2 * obs - action)
        gained_ += weight * (2 * obs_ - action_)
        weight *= DISCOUNT * (0.0 if obs > 3 else 1.0)
        gained += weight * bonus
    return gained, gained_, weight


def test_gains_and_their_gradient_by_hand() -> None:
    """Three steps; the second row ends early, with the reward of that step and nothing after it."""
    gain = torch.tensor(1.1, requires_grad=True)
    starts = [0.5, 2.0, -1.0]
    path = unroll(
        LinearWorld(3),
        lambda obs, noise: (gain * obs, torch.full((len(obs),), 0.25)),
        torch.tensor(starts)[:, None],
        torch.zeros(4, 3, 1),
        (),
        DISCOUNT,
    )
    for row, start in enumerate(starts):
        gained, derivative, weight = by_hand(start, 1.1, 3, 0.25)
        (gradient,) = torch.autograd.grad(path.gained[row], gain, retain_graph=True)
        found = [path.gained[row].item(), gradient.item(), path.weight[row].item()]
        assert found == pytest.approx([gained, derivative, weight], abs=1e-5)
    assert path.weight[1] == 0 < path.weight[0]
    assert path.rewards[2, 1] == path.rewards[0, 1], "a reward after the end"
    assert len(path.actions) == 4
    torch.testing.assert_close(path.actions[-1], gain * path.last_obs)


def test_what_follows_an_end_cannot_become_infinite() -> None:
    class Explosive(LinearWorld):
        def step(self, obs: Tensor, action: Tensor, draws: Any, number: int) -> tuple[Tensor, Tensor, Tensor]:
            return obs.square() * 1e15, obs[:, 0], torch.ones(len(obs))

    start = torch.full((2, 1), 2.0)
    path = unroll(Explosive(5), lambda o, n: (o, o[:, 0] * 0), start, torch.zeros(6, 2, 1), (), DISCOUNT)
    assert path.gained.tolist() == [2.0, 2.0]
    assert path.weight.tolist() == [0.0, 0.0]
    assert torch.isfinite(path.last_obs).all()


class LimitedWorld(LinearWorld):
    """The linear world, which can be trusted where observations are below a limit."""

    def __init__(self, num_steps: int, limit: float) -> None:
        super().__init__(num_steps)
        self.limit = limit

    def certain(
        self, obs: Tensor, action: Tensor, earlier: Any, draws: Any, number: int
    ) -> tuple[Tensor | None, Any]:
        assert earlier == (number or None), "what the step before returned"
        return obs[:, 0] < self.limit, number + 1


def test_a_path_stops_before_a_step_that_cannot_be_trusted() -> None:
    """With o' = 1.35 o, rows take 4, 2, 0 and 1 steps; then the value of their last action counts."""
    gain = torch.tensor(1.1, requires_grad=True)
    starts, lengths = [0.1, 0.6, 1.5, 0.99], [4, 2, 0, 1]
    noise = torch.arange(5.0)[:, None, None].expand(-1, 4, 1)

    def choose(obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return gain * obs, 0.25 + noise[:, 0]

    path = unroll(LimitedWorld(4, 1.0), choose, torch.tensor(starts)[:, None], noise, (), DISCOUNT)
    assert path.length is not None
    assert path.length.tolist() == lengths
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        short = unroll(LinearWorld(length or 1), choose, torch.tensor([[start]]), noise[:, :1], (), DISCOUNT)
        (gradient,) = torch.autograd.grad(path.gained[row], gain, retain_graph=True, allow_unused=True)
        found = (path.gained[row], path.weight[row], path.last_obs[row], path.actions[-1][row])
        if length == 0:
            assert [each.item() for each in found] == pytest.approx([0.0, 1.0, start, 1.1 * start])
            assert gradient.item() == 0
            taken = torch.tensor(lengths) > 0
            assert path.rewards[:, row].tolist() == pytest.approx([path.rewards[0, taken].mean().item()] * 4)
            continue
        expected = (short.gained[0], short.weight[0], short.last_obs[0], short.actions[-1][0])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        (other_gradient,) = torch.autograd.grad(short.gained[0], gain)
        torch.testing.assert_close(gradient, other_gradient)
        rewards = [*short.rewards[:, 0].tolist(), *[short.rewards[0, 0].item()] * (4 - length)]
        assert path.rewards[:, row].tolist() == pytest.approx(rewards)


def test_an_end_in_a_limited_world_is_still_an_end() -> None:
    start = torch.tensor([[2.8], [0.1]])
    path = unroll(LimitedWorld(2, 3.5), lambda o, n: (1.1 * o, o[:, 0]), start, torch.zeros(3, 2, 1), (), 0.9)
    assert path.length is not None
    assert path.length.tolist() == [1, 2]
    assert path.weight.tolist() == pytest.approx([0.0, 0.81])


def imagining(name: str, num_steps: int, *overrides: str) -> Any:
    agent: Any = make(name, *overrides)
    agent.enter(LinearWorld(num_steps))
    return agent


def starts(seed: int = 0, count: int = 16) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


class WideWorld(LinearWorld):
    """The linear world for observations of three elements, which never ends."""

    def step(self, obs: Tensor, action: Tensor, draws: Any, number: int) -> tuple[Tensor, Tensor, Tensor]:
        next_obs = 0.8 * obs + 0.5 * action.sum(1, keepdim=True)
        return next_obs, next_obs.sum(1), torch.zeros(len(obs))


@IMAGINING
def test_critics_learn_the_expanded_value(name: str) -> None:
    agent = imagining(name, 2, "agent.discount_factor=0.9")
    agent.enter(WideWorld(2))
    obs, noise = starts(), torch.randn(3, 16, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        action, first_bonus = agent.choose(obs, noise[0])
        value, now, act = 0.0, obs, action
        for step, weight in enumerate((1.0, 0.9)):
            now = 0.8 * now + 0.5 * act.sum(1, keepdim=True)
            value = value + weight * now.sum(1)
            act, bonus = agent.choose(now, noise[step + 1])
            value = value + weight * 0.9 * bonus
        target = value + 0.81 * agent.target_critics(now, act).amin(0)
        critic_loss = 0.5 * (agent.critics(obs, action) - target).square().mean(1).sum()
    metrics = agent._step_in_world(obs, agent.draw(16), noise, (), with_targets=False)
    torch.testing.assert_close(metrics["agent/critic_loss"], critic_loss)
    actor_loss = -(first_bonus + value + 0.81 * agent.critics(now, act).amin(0)).mean()
    torch.testing.assert_close(metrics["agent/actor_loss"], actor_loss.detach())


@IMAGINING
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_actor_can_also_climb_the_values_of_its_first_actions(name: str, share: float) -> None:
    losses = []
    obs, noise = starts(), torch.randn(3, 16, 1, generator=torch.Generator().manual_seed(1))
    for each in (0.0, share):
        agent = imagining(name, 2)
        agent.enter(WideWorld(2), each)
        with torch.no_grad():
            action, bonus = agent.choose(obs, noise[0])
        losses.append(agent._step_in_world(obs, agent.draw(16), noise, (), with_targets=False))
    # The critics are those of after their own step, which is the same for both.
    first = -(bonus + agent.critics(obs, action).amin(0)).mean()
    of_path, mixed = (loss["agent/actor_loss"] for loss in losses)
    torch.testing.assert_close(mixed, (1 - share) * of_path + share * first.detach())


@IMAGINING
def test_rows_that_cannot_be_trusted_teach_the_critics_nothing(name: str) -> None:
    metrics = {}
    obs, noise = starts(), torch.zeros(3, 16, 1)
    is_trusted = obs[:, 0] < 0
    for limit in (0.0, -10.0, 1e9):
        agent = imagining(name, 2, "agent.critic_optimizer.learn_rate=1e-2")
        world = LimitedWorld(2, limit)
        world.step = WideWorld(2).step  # type: ignore[method-assign]
        agent.enter(world)
        before = copies(agent.critics)
        metrics[limit] = agent._step_in_world(obs, agent.draw(16), noise, (), with_targets=False)
        assert same(agent.critics, before) == (limit == -10.0)
    assert metrics[-10.0]["agent/critic_loss"] == 0
    assert metrics[-10.0]["agent/uncertain_share"] == 1
    assert metrics[-10.0]["agent/path_length"] == 0
    assert metrics[1e9]["agent/uncertain_share"] == 0
    assert metrics[1e9]["agent/path_length"] == 2
    assert metrics[0.0]["agent/uncertain_share"] >= 1 - is_trusted.float().mean()
    assert metrics[0.0]["agent/path_length"] <= 2 * is_trusted.float().mean()


@IMAGINING
def test_the_actors_step_changes_neither_critics_nor_world(name: str) -> None:
    agent = imagining(name, 3, "agent.critic_optimizer.learn_rate=0", "agent.actor_optimizer.learn_rate=1e-3")
    agent.enter(WideWorld(3))
    critics, actor = copies(agent.critics), copies(agent.actor)
    for seed in range(3):
        agent.update_in_world([starts(seed)])
    assert same(agent.critics, critics)
    assert not same(agent.actor, actor)
    assert all(parameter.grad is None for parameter in agent.critics.parameters())


@IMAGINING
def test_the_actor_climbs_rewards_that_critics_know_nothing_of(name: str) -> None:
    """The world rewards large observations, which positive actions bring; critics are constant."""
    agent = imagining(name, 3, "agent.critic_optimizer.learn_rate=0", "agent.actor_optimizer.learn_rate=1e-2")
    agent.enter(WideWorld(3))
    before = agent.act(starts()).mean()
    agent.update_in_world([starts(seed) for seed in range(60)])
    assert agent.act(starts()).mean() > before + 0.3


@IMAGINING
def test_an_agent_that_imagines_is_restored_exactly(name: str) -> None:
    options = ("agent.critics.number=3", "agent.critics.num_in_target=2", "agent.critics.dropout=0.1")
    more = ("agent.critics.scale_outputs=true", "agent.critics.bound_quantile=0.1")
    one, two = imagining(name, 2, *options, *more), imagining(name, 2, *options, *more, "seed=7")
    for each in (one, two):
        each.enter(WideWorld(2))
    one.update_in_world([starts(seed) for seed in range(3)])
    two.load_state_dict(one.state_dict())
    for each in (one, two):
        each.update_in_world([starts(seed) for seed in range(3, 6)])
    assert same(one.critics, copies(two.critics))
    assert same(one.actor, copies(two.actor))


@IMAGINING
def test_an_examination_tells_bias_and_gradients_by_step_and_changes_nothing(name: str) -> None:
    agent = imagining(name, 2)
    agent.enter(WideWorld(2))
    before, stream = copies(agent.critics), torch.Generator().manual_seed(0)
    found = agent.examine_in_world(starts(), torch.zeros(16), stream)
    more = agent.examine_in_world(starts(), torch.full((16,), 5.0), torch.Generator().manual_seed(0))
    assert found["diagnose/expanded_value_bias"] - more["diagnose/expanded_value_bias"] == pytest.approx(5.0)
    norms = [found[f"diagnose/action_gradient_{step}"] for step in range(3)]
    assert min(norms) > 0
    assert len(found) == 4
    assert same(agent.critics, before)
