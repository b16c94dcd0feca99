import pytest
import torch
from torch import Tensor

from mbpo_cli.build import build_component
from mbpo_cli.compose import make_config
from mbpo_cli.exploration import AgentExploration, GaussianNoise, GaussianNoiseOptions
from mbpo_cli.types import Metrics, Transitions
from tests.conftest import spaces

PREFIX = "mbpo.model_rollout_options.noise_options"


class HalfAgent:
    """Acts 0.5, or 0.25 when it explores."""

    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        return torch.full((len(obs), 1), 0.5 if explore is None else 0.25)

    def update(self, batch: Transitions) -> Metrics:
        return {}

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...

    def policy_state(self) -> dict[str, Tensor]:
        return {}


def gaussian(**changes: float) -> GaussianNoise:
    overrides = [f"{PREFIX}.{key}={value}" for key, value in changes.items()]
    config = make_config("mbpo/model_rollout_options/noise_options=gaussian", *overrides)
    noise = build_component(config.mbpo.model_rollout_options.noise_options, HalfAgent(), spaces())
    assert isinstance(noise, GaussianNoise)
    return noise


def test_empty_noise_is_the_agents_own_exploration(g: torch.Generator) -> None:
    options = make_config().mbpo.model_rollout_options.noise_options
    policy = build_component(options, HalfAgent(), spaces())
    assert isinstance(policy, AgentExploration)
    assert policy(torch.zeros(2, 3), explore=g).tolist() == [[0.25], [0.25]]


def test_gaussian_noise_has_mean_and_deviation_around_the_greedy_action(g: torch.Generator) -> None:
    actions = gaussian(mean=-0.1, standard_deviation=0.05)(torch.zeros(20_000, 3), explore=g)
    torch.testing.assert_close(actions.mean(), torch.tensor(0.4), atol=2e-3, rtol=0)
    torch.testing.assert_close(actions.std(), torch.tensor(0.05), atol=2e-3, rtol=0)


def test_gaussian_noise_is_limited_and_so_are_actions(g: torch.Generator) -> None:
    actions = gaussian(standard_deviation=5, lower_limit=-0.2, upper_limit=1.5)(
        torch.zeros(999, 3), explore=g
    )
    assert actions.min().item() == pytest.approx(0.3)
    assert actions.max().item() == 1.0


def test_gaussian_noise_decays_to_its_minimum_and_no_further() -> None:
    noise = gaussian(standard_deviation=0.4, standard_deviation_decay_rate=0.5, standard_deviation_min=0.15)
    deviations = []
    for _ in range(4):
        deviations.append(noise.standard_deviation)
        noise.decay()
    assert deviations == [0.4, 0.2, 0.15, 0.15]
    restored = gaussian()
    restored.load_state_dict(noise.state_dict())
    assert restored.standard_deviation == 0.15


def test_gaussian_noise_below_its_minimum_stays_as_it_is() -> None:
    noise = gaussian(standard_deviation=0.05, standard_deviation_decay_rate=0.5, standard_deviation_min=0.15)
    noise.decay()
    assert noise.standard_deviation == 0.05


def test_without_a_stream_there_is_no_noise() -> None:
    assert gaussian()(torch.zeros(2, 3)).tolist() == [[0.5], [0.5]]


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="lower_limit=1"):
        GaussianNoiseOptions("x", 0, 1, 0, 0, 1.0, 0.5)
