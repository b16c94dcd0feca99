"""Diagnostics: hand-computed values, and no effect on training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from mbpo_cli.config.compose import make_config
from mbpo_cli.evaluation import diagnostics, pictures
from mbpo_cli.evaluation.diagnostics import Findings
from mbpo_cli.evaluation.evaluate import Episode
from mbpo_cli.nn.optimizers import Optimizer
from mbpo_cli.types import Transitions
from tests.conftest import EXAMINED, adam

Train = Callable[..., dict[str, Any]]


class Line:
    """Members that predict o + (1 + miss) a, where the truth is o + a."""

    def __init__(self, misses: list[float], deviation: float | None = None) -> None:
        self.misses = torch.tensor(misses)
        self.elites = torch.arange(len(misses))
        self.deviation = deviation

    def moments(self, obs_BO: Tensor, action_BA: Tensor) -> tuple[Tensor, Tensor | None]:
        mean = obs_BO + (1 + self.misses)[:, None, None] * action_BA
        return mean, None if self.deviation is None else torch.full_like(mean, self.deviation)

    def moments_of_groups(self, obs_MGO: Tensor, action_MGA: Tensor, members: Tensor) -> tuple[Tensor, None]:
        return obs_MGO + (1 + self.misses[members])[:, None, None] * action_MGA, None


def model_of(transition: Line, **functions: Any) -> Any:
    return SimpleNamespace(transition=transition, **functions)


def walk(num_steps: int, seed: int = 0, terminated: bool = False) -> Episode:
    """A random walk: o' = o + a."""
    action = torch.randn(num_steps, 1, generator=torch.Generator().manual_seed(seed))
    obs = torch.cat((torch.zeros(1, 1), action.cumsum(0)))
    return Episode(obs, action, action[:, 0], terminated)


def test_joined_episodes_end_only_where_they_terminate() -> None:
    rows = diagnostics.joined([walk(3, terminated=True), walk(2)])
    assert rows.terminated.tolist() == [0, 0, 1, 0, 0]
    torch.testing.assert_close(rows.next_obs, rows.obs + rows.action)


def test_one_step_errors_are_in_standard_deviations_of_the_change() -> None:
    rows = diagnostics.joined([walk(500)])
    found = diagnostics.one_step(model_of(Line([0.0, 0.5, -1.0])), rows)
    size = float(rows.action.square().mean().sqrt() / rows.action.std(correction=0))
    assert found.error_MO[:, 0].tolist() == pytest.approx([0.0, 0.5 * size, size], abs=1e-5)
    spread = torch.tensor([0.0, 0.5, -1.0]).std(correction=0)
    assert found.disagreement == pytest.approx(float(spread) * size, rel=1e-4)
    assert found.score_EBO is None


def test_coverage_equals_the_interval_if_the_deviation_is_right() -> None:
    rows = diagnostics.joined([walk(20_000)])
    for deviation, expected in ((1.0, [0.5, 0.8, 0.95]), (100.0, [1, 1, 1]), (0.001, [0, 0, 0])):
        # The error of a member that predicts no change is standard normal.
        found = diagnostics.one_step(model_of(Line([-1.0], deviation)), rows)
        coverage = [found.coverage(interval) for interval in diagnostics.INTERVALS]
        assert coverage == pytest.approx(expected, abs=0.01)


def test_open_loop_predictions_use_the_real_actions_and_their_own_observations() -> None:
    episode = walk(30)
    found = diagnostics.open_loop(model_of(Line([0.0, 1.0])), [episode, walk(4)])
    assert found is not None
    assert found.real_SKO.shape == (11, 21, 1)  # the long episode has eleven starts with twenty steps left
    torch.testing.assert_close(found.predicted_ESKO[0], found.real_SKO)
    # With twice the action at each step, the error is the sum of the actions so far.
    miss_SK = (found.real_SKO - found.real_SKO[:, :1])[:, 1:, 0]
    scale = torch.cat((episode.obs, walk(4).obs)).std(correction=0)
    expected_K = miss_SK.square().mean(0).sqrt() / scale
    torch.testing.assert_close(found.error_EK[1], expected_K)
    torch.testing.assert_close(found.error_EK[0], torch.zeros(20), atol=1e-5, rtol=0)


def test_open_loops_are_shorter_in_short_episodes_and_absent_in_very_short_ones() -> None:
    found = diagnostics.open_loop(model_of(Line([0.0])), [walk(7)])
    assert found is not None
    assert found.error_EK.shape == (1, 7)
    assert diagnostics.open_loop(model_of(Line([0.0])), [walk(4)]) is None


def test_predicted_rewards_and_terminations_are_compared_with_real_ones(g: torch.Generator) -> None:
    def fixed(values: list[float]) -> Any:
        return SimpleNamespace(predict=lambda *_: torch.tensor(values))

    zeros = torch.zeros(4, 1)
    ends = torch.tensor([0.0, 1.0, 1.0, 0.0])
    rows = Transitions(zeros, zeros, torch.tensor([1.0, 3.0, 1.0, 3.0]), zeros, ends)
    reward, is_done = fixed([1.0, 3.0, 1.0, 5.0]), fixed([1.0, 1.0, 0.0, 1.0])
    found = diagnostics.outcome_metrics(model_of(Line([0.0]), reward=reward, is_done=is_done), rows, g)
    assert found == pytest.approx(
        {
            "diagnose/reward_error": 1.0,  # one of four errors is 2, and the standard deviation is 1
            "diagnose/is_done_precision": 1 / 3,
            "diagnose/is_done_recall": 1 / 2,
        }
    )
    never = model_of(Line([0.0]), reward=reward, is_done=fixed([0.0] * 4))
    assert "diagnose/is_done_precision" not in diagnostics.outcome_metrics(never, rows, g)


def test_returns_to_go_are_discounted_and_include_the_rest_after_a_time_limit() -> None:
    to_go = diagnostics.returns_to_go(torch.tensor([1.0, 2.0, 4.0]), 0.5, 8.0)
    assert to_go.tolist() == [1 + 0.5 * (2 + 0.5 * (4 + 0.5 * 8)), 2 + 0.5 * (4 + 0.5 * 8), 8.0]


def test_the_shift_is_in_standard_deviations() -> None:
    real = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    assert diagnostics.shift(real, real) == 0
    deviation = real.std(0, correction=0)
    moved = real + torch.stack((2 * deviation[0], torch.zeros(())))
    assert diagnostics.shift(real, moved) == pytest.approx(1.0, rel=1e-4)  # the mean of two and zero


def test_gradient_norms_are_of_adams_running_mean() -> None:
    weights = torch.nn.Parameter(torch.ones(1, 2))
    optimizer = Optimizer([weights], adam(0.1))
    optimizer.minimize((weights * torch.tensor([3.0, 4.0])).sum())
    agent = SimpleNamespace(critic_optimizer=optimizer, other=1)
    assert diagnostics.gradient_norms(agent) == pytest.approx({"diagnose/gradient_norm_critic": 0.1 * 5.0})


def test_three_pictures_are_due_the_last_one_at_the_end() -> None:
    options = make_config(*EXAMINED, "trainer.num_env_steps=1000", "trainer.evaluate_every_steps=30").trainer
    evaluations = [*range(30, 1000, 30), 1000]
    due = [step for step in evaluations if options.picture_is_due(step)]
    assert due == [360, 690, 1000]


@pytest.mark.parametrize("env", ["pendulum", "cartpole"])
def test_diagnostics_do_not_affect_training_and_can_be_switched_off(train_in: Train, env: str) -> None:
    agent = "dqn" if env == "cartpole" else "sac"
    groups = (f"agent={agent}", f"env={env}", "model/transition=gaussian", "model/is_done=learned")
    options = (*groups, *EXAMINED, "mbpo.generate_every=5", "trainer.num_env_steps=40")
    examined = train_in(*options, name="examined")
    unexamined = train_in(*options, "trainer.diagnostics=false", name="unexamined")
    assert all(
        torch.equal(examined["policy"][name], unexamined["policy"][name]) for name in unexamined["policy"]
    )

    def without(rows: list[dict[str, Any]], *prefixes: str) -> list[dict[str, Any]]:
        return [{tag: row[tag] for tag in row if not tag.startswith(prefixes)} for row in rows]

    assert without(unexamined["metrics"], "time/") == without(examined["metrics"], "time/", "diagnose/")
    tags = {tag for row in examined["metrics"] for tag in row if tag.startswith("diagnose/")}
    assert {
        "diagnose/one_step_error",
        "diagnose/one_step_error_member_2",
        "diagnose/disagreement",
        "diagnose/coverage_80",
        "diagnose/reward_error",
        "diagnose/q_bias",
        "diagnose/q_real",
        "diagnose/q_generated",
        "diagnose/generated_shift",
        "diagnose/gradient_norm_critic",
    } <= tags
    assert all(math.isfinite(row[tag]) for row in examined["metrics"] for tag in row)
    events = EventAccumulator(str(examined["path"])).Reload()
    assert events.Tags()["images"] == ["diagnose/model"]
    assert events.Images("diagnose/model")[-1].encoded_image_string.startswith(b"\x89PNG")
    assert events.Tags()["histograms"] == ["diagnose/actions"]
    assert not EventAccumulator(str(unexamined["path"])).Reload().Tags()["images"]


def test_an_agent_without_a_model_is_examined(train_in: Train) -> None:
    rows = train_in(*EXAMINED, "mbpo=off")["metrics"]
    tags = {tag for row in rows for tag in row if tag.startswith("diagnose/")}
    assert {"diagnose/q_bias", "diagnose/q_real", "diagnose/gradient_norm_actor"} <= tags
    assert not any("one_step" in tag or "generated" in tag for tag in tags)


def test_errors_are_reported_by_channel(train_in: Train) -> None:
    options = (*EXAMINED, "env=gym", "env.id=tests/Channels-v0", "env.module=tests.conftest")
    rows = train_in(*options, "mbpo.generate_every=5")["metrics"]
    tags = {tag for row in rows for tag in row}
    assert {"diagnose/one_step_error_channel_0", "diagnose/one_step_error_channel_1"} <= tags


def test_all_kinds_of_findings_can_be_plotted() -> None:
    rows = diagnostics.joined([walk(40)])
    for deviation, episodes in ((None, [walk(40)]), (0.5, [walk(3)]), (1e-30, [walk(40), walk(21)])):
        model = model_of(Line([0.0, math.inf if deviation == 1e-30 else 0.3], deviation))
        found = Findings(
            {},
            diagnostics.one_step(model, rows),
            diagnostics.open_loop(model, episodes),
            rows.next_obs,
            rows.obs,
            rows.action,
        )
        picture = pictures.of_model(found)
        assert picture is not None
        assert picture.startswith(b"\x89PNG")
    assert pictures.of_model(Findings({}, None, None, rows.obs, None, rows.action)) is None


@pytest.mark.slow
def test_diagnostics_distinguish_a_broken_model_from_a_good_one(tmp_path: Path, train_in: Train) -> None:
    options = ("agent=sac", "env=pendulum", "trainer.num_env_steps=600", "threads=1")
    good = train_in(*options, name="good")["metrics"][-1]
    broken = train_in(*options, "model.transition.optimizer.learn_rate=0", name="broken")["metrics"][-1]
    assert good["diagnose/one_step_error"] < 0.2
    assert broken["diagnose/one_step_error"] > 0.9
    assert broken["diagnose/open_loop_error_5"] > 5 * good["diagnose/open_loop_error_5"]
    (tmp_path / "errors.json").write_text(json.dumps({"good": good, "broken": broken}))
