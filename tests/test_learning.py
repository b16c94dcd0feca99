"""The program learns: a point mass in seconds, Pendulum in minutes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest

from mbpo_cli.nn import compilation
from tests.conftest import TINY, gym_env

Train = Callable[..., dict[str, Any]]

POINT_MASS = (
    *TINY,
    *gym_env("tests/PointMass-v0"),
    "agent.hidden_sizes=[32,32]",
    "agent.mini_batch_size=64",
    "agent.num_warm_start_steps=40",
    "agent.num_gradient_steps_per_update=4",
    "agent.actor_optimizer.learn_rate=3e-3",
    "agent.critic_optimizer.learn_rate=3e-3",
    "agent.discount_factor=0.9",
    "model.transition.hidden_sizes=[32,32]",
    "model/reward=deterministic",
    "model.training.num_mini_batches=20",
    "mbpo.num_epoch_for_training_model=5",
    "mbpo.model_rollout_options.num_rollout=200",
    "trainer.num_env_steps=200",
    "trainer.evaluate_every_steps=40",
    "trainer.num_eval_episodes=10",
)


def evaluations(result: dict[str, Any]) -> list[float]:
    return [row["eval/return_mean"] for row in result["metrics"] if "eval/return_mean" in row]


@pytest.mark.parametrize("mbpo", ["on", "off"])
@pytest.mark.parametrize("transition", ["gaussian", "deterministic"])
def test_agent_learns_to_push_a_point_mass_to_the_origin(mbpo: str, transition: str, train_in: Train) -> None:
    if (mbpo, transition) == ("off", "deterministic"):
        return  # without a model there is no transition model to choose
    result = train_in(*POINT_MASS, f"mbpo={mbpo}", f"model/transition={transition}")
    assert evaluations(result)[0] < -10, "random weights do not solve it"
    assert result["score"] > -3, "pushing straight to the origin returns about -1"


@pytest.mark.slow
def test_pendulum_is_solved_in_600_steps_and_not_without_a_model(train_in: Train) -> None:
    """Acceptance test of the default run: five seeds, about ten minutes."""
    scores = {
        mbpo: [train_in(f"mbpo={mbpo}", f"seed={seed}", name=f"{mbpo}{seed}")["score"] for seed in range(5)]
        for mbpo in ("on", "off")
    }
    assert statistics.mean(scores["on"]) >= -200
    assert statistics.mean(scores["on"]) > statistics.mean(scores["off"]) + 100


AGENTS = pytest.mark.parametrize(
    ("agent", "actions"),
    [("sac", ""), ("td3", ""), ("ddpg", ""), ("sac", "Discrete"), ("dqn", "Discrete")],
)


def learning_curve(train_in: Train, agent: str, actions: str, *overrides: str) -> list[float]:
    task = [key for key in POINT_MASS if agent != "dqn" or not key.startswith("agent.actor")]
    chosen = (f"agent={agent}", f"env.id=tests/{actions}PointMass-v0", *overrides)
    return evaluations(train_in(*task, *chosen, name=overrides[0]))


@pytest.mark.slow
@AGENTS
def test_compiled_agents_have_the_learning_curves_of_the_plain_ones(
    agent: str, actions: str, train_in: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "MIN_CALLS_FOR_SEVERAL", 0)  # as in long runs
    small = "model.training.mini_batch_size=16"  # fits have whole mini-batches, which are compiled
    plain, compiled = (
        learning_curve(train_in, agent, actions, way, small) for way in ("compile=false", "compile=true")
    )
    assert plain[-1] > -3, "the plain agent learns"
    assert compiled == pytest.approx(plain, rel=0.1, abs=0.1)


@pytest.mark.slow
@AGENTS
def test_bfloat16_agents_have_the_learning_curves_of_the_float32_ones(
    agent: str, actions: str, train_in: Train
) -> None:
    plain, rounded = (
        learning_curve(train_in, agent, actions, way) for way in ("precision=float32", "precision=bfloat16")
    )
    assert plain[-1] > -3, "the plain agent learns"
    assert rounded[-1] == pytest.approx(plain[-1], rel=0.1, abs=0.1)
    # During learning, rounded agents can be slightly ahead or behind.
    assert rounded == pytest.approx(plain, rel=0.2, abs=0.2)
