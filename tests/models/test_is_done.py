"""Ends of episodes: how often they are predicted falsely, and how often they are missed."""

import copy
import math
from typing import Any

import pytest
import torch

from mbpo_cli.build import build_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.models.fit import ModelFitter
from mbpo_cli.models.is_done import LearnedIsDone, precision_and_recall
from mbpo_cli.types import Metrics, Transitions
from tests.conftest import TINY, spaces

SPACE = spaces((2,))
CONFIG = make_config(
    *TINY,
    "model/reward=deterministic",
    "model/is_done=learned",
    "model.reward.hidden_sizes=[8,8]",
    "model.reward.optimizer.learn_rate=0.01",
    "model.is_done.hidden_sizes=[32,32]",
    "model.training.mini_batch_size=64",
)


def walks(num_rows: int, seed: int, end: float = 2.0) -> Transitions:
    """Return steps that end where the first element of o' exceeds `end`, 2 % of them by default."""
    g = torch.Generator().manual_seed(seed)
    obs, action = torch.randn(num_rows, 2, generator=g), torch.rand(num_rows, 1, generator=g)
    next_obs = obs + 0.1 * torch.randn(num_rows, 2, generator=g)
    return Transitions(obs, action, torch.zeros(num_rows), next_obs, (next_obs[:, 0] > end).float())


def fitted(data: Transitions, num_epochs: int = 3, **changes: Any) -> tuple[LearnedIsDone, Metrics]:
    """Fit an is-done function with other values of its options, with at least 2 mini-batches an epoch."""
    config = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        setattr(config.model.is_done, name, value)
    model = build_model(config, SPACE, torch.device("cpu"))
    assert isinstance(model.is_done, LearnedIsDone)
    fitter = ModelFitter(config.model.training, len(data), torch.Generator().manual_seed(0))
    return model.is_done, fitter.fit(model, data, num_epochs)


def predicted(is_done: LearnedIsDone, data: Transitions) -> torch.Tensor:
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return is_done.predict(data.obs, data.action, data.next_obs, stream)


def rate_of_false_ends(is_done: LearnedIsDone, data: Transitions) -> float:
    return float(predicted(is_done, data)[data.terminated == 0].mean())


@pytest.mark.parametrize("allowed", [0.0, 0.004, 0.03])
def test_few_steps_are_false_ends_after_the_shortest_fit(allowed: float) -> None:
    data = walks(1000, seed=0)
    plain, _ = fitted(data, max_false_ends=None)
    assert plain.threshold == 0
    assert rate_of_false_ends(plain, data) > 0.1
    is_done, _ = fitted(data, max_false_ends=allowed)
    rate = rate_of_false_ends(is_done, data)
    assert allowed - 2 / len(data) < rate <= allowed, "as many as are allowed, because the fit is bad"
    assert rate_of_false_ends(is_done, walks(5000, seed=1)) <= 3 * allowed + 0.01


def test_a_long_fit_finds_the_ends_of_fresh_steps() -> None:
    is_done, metrics = fitted(walks(1500, seed=0), 200)
    fresh = walks(5000, seed=1)
    assert rate_of_false_ends(is_done, fresh) <= 0.01
    assert predicted(is_done, fresh)[fresh.terminated == 1].mean() >= 0.75
    assert min(metrics["model/is_done_precision"], metrics["model/is_done_recall"]) >= 0.5


def test_a_threshold_is_never_lower_than_that_of_the_balanced_loss() -> None:
    is_done, _ = fitted(walks(500, seed=0), max_false_ends=1.0)
    assert is_done.threshold == 0


@pytest.mark.parametrize("deterministic", [True, False])
def test_no_end_is_predicted_before_one_was_seen(deterministic: bool) -> None:
    without = walks(300, seed=0, end=math.inf)
    is_done, metrics = fitted(without, 1, use_deterministic_predict=deterministic)
    assert not predicted(is_done, walks(5000, seed=1)).any()
    assert {"model/is_done_precision", "model/is_done_recall"}.isdisjoint(metrics)
    is_done.calibrate(walks(1000, seed=0))
    with torch.no_grad():
        is_done.network.mlp.biases[-1].add_(1000)
    assert predicted(is_done, without).all(), "the threshold is finite again"


def test_only_ends_are_no_reason_to_fail() -> None:
    is_done, _ = fitted(walks(50, seed=0, end=-math.inf))
    assert is_done.threshold == 0


def test_the_threshold_is_part_of_the_state_but_not_of_that_of_older_versions() -> None:
    is_done, _ = fitted(walks(500, seed=0))
    other, _ = fitted(walks(500, seed=1))
    assert is_done.threshold > 0
    assert is_done.threshold != other.threshold
    state = is_done.state_dict()
    other.load_state_dict(state)
    assert other.threshold == is_done.threshold
    del state["threshold"]
    other.load_state_dict(state)
    assert other.threshold == 0


def test_the_threshold_of_many_steps_is_that_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbpo_cli.models.is_done.MAX_ROWS", 1000)
    is_done, _ = fitted(walks(3500, seed=0), max_false_ends=0.02)
    assert 0.01 < rate_of_false_ends(is_done, walks(3500, seed=0)) < 0.03


def test_precision_and_recall_by_hand() -> None:
    predicted_ends, ends = torch.tensor([1.0, 1, 1, 0, 0]), torch.tensor([1.0, 0, 0, 1, 0])
    assert precision_and_recall(predicted_ends, ends) == {
        "precision": pytest.approx(1 / 3),
        "recall": pytest.approx(1 / 2),
    }
    assert precision_and_recall(torch.zeros(5), ends) == {"recall": 0}
    assert precision_and_recall(ends, torch.zeros(5)) == {"precision": 0}


@pytest.mark.parametrize("part", ["reward", "is_done"])
def test_one_weight_decay_counts_for_all_layers(part: str) -> None:
    parameters = []
    for decays in (0.1, [0.1, 0.1, 0.1], 0.0):
        config = copy.deepcopy(CONFIG)
        getattr(config.model, part).layer_decays = decays
        function = getattr(build_model(config, SPACE, torch.device("cpu")), part)
        inputs, targets = function.examples(walks(50, seed=0))
        function.learn(inputs[None], targets[None])
        parameters.append(torch.cat([parameter.flatten() for parameter in function.network.parameters()]))
    assert torch.equal(parameters[0], parameters[1])
    assert not torch.equal(parameters[0], parameters[2])
