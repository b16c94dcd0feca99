"""Tensors stay on their device; torch's meta device stands in for a GPU and rejects other tensors."""

from __future__ import annotations

import pytest
import torch

from mbpo_cli import build
from mbpo_cli.buffers import ReplayBuffer, mix
from mbpo_cli.build import build_agent, build_model, build_rollout_policy
from mbpo_cli.config.compose import make_config
from mbpo_cli.models.regions import PlausibleRange
from mbpo_cli.types import SpaceSpec
from tests.conftest import TINY, discrete, random_transitions, spaces

META = torch.device("meta")
CONTINUOUS, DISCRETE = spaces((3,), action_size=1), discrete(num_actions=3)


class MetaGenerator(torch.Generator):
    """A generator with the meta device, which torch does not offer."""

    device = META


@pytest.fixture(autouse=True)
def _use_meta_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "generator", lambda *names, device=None: MetaGenerator())


def test_the_meta_device_rejects_tensors_of_another_device() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=META) + torch.zeros(2)


@pytest.mark.parametrize(
    ("name", "space"),
    [("sac", CONTINUOUS), ("sac", DISCRETE), ("td3", CONTINUOUS), ("ddpg", CONTINUOUS), ("dqn", DISCRETE)],
)
def test_agents_stay_on_their_device(name: str, space: SpaceSpec) -> None:
    agent = build_agent(make_config(*TINY, f"agent={name}"), space, META)
    buffer = ReplayBuffer(100, space, META)
    buffer.add(random_transitions(50, space).to(META))
    batches, _ = mix(buffer, buffer, 16, 0.5, 4, MetaGenerator())
    for metrics in agent.update(batches):
        assert {value.device for value in metrics.values() if isinstance(value, torch.Tensor)} == {META}
    obs, action = batches[0].obs, batches[0].action
    for chosen in (
        agent.act(obs),
        agent.act(obs, MetaGenerator()),
        agent.explore(obs, MetaGenerator(), torch.ones(16, dtype=torch.bool)),
        agent.value(obs, action),
    ):
        assert chosen.device == META


@pytest.mark.parametrize(
    "choices",
    [
        ("model/transition=deterministic", "model/reward=known", "model/is_done=known"),
        ("model/transition=gaussian", "model/reward=gaussian", "model/is_done=learned"),
        ("model/transition=gaussian", "model.transition.layer_decays=[1e-4,1e-3]"),
    ],
)
def test_models_and_their_predictions_stay_on_their_device(choices: tuple[str, ...]) -> None:
    noise = "mbpo/model_rollout_options/noise_options=gaussian"
    config = make_config(*TINY, "env=pendulum", "agent=td3", noise, *choices)
    data = random_transitions(64, CONTINUOUS).to(META)
    model = build_model(config, CONTINUOUS, META)
    for part in model.learned.values():
        inputs, targets = part.examples(data)
        part.network.fit_normalizers(inputs, targets)
        rows = part.network.num_members, -1, -1
        assert part.learn(inputs.expand(rows), targets.expand(rows)).device == META
        assert part.network.errors(inputs, targets).device == META
    policy = build_rollout_policy(config, build_agent(config, CONTINUOUS, META), CONTINUOUS)
    predicted = model.step(data.obs, policy(data.obs, explore=MetaGenerator()), MetaGenerator())
    assert {tensor.device for tensor in vars(predicted).values()} == {META}
    for knows_reward in (False, True):
        region = PlausibleRange(data, 1.0, knows_reward)
        assert region.contains(predicted).device == META
