import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mbpo_cli.build import build_component, build_rollout_policy
from mbpo_cli.commands.check import check
from mbpo_cli.config.compose import make_config
from mbpo_cli.exploration import (
    DecayingNoise,
    EpsilonGreedy,
    GaussianNoise,
    GaussianNoiseOptions,
    OrnsteinUhlenbeckNoise,
    RolloutPolicy,
)
from mbpo_cli.failures import ConfigError
from mbpo_cli.types import Accelerate, ContinuousActions, Metrics, SpaceSpec, Transitions
from tests.conftest import discrete, spaces

PREFIX = "mbpo.model_rollout_options.noise_options"
HALF = torch.full((20_000, 1), 0.5)


class HalfAgent:
    """An agent with action 0.5, or 0.25 when it explores."""

    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        return torch.full((len(obs), 1), 0.5 if explore is None else 0.25)

    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.zeros(len(obs))

    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        return self.act(obs, generator)

    def observe(self, obs: Tensor) -> None: ...

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        return [{} for _ in batches]

    def compile(self, accelerate: Accelerate) -> None: ...

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...

    def policy_state(self) -> dict[str, Tensor]:
        return {}


def gaussian(**changes: float) -> GaussianNoise:
    overrides = [f"{PREFIX}.{key}={value}" for key, value in changes.items()]
    config = make_config("mbpo/model_rollout_options/noise_options=gaussian", *overrides)
    noise = build_component(config.mbpo.model_rollout_options.noise_options, spaces())
    assert isinstance(noise, GaussianNoise)
    return noise


def test_empty_noise_uses_the_agents_own_exploration(g: torch.Generator) -> None:
    policy = build_rollout_policy(make_config(), HalfAgent(), spaces())
    assert policy(torch.zeros(2, 3), explore=g).tolist() == [[0.25], [0.25]]


def test_gaussian_noise_has_mean_and_deviation_around_the_greedy_action(g: torch.Generator) -> None:
    actions = gaussian(mean=-0.1, standard_deviation=0.05)(HALF, g)
    torch.testing.assert_close(actions.mean(), torch.tensor(0.4), atol=2e-3, rtol=0)
    torch.testing.assert_close(actions.std(), torch.tensor(0.05), atol=2e-3, rtol=0)


def test_gaussian_noise_and_noisy_actions_are_limited(g: torch.Generator) -> None:
    actions = gaussian(standard_deviation=5, lower_limit=-0.2, upper_limit=1.5)(HALF, g)
    assert actions.min().item() == pytest.approx(0.3)
    assert actions.max().item() == 1.0


def test_gaussian_noise_decays_to_its_minimum() -> None:
    noise = gaussian(standard_deviation=0.4, standard_deviation_decay_rate=0.5, standard_deviation_min=0.15)
    deviations = []
    for _ in range(4):
        deviations.append(noise.standard_deviation)
        noise.decay()
    assert deviations == [0.4, 0.2, 0.15, 0.15]
    restored = gaussian()
    restored.load_state_dict(noise.state_dict())
    assert restored.standard_deviation == 0.15


def test_gaussian_noise_below_its_minimum_does_not_change() -> None:
    noise = gaussian(standard_deviation=0.05, standard_deviation_decay_rate=0.5, standard_deviation_min=0.15)
    noise.decay()
    assert noise.standard_deviation == 0.05


def test_without_a_stream_there_is_no_noise() -> None:
    assert RolloutPolicy(HalfAgent(), gaussian())(torch.zeros(2, 3)).tolist() == [[0.5], [0.5]]


def test_noise_in_rollouts_is_added_to_greedy_actions(g: torch.Generator) -> None:
    policy = RolloutPolicy(HalfAgent(), gaussian(mean=0.2, standard_deviation=0, upper_limit=1))
    assert policy(torch.zeros(2, 3), explore=g)[:, 0].tolist() == pytest.approx([0.7, 0.7])


def test_limits_in_the_wrong_order_are_rejected() -> None:
    with pytest.raises(ValueError, match="lower_limit=1"):
        GaussianNoiseOptions("x", 0, "scaled", 1, 0, 0, 1.0, 0.5)


def test_equal_limits_give_constant_noise(g: torch.Generator) -> None:
    assert set(gaussian(lower_limit=0.25, upper_limit=0.25)(HALF, g).flatten().tolist()) == {0.75}


# Two elements whose ranges are 4 and 100 wide, 2 and 50 times as wide as half the scaled range.
TWO = SpaceSpec((3,), ContinuousActions((-2.0, 0.0), (2.0, 100.0)))
EACH = "agent.exploration.standard_deviation=[0.1,0.4]"


def of_two_elements(exploration: str, *overrides: str) -> DecayingNoise:
    config = make_config("agent=td3", f"agent/exploration={exploration}", *overrides)
    noise = build_component(config.agent.exploration, TWO)  # type: ignore[attr-defined]
    assert isinstance(noise, DecayingNoise)
    return noise


@pytest.mark.parametrize("exploration", ["gaussian", "ornstein_uhlenbeck"])
def test_each_element_can_have_its_own_deviation(exploration: str, g: torch.Generator) -> None:
    both, first, second = (
        of_two_elements(exploration, f"agent.exploration.standard_deviation={value}")
        for value in ("[0.1,0.4]", "0.1", "0.4")
    )
    streams = [torch.Generator().manual_seed(1) for _ in range(3)]
    zero, starts = torch.zeros(5, 2), torch.tensor([False] * 5)
    for act in (lambda noise, stream: noise(zero, stream), lambda n, stream: n.advance(zero, stream, starts)):
        each, as_first, as_second = map(act, (both, first, second), streams)
        torch.testing.assert_close(each, torch.stack((as_first[:, 0], as_second[:, 1]), 1))


def test_deviations_of_each_element_decay_to_their_own_minimum_and_are_restored() -> None:
    rates = "agent.exploration.standard_deviation_decay_rate=0.5"
    least = "agent.exploration.standard_deviation_min=[0.07,0.15]"
    noise, restored = (of_two_elements("gaussian", EACH, rates, least) for _ in "ab")
    seen = []
    for _ in range(3):
        seen.append(noise.standard_deviation)
        noise.decay()
    assert seen == [[0.1, 0.4], [0.07, 0.2], [0.07, 0.15]]
    restored.load_state_dict(noise.state_dict())
    assert restored.standard_deviation == [0.07, 0.15]
    together = of_two_elements("gaussian", "agent.exploration.standard_deviation=0.4", rates, least)
    together.decay(2)
    assert together.standard_deviation == [0.1, 0.15]


def test_deviations_can_be_in_the_units_of_the_environments_action() -> None:
    units = "agent.exploration.standard_deviation_units=action"
    assert of_two_elements("gaussian", EACH, units).standard_deviation == [0.1 / 2, 0.4 / 50]
    one = of_two_elements("gaussian", units, "agent.exploration.standard_deviation=5")
    assert one.standard_deviation == [5 / 2, 5 / 50]
    assert one.deviation(torch.zeros(1, 2)).tolist() == pytest.approx([2.5, 0.1])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("option", "given"), [("standard_deviation", "[0.1, 0.2]"), ("standard_deviation_min", "[0.1, 0.2, 0.3]")]
)
def test_a_list_of_another_length_than_the_action_is_refused(option: str, given: str) -> None:
    check(make_config("agent=td3", "env=pendulum", f"agent.exploration.{option}=[0.1]"))
    config = make_config("agent=td3", "env=pendulum", f"agent.exploration.{option}={given}")
    right = "must be a number or a list of length 1, with one value per element of an action of Pendulum-v1"
    with pytest.raises(ConfigError, match=re.escape(f"agent.exploration.{option}={given}: {right}")):
        check(config)


def ornstein_uhlenbeck(**changes: float) -> OrnsteinUhlenbeckNoise:
    overrides = [f"agent.exploration.{key}={value}" for key, value in changes.items()]
    config = make_config("agent=ddpg", "agent/exploration=ornstein_uhlenbeck", *overrides)
    noise = build_component(config.agent.exploration, spaces())  # type: ignore[attr-defined]
    assert isinstance(noise, OrnsteinUhlenbeckNoise)
    return noise


def walk(noise: OrnsteinUhlenbeckNoise, num_steps: int, g: torch.Generator) -> Tensor:
    zero = torch.zeros(1, 1)
    return torch.cat(
        [noise.advance(zero, g, first=torch.tensor([step == 0]))[0] for step in range(num_steps)]
    )


def test_correlated_noise_without_randomness_moves_to_the_mean(
    g: torch.Generator,
) -> None:
    noise = ornstein_uhlenbeck(
        initial_action=0.8, mean=0.4, mean_attraction_constant=0.5, standard_deviation=0
    )
    assert walk(noise, 4, g).tolist() == pytest.approx([0.8, 0.6, 0.5, 0.45])
    assert walk(noise, 2, g).tolist() == pytest.approx([0.8, 0.6]), "noise restarts with the episode"


def test_correlated_noise_has_the_deviation_and_correlation_of_its_process(g: torch.Generator) -> None:
    noise = ornstein_uhlenbeck(mean_attraction_constant=0.2, standard_deviation=0.1)
    path = walk(noise, 20_000, g)[100:]
    deviation = 0.1 / (1 - 0.8**2) ** 0.5
    assert path.std().item() == pytest.approx(deviation, rel=0.05)
    correlation = torch.corrcoef(torch.stack((path[1:], path[:-1])))[0, 1].item()
    assert correlation == pytest.approx(0.8, abs=0.02)
    rows = noise(torch.zeros(20_000, 1), g)
    assert rows.std().item() == pytest.approx(deviation, rel=0.05), "rows are stationary"


def test_correlated_noise_decays_and_is_restored(g: torch.Generator) -> None:
    noise = ornstein_uhlenbeck(
        standard_deviation=0.4, standard_deviation_decay_rate=0.5, standard_deviation_min=0.15
    )
    walk(noise, 3, g)
    assert noise.standard_deviation == 0.15
    other = ornstein_uhlenbeck(
        standard_deviation=0.4, standard_deviation_decay_rate=0.5, standard_deviation_min=0.15
    )
    other.load_state_dict(noise.state_dict())
    streams = [torch.Generator().manual_seed(1) for _ in range(2)]
    paths = [
        [float(one.advance(torch.zeros(1, 1), stream, first=torch.tensor([False]))) for _ in range(5)]
        for one, stream in zip((noise, other), streams, strict=True)
    ]
    assert paths[0] == paths[1]


def epsilon_greedy(**changes: float) -> EpsilonGreedy:
    overrides = [f"{PREFIX}.{key}={value}" for key, value in changes.items()]
    choice = "mbpo/model_rollout_options/noise_options=epsilon_greedy"
    config = make_config(choice, *overrides)
    noise = build_component(config.mbpo.model_rollout_options.noise_options, discrete(num_actions=4))
    assert isinstance(noise, EpsilonGreedy)
    return noise


def test_epsilon_is_the_fraction_of_random_actions_which_are_uniform(g: torch.Generator) -> None:
    greedy = torch.tensor([[0.0, 1.0, 0.0, 0.0]]).expand(40_000, 4)
    fractions = epsilon_greedy(epsilon=0.4)(greedy, g).mean(0)
    torch.testing.assert_close(fractions, torch.tensor([0.1, 0.7, 0.1, 0.1]), atol=0.01, rtol=0)
    assert torch.equal(epsilon_greedy(epsilon=0)(greedy, g), greedy)


def test_epsilon_decays_to_its_minimum_and_is_restored() -> None:
    noise, seen = epsilon_greedy(epsilon=1, epsilon_decay=0.5, epsilon_min=0.3), []
    for _ in range(4):
        seen.append(noise.epsilon)
        noise.decay()
    assert seen == [1.0, 0.5, 0.3, 0.3]
    other = epsilon_greedy()
    other.load_state_dict(noise.state_dict())
    assert other.epsilon == 0.3
