"""Every agent with every model function and both generation schedules, on tiny environments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from mbpo_cli.build import build_trainer
from mbpo_cli.config.compose import make_config
from mbpo_cli.logs.logger import Logger, Sink
from tests.conftest import TINY, gym_env

AGENTS = (
    ("sac", "tests/PointMass-v0"),
    ("td3", "tests/PointMass-v0"),
    ("ddpg", "tests/PointMass-v0"),
    ("dqn", "tests/DiscretePointMass-v0"),
    ("sac", "tests/DiscretePointMass-v0"),
)
FUNCTIONS = (
    ("gaussian", "deterministic"),
    ("deterministic", "gaussian", "known"),
    ("learned", "known", "never"),
)


def combinations() -> Iterator[Any]:
    """Yield all; those not marked slow have all triples of functions, and each agent with each function."""
    for places in itertools.product(range(2), range(3), range(3)):
        kind = (places[1] + places[2]) % 3
        fast = kind if (places[0] + places[1]) % 2 == 0 else (3, 4, 0)[kind]
        functions = [names[place] for names, place in zip(FUNCTIONS, places, strict=True)]
        for number, agent in enumerate(AGENTS):
            yield pytest.param(*agent, *functions, marks=[pytest.mark.slow] * (number != fast))


def test_each_agent_meets_each_function_in_a_fast_test() -> None:
    fast = [each.values for each in combinations() if not each.marks]
    assert len({values[2:] for values in fast}) == 18
    for place in (2, 3, 4):
        assert {(*values[:2], values[place]) for values in fast} == {
            (*agent, name) for agent in AGENTS for name in FUNCTIONS[place - 2]
        }


@pytest.mark.parametrize(("agent", "env", "transition", "reward", "is_done"), combinations())
def test_every_combination_of_agent_and_model_trains(
    agent: str, env: str, transition: str, reward: str, is_done: str, train_in: Callable[..., dict[str, Any]]
) -> None:
    num_env_steps = 150
    for every in ("episode", "50"):
        run = train_in(
            *TINY,
            *gym_env(env),
            "env.kwargs={walls:true}",
            "env.reward_function=tests.conftest.point_mass_reward",
            "env.is_done_function=tests.conftest.point_mass_is_done",
            f"agent={agent}",
            f"model/transition={transition}",
            f"model/reward={reward}",
            f"model/is_done={is_done}",
            f"model.allow_mismatch={is_done == 'never'}",  # these environments do end
            f"mbpo.generate_every={every}",
            f"trainer.num_env_steps={num_env_steps}",
            "trainer.evaluate_every_steps=150",
            "trainer.log_every_steps=75",
            name=every,
        )
        assert run["summary"]["status"] == "done"
        assert run["summary"]["gradient_steps"] == num_env_steps - 5
        last = run["metrics"][-1]
        assert last["buffer/model_size"] > 0
        numbers = [value for row in run["metrics"] for value in row.values()]
        assert all(math.isfinite(number) for number in numbers)
        is_learned = {"transition": True, "reward": reward != "known", "is_done": is_done == "learned"}
        for part, expected in is_learned.items():
            assert any(f"model/{part}_loss" in row for row in run["metrics"]) == expected, part


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "dqn", "sac on two actions"])
def test_every_agent_trains_on_several_observation_channels(
    name: str, train_in: Callable[..., dict[str, Any]]
) -> None:
    discrete = name in ("dqn", "sac on two actions")
    env = "tests/DiscreteChannels-v0" if discrete else "tests/Channels-v0"
    run = train_in(*TINY, *gym_env(env), f"agent={name.split()[0]}", "trainer.num_env_steps=60")
    assert run["summary"]["status"] == "done"
    assert any("model/transition_loss" in row for row in run["metrics"])


class Recorder(Sink):
    """A sink that records all values."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for tag, value in scalars.items():
            self.values.setdefault(tag, []).append(value)

    def commit(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


@pytest.mark.parametrize("distribution", ["deterministic", "gaussian"])
def test_the_logged_transition_loss_is_the_one_of_the_page(distribution: str) -> None:
    """Channels of 10 and 4 elements, one full batch, and a learning rate too small to change any weight."""
    config = make_config(
        *TINY,
        *gym_env("tests/Channels-v0"),
        f"model/transition={distribution}",
        "model.transition.num_elites=null",
        "model.transition.optimizer.learn_rate=1e-30",
        "model.training.holdout_ratio=0",
        "model.training.num_mini_batches=all",
        "model.training.mini_batch_size=1000",
        "mbpo.generate_every=10",
        "trainer.num_env_steps=12",
        "agent.num_warm_start_steps=10",
    )
    recorder = Recorder()
    with ExitStack() as stack:
        trainer = build_trainer(config, Logger([recorder]), stack)
        trainer.train()
    assert trainer.model_based is not None
    (logged,) = recorder.values["model/transition_loss"]
    data = trainer.real_buffer.contents()[:10]  # the model was fitted once, after ten steps
    network = trainer.model_based.model.transition.network
    inputs = torch.cat((data.obs, data.action), 1)
    with torch.no_grad():
        mean, log_variance = network.moments(inputs.expand(3, -1, -1))
    target = data.next_obs - data.obs
    by_member = []
    for m in range(3):
        loss = 0.0
        for channel in (slice(0, 10), slice(10, 14)):
            of_channel = 0.0
            for b in range(10):
                error = target[b, channel] - mean[m, b, channel]
                if log_variance is None:
                    of_channel += float(error.square().sum()) / (2 * 10)
                else:
                    variance = log_variance[m, b, channel].exp()
                    log_density = -0.5 * (error.square() / variance + (2 * math.pi * variance).log())
                    of_channel += -float(log_density.sum()) / 10
            size = channel.stop - channel.start
            loss += of_channel / size / 2
        by_member.append(loss)
    assert logged == pytest.approx(sum(by_member) / 3, rel=1e-4)
