"""Generated experience is held back while the model is not clearly better than knowing nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from mbpo_cli.build import build_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.models.guard import Guard
from mbpo_cli.models.reward import LearnedReward
from mbpo_cli.types import Transitions
from tests.conftest import TINY, random_transitions, spaces

SPACE = spaces((3,))
GOOD = {"model/relative_error": 0.05, "model/relative_reward_error": 0.9, "model/missed_reward": 0.4}


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (GOOD, None),
        ({"model/relative_error": 0.1}, None),  # a known reward has no error
        ({"model/relative_error": 0.11}, "its error on hold-out data is 0.11 of that of 'nothing changes'"),
        ({"model/relative_error": float("nan")}, "its error on hold-out data is nan"),
        (GOOD | {"model/relative_reward_error": 1.5}, "its reward is worse than the mean reward (1.5 of"),
        (GOOD | {"model/missed_reward": 0.6}, "it misses the largest rewards (0.6 of their squares)"),
        ({}, "there are too few real transitions to test it"),
    ],
)
def test_a_model_that_is_not_clearly_better_than_nothing_is_held_back(
    metrics: dict[str, float], reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard(0.1)
    with caplog.at_level(logging.INFO):
        logged = guard.judge(metrics, 1500)
    assert guard.is_closed == (reason is not None)
    assert logged == {"rollout/held_back": int(guard.is_closed)}
    assert bool(caplog.messages) == guard.is_closed
    if reason is not None:
        assert caplog.messages[0].startswith(f"step 1,500: the model is not used, because {reason}")


def test_one_line_says_when_it_begins_and_one_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(0.1)
    with caplog.at_level(logging.INFO):
        counts = [
            guard.judge({"model/relative_error": error}, step)["rollout/held_back"]
            for step, error in enumerate((0.5, 0.3, 0.02, 0.01, 0.2, 0.03))
        ]
    assert counts == [1, 2, 2, 2, 3, 3]
    verdicts = [message.split(",")[0].removeprefix("step ") for message in caplog.messages]
    assert verdicts == [
        "0: the model is not used",
        "2: the model is good enough",
        "4: the model is not used",
        "5: the model is good enough",
    ]


def test_a_model_that_updates_go_through_must_be_twice_as_good_to_be_used_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for guard, expected in ((Guard(0.1), [0, 1, 1, 1, 1]), (Guard(0.1, through_model=True), [0, 1, 2, 2, 2])):
        with caplog.at_level(logging.INFO):
            counts = [
                guard.judge({"model/relative_error": error}, step)["rollout/held_back"]
                for step, error in enumerate((0.08, 0.2, 0.06, 0.04, 0.08))
            ]
        assert counts == expected
    assert [message.split(",")[0] for message in caplog.messages[2:]] == [
        "step 1: the model is not used",
        "step 3: the model is good enough",
    ]


def test_without_a_limit_every_model_is_used() -> None:
    guard = Guard(None)
    assert guard.judge({"model/relative_error": 9.0}, 0) == {}
    assert not guard.is_closed


def test_a_restored_guard_says_nothing_twice(caplog: pytest.LogCaptureFixture) -> None:
    guard, restored = Guard(0.1), Guard(0.1)
    guard.judge({"model/relative_error": 9.0}, 0)
    restored.load_state_dict(guard.state_dict())
    with caplog.at_level(logging.INFO):
        assert restored.judge({"model/relative_error": 9.0}, 1) == {"rollout/held_back": 2}
    assert caplog.messages == []


@pytest.mark.parametrize("difference", [True, False])
def test_an_error_of_one_is_that_of_nothing_changes(difference: bool) -> None:
    config = make_config(*TINY, f"model.transition.predict_difference={difference}")
    model = build_model(config, SPACE, torch.device("cpu"))
    data = random_transitions(200, SPACE)
    data.next_obs.copy_(data.obs + 0.1 * data.next_obs + 0.3)
    model.transition.fit_normalizers(*model.transition.examples(data))
    error = model.transition.error_of_no_change(data)
    std = model.transition.network.targets.std
    expected = ((data.next_obs - data.obs) / std).square().mean()
    torch.testing.assert_close(error, expected)
    errors = model.relative_errors(data, data, torch.full((3,), 0.25) * error)
    assert float(errors["model/relative_error"]) == pytest.approx(0.25)


def saying(value: float, rewards: list[float]) -> tuple[LearnedReward, Transitions]:
    """Return a reward function that always says the same, and real transitions that it was fitted to."""
    model = build_model(make_config(*TINY, "model/reward=deterministic"), SPACE, torch.device("cpu"))
    assert isinstance(model.reward, LearnedReward)
    data = random_transitions(len(rewards), SPACE)
    data.reward.copy_(torch.tensor(rewards))
    model.reward.fit_normalizers(*model.reward.examples(data))
    network: Any = model.reward.network
    network.moments = lambda inputs: (torch.full((*inputs.shape[:2], 1), value), None)
    return model.reward, data


@pytest.mark.parametrize(
    ("rewards", "says", "relative"),
    [
        ([0.0, 2.0], 1.0, 1.0),  # the mean
        ([0.0, 2.0], 2.0, 2.0),
        ([1.0, 1.0], 1.0, 0.5),  # a constant that is hit
        ([1.0, 1.0], 1.005, 0.625),  # within a hundredth, which counts as learned
        ([1.0, 1.0], 1.011, 1.105),
        ([1.0, 1.0], 1.1, 50.5),
    ],
)
def test_a_reward_is_compared_with_the_mean_reward(
    rewards: list[float], says: float, relative: float
) -> None:
    reward, data = saying(says, rewards)
    assert float(reward.relative_error(data)) == pytest.approx(relative, rel=0.02)


@pytest.mark.parametrize(
    ("rewards", "says", "missed"),
    [
        ([-1.0, -1.0, -1.0, 0.0], -1.0, 1 / 3),  # an end that stops a cost: the mean will do
        ([0.0, -0.1, 0.0, 100.0], 8.0, 0.8464 + 3 * 0.0064),  # a goal that is not predicted
        ([0.0, -0.1, 0.0, 100.0], 0.0, 1.0),
    ],
)
def test_rewards_that_are_missed_are_told_by_their_size(
    rewards: list[float], says: float, missed: float
) -> None:
    reward, data = saying(says, rewards)
    assert float(reward.missed(data)) == pytest.approx(missed, rel=1e-3)


def test_held_back_generations_leave_no_generated_experience_and_only_real_mini_batches(
    train_in: Any,
) -> None:
    more = ("trainer.num_env_steps=20", "mbpo.generate_every=5", "model.training.holdout_ratio=0.5")
    held = train_in(*TINY, *more, "mbpo.max_relative_error=1e-9", "trainer.diagnostics=true", name="held")
    rows = held["metrics"]
    assert [row["rollout/held_back"] for row in rows if "rollout/held_back" in row] == [1, 2, 3]
    assert not any("rollout/num_generated" in row for row in rows)
    assert {row["mix/num_generated"] for row in rows if "mix/num_generated" in row} == {0}
    assert {row["buffer/model_size"] for row in rows if "buffer/model_size" in row} == {0}
