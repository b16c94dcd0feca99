"""The environment model as agents see it: who predicts what, where gradients flow, what a fit changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mbpo_cli.build import build_agent, build_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.uncertainty import Uncertainty, divergence
from mbpo_cli.models.world import LearnedWorld
from mbpo_cli.nn import compilation
from tests.conftest import TINY, copies, spaces

SPACE, CPU = spaces((3,)), torch.device("cpu")
MEMBERS = ("model.transition.num_networks=5", "model.transition.num_elites=4")


def model_of(*overrides: str) -> EnvironmentModel:
    return build_model(make_config(*TINY, *MEMBERS, *overrides), SPACE, CPU)


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=stream), 2 * torch.rand(count, 1, generator=stream) - 1


@pytest.mark.parametrize("num_rows", [16, 18])
def test_each_row_is_predicted_by_one_elite_and_elites_get_equal_shares(
    num_rows: int, g: torch.Generator
) -> None:
    model = model_of("model/transition=deterministic")
    model.transition.elites = torch.tensor([4, 0, 3, 1])
    world, (obs, action) = LearnedWorld(model, 3), rows(num_rows)
    draws = world.draw(num_rows, g)
    by_member, _ = model.transition.moments(obs, action)
    chosen = []
    for step in range(3):
        next_obs, _, _ = world.step(obs, action, draws, step)
        is_by_MB = (by_member - next_obs).abs().amax(2) < 1e-6
        assert is_by_MB.sum(0).tolist() == [1] * num_rows
        assert not is_by_MB[2].any(), "not an elite"
        shares = is_by_MB.sum(1)[[4, 0, 3, 1]]
        assert shares.max() - shares.min() <= (0 if num_rows == 16 else 4)
        chosen.append(is_by_MB.float().argmax(0).tolist())
    assert chosen[0] != chosen[1] != chosen[2], "dealt anew at every step"


def test_noise_has_the_deviation_that_the_ensemble_predicts(g: torch.Generator) -> None:
    world = LearnedWorld(model_of("model/transition=gaussian"), 1)
    obs, action = (row[:1].expand(8_000, -1) for row in rows(1))
    next_obs, _, _ = world.step(obs, action, world.draw(8_000, g), 0)
    mean, deviation = world._transition.moments(obs[:1], action[:1])
    assert deviation is not None
    variance = deviation.square().mean(0) + mean.var(0, correction=0)
    torch.testing.assert_close(next_obs.var(0), variance[0], rtol=0.1, atol=0.0)


def test_gradients_of_several_steps_are_right(g: torch.Generator) -> None:
    """Against finite differences, in double precision, through a known reward."""
    world, (obs, _) = LearnedWorld(model_of(), 3), rows(8)
    world._transition.network.double()
    draws = world.draw(8, g)
    draws = draws._replace(noise_TEGO=draws.noise_TEGO.double())

    def gained(gain: Tensor, start: Tensor) -> Tensor:
        now, total = start, torch.zeros(8, dtype=torch.float64)
        for step in range(3):
            now, reward, _ = world.step(now, (now * gain).sum(1, keepdim=True).tanh(), draws, step)
            total = total + reward
        return total

    gain = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gained, (gain, obs.double().requires_grad_()))


def test_gradients_go_neither_to_weights_nor_through_ends(g: torch.Generator) -> None:
    model = model_of("model/reward=deterministic", "model/is_done=learned", "env=pendulum")
    world, (obs, action) = LearnedWorld(model, 1), rows(16)
    next_obs, reward, terminated = world.step(obs, action.requires_grad_(), world.draw(16, g), 0)
    assert next_obs.requires_grad
    assert reward.requires_grad
    assert not terminated.requires_grad
    (gradient,) = torch.autograd.grad(next_obs.sum() + reward.sum(), action)
    assert gradient.abs().min() > 0
    for part in model.learned.values():
        assert all(parameter.grad is None for parameter in part.network.parameters())


def test_what_a_fit_changes_is_copied_in_place(g: torch.Generator) -> None:
    model = model_of("model/reward=deterministic", "model/is_done=learned")
    world, (obs, action) = LearnedWorld(model, 1), rows(16)
    places = [parameter.data_ptr() for parameter in world._transition.network.parameters()]
    draws = world.draw(16, g)
    before = world.step(obs, action, draws, 0)
    other = model_of("model/reward=deterministic", "model/is_done=learned", "seed=5")
    other.transition.elites = torch.tensor([2, 1, 4, 3])
    model.load_state_dict(other.state_dict())
    for old, now in zip(before, world.step(obs, action, draws, 0), strict=True):
        assert torch.equal(old, now), "as it was until it is told"
    world.refresh()
    expected = LearnedWorld(model, 1).step(obs, action, draws, 0)
    for now, right in zip(world.step(obs, action, draws, 0), expected, strict=True):
        assert torch.equal(now, right)
    assert not torch.equal(before[0], expected[0])
    assert places == [parameter.data_ptr() for parameter in world._transition.network.parameters()]


def limited(limit: float, *overrides: str) -> Uncertainty:
    config = make_config("mbpo.model_rollout_options.max_divergence=1", *MEMBERS, *overrides)
    uncertainty = Uncertainty(config.mbpo.model_rollout_options, 3)
    uncertainty.step_limit[0] = limit
    return uncertainty


@pytest.mark.parametrize("kind", ["deterministic", "gaussian", "constant_noise"])
def test_a_step_is_certain_where_elites_diverge_less_than_the_limit(kind: str, g: torch.Generator) -> None:
    """Three of four are compared: the row's own and the next two in the order of the elites."""
    model, (obs, action) = model_of(f"model/transition={kind}"), rows(40)
    model.transition.elites = elites = torch.tensor([4, 0, 3, 1])
    world = LearnedWorld(model, 3, limited(0.0))
    draws = world.draw(40, g)
    found = torch.empty(40)
    for group, rows_G in enumerate(draws.rows_TEG[1]):
        chosen = elites.roll(-group)[:3]
        obs_MGO, action_MGA = (each[rows_G].expand(3, -1, -1) for each in (obs, action))
        mean, log_variance = model.transition.moments_of_groups(obs_MGO, action_MGA, chosen)
        if log_variance is None:
            log_variance = torch.zeros_like(mean)
        found[rows_G] = divergence(mean, log_variance).detach()
    limit = found.sort().values[19:21].mean().item()
    world = LearnedWorld(model, 3, limited(limit))
    certain, sums = world.certain(obs.requires_grad_(), action, None, draws, 1)
    torch.testing.assert_close(sums, found[:, None], rtol=1e-4, atol=1e-6)
    assert certain is not None
    assert certain.tolist() == (found < limit).tolist()
    assert certain.sum() == 20


INFORMED = ("model/transition=gaussian", "mbpo.model_rollout_options.max_lost_information=1")


def test_lost_information_adds_up_from_step_to_step(g: torch.Generator) -> None:
    uncertainty, (obs, action) = limited(1e9, *INFORMED), rows(16)
    world = LearnedWorld(model_of(*INFORMED), 2, uncertainty)
    draws = world.draw(16, g)
    certain, first = world.certain(obs, action, None, draws, 0)
    assert certain is not None
    assert first is not None
    assert certain.all()
    assert first.shape == (16, 4), "the divergence, and what each element loses"
    _, second = world.certain(obs, action, None, draws, 1)
    certain, both = world.certain(obs, action, first, draws, 1)
    assert second is not None
    assert both is not None
    torch.testing.assert_close(both, first + second)
    uncertainty.rollout_limit[2] = both[:, 2].sort().values[7:9].mean()
    certain, _ = world.certain(obs, action, first, draws, 1)
    assert certain is not None
    assert certain.tolist() == (both[:, 2] < uncertainty.rollout_limit[2]).tolist()
    assert certain.sum() == 8


@pytest.mark.slow
@pytest.mark.parametrize("is_limited", [False, True])
def test_compiled_updates_through_the_world_are_the_plain_ones(is_limited: bool) -> None:
    agents, uncertainty = [], limited(0.01, *INFORMED) if is_limited else None
    if uncertainty is not None:
        uncertainty.rollout_limit[2] = 60.0  # on average in the third step
    for is_compiled in (False, True):
        config = make_config(*TINY, *MEMBERS, "agent.hidden_sizes=[16,16]", "agent.critics.layer_norm=true")
        agent = build_agent(config, SPACE, CPU)
        agent.enter(LearnedWorld(model_of(*INFORMED), 3, uncertainty))  # type: ignore[attr-defined]
        if is_compiled:
            agent.compile(compilation.compiled)
        agents.append(agent)
    for seed in range(4):
        metrics = [agent.update_in_world([rows(16, seed)[0]])[0] for agent in agents]  # type: ignore[attr-defined]
        if uncertainty is not None:
            assert 0 < metrics[0]["agent/uncertain_share"] < 1
            uncertainty.step_limit[0] = 0.01 - 0.002 * seed  # as in a later generation
        for tag, value in metrics[0].items():
            torch.testing.assert_close(metrics[1][tag], value, rtol=1e-4, atol=1e-5)
    weights = [copies(agent.actor) for agent in agents]  # type: ignore[attr-defined]
    for plain, compiled in zip(*weights, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-5)
