"""What a fit leaves behind when it is stopped; weights of transitions; a paired test that ends fits."""

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mbpo_cli.build import build_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import Stopped
from mbpo_cli.models.bootstrap import SLOTS_AT_ONCE, Bootstrap
from mbpo_cli.models.early_stopping import SignificantStopping, probability_of_no_gain
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.fit import ModelFitter
from mbpo_cli.storage.tensor_tree import encode
from tests.conftest import TINY, copies, random_transitions, same, spaces

SPACE = spaces((3, 1), action_size=2)
# Each of the two epochs has two mini-batches of each of three functions.
CONFIG = make_config(*TINY, "model/reward=gaussian", "model/is_done=learned", "model.training.patience=3")


def fitted_once() -> tuple[EnvironmentModel, ModelFitter]:
    model = build_model(CONFIG, SPACE, torch.device("cpu"))
    fitter = ModelFitter(CONFIG.model.training, 1000, torch.Generator().manual_seed(0))
    fitter.fit(model, random_transitions(100, SPACE), 1)
    return model, fitter


def state(model: EnvironmentModel, fitter: ModelFitter) -> Any:
    return encode((model.state_dict(), fitter.state_dict()))


@pytest.mark.parametrize("num_batches", [0, 1, 2, 5, 6, 11])
def test_a_fit_that_is_stopped_changes_nothing(num_batches: int) -> None:
    model, fitter = fitted_once()
    before = state(model, fitter)
    more = random_transitions(120, SPACE, seed=1)
    asked = itertools.count()
    with pytest.raises(Stopped):
        fitter.fit(model, more, 2, lambda: next(asked) == num_batches)
    assert next(asked) == num_batches + 1, "asked before every mini-batch"
    assert state(model, fitter) == before
    undisturbed, other = fitted_once()
    for each in ((model, fitter), (undisturbed, other)):
        each[1].fit(each[0], more, 2)
    assert state(model, fitter) == state(undisturbed, other) != before


def test_bootstrap_weights_follow_from_seed_and_slot_and_have_a_mean_of_1(g: torch.Generator) -> None:
    state = g.get_state()
    early = Bootstrap(g).weights(10, 3)
    g.set_state(state)
    late = Bootstrap(g).weights(SLOTS_AT_ONCE + 5_000, 3)
    assert torch.equal(late[:10], early), "the same when the buffer has grown, or after a restart"
    assert late.mean(0).tolist() == pytest.approx([1.0, 1.0, 1.0], abs=0.05)
    assert late.var(0).tolist() == pytest.approx([1.0, 1.0, 1.0], abs=0.15)
    assert not torch.equal(late[:, 0], late[:, 1])
    assert not torch.equal(late[SLOTS_AT_ONCE : SLOTS_AT_ONCE + 10], early)


def test_members_learn_what_their_weights_tell_them(g: torch.Generator) -> None:
    """Rows have one of two targets; predictions are near that of the heavier ones."""
    model = build_model(make_config(*TINY, "model/transition=deterministic"), SPACE, torch.device("cpu"))
    part = model.transition
    data = random_transitions(64, SPACE)
    is_first = torch.arange(64) < 32
    data.obs[:], data.action[:] = 0, 0
    data.next_obs[:] = torch.where(is_first, 1.0, -1.0)[:, None]
    inputs, targets = part.examples(data)
    heavy = torch.where(is_first, 1.9, 0.1)
    weights_MB = torch.stack([heavy, 2 - heavy, torch.ones(64)])
    for _ in range(400):
        part.learn(inputs.expand(3, -1, -1), targets.expand(3, -1, -1), g, weights_MB)
    mean, _ = part.moments(data.obs[:1], data.action[:1])
    assert mean[:, 0, 0].tolist() == pytest.approx([0.9, -0.9, 0.0], abs=0.1)


@pytest.mark.parametrize(
    ("gains", "probability"),
    [
        ([1.0, 1.0], 0.0),
        ([-1.0, -1.0], 1.0),
        ([0.0, 0.0], 1.0),
        ([3.0], 0.0),
        ([-1.0, 1.0], 0.5),
        ([0.0, 1.0, 0.0, 1.0], 0.5 * math.erfc(3**0.5 / 2**0.5)),  # mean 1/2, error (1/3)^0.5 / 2
    ],
)
def test_probability_that_new_weights_are_no_better(gains: list[float], probability: float) -> None:
    assert probability_of_no_gain(torch.tensor(gains)) == pytest.approx(probability)


def test_the_paired_test_keeps_the_best_weights_and_ends_a_fit_in_vain() -> None:
    model = build_model(make_config(*TINY, "model/transition=gaussian"), SPACE, torch.device("cpu"))
    network, data = model.transition.network, random_transitions(60, SPACE)
    examples = model.transition.examples(data)
    best = copies(network)
    stopping = SignificantStopping(network, examples, 2, 0.1)
    answers = []
    for _ in range(4):
        with torch.no_grad():
            for weight in network.mlp.weights:
                weight.add_(5.0)
        answers.append(stopping.is_over())
    assert answers == [False, False, True, True]
    stopping.restore_best()
    assert same(network, best)


@pytest.mark.parametrize("restarts", [True, False])
def test_optimizers_begin_anew_if_asked_to(restarts: bool) -> None:
    options = replace(CONFIG.model.training, restart_optimizer=restarts)
    model = build_model(CONFIG, SPACE, torch.device("cpu"))
    fitter = ModelFitter(options, 1000, torch.Generator().manual_seed(0))
    counts = []
    for _ in range(2):
        fitter.fit(model, random_transitions(100, SPACE), 1)
        counts.append(int(model.transition.optimizer.step_counts[0]))
    assert counts == ([2, 2] if restarts else [2, 4])


def test_decoupled_decay_shrinks_weights_by_rate_times_decay() -> None:
    weights = {}
    for decay in (0.0, 0.5):
        overrides = (f"model.transition.layer_decays=[{decay},0]", "model.transition.decoupled_decay=true")
        model = build_model(make_config(*TINY, *overrides), SPACE, torch.device("cpu"))
        inputs, targets = model.transition.examples(random_transitions(16, SPACE))
        model.transition.learn(inputs.expand(3, -1, -1), targets.expand(3, -1, -1))
        weights[decay] = model.transition.network.mlp.weights
    torch.testing.assert_close(weights[0.5][0], weights[0.0][0] * (1 - 0.001 * 0.5))
    assert torch.equal(weights[0.5][1], weights[0.0][1])


def test_dropout_and_layer_norm_are_of_training_and_of_the_network() -> None:
    overrides = ("model.transition.dropout=0.5", "model.transition.layer_norm=true")
    model = build_model(make_config(*TINY, *overrides), SPACE, torch.device("cpu"))
    part, stream = model.transition, torch.Generator().manual_seed(0)
    assert len(part.network.mlp.gains) == 1
    inputs, targets = part.examples(random_transitions(16, SPACE))
    before = [part.network.errors(inputs, targets) for _ in range(2)]
    assert torch.equal(*before), "no dropout in predictions"
    state = copy.deepcopy(part.state_dict())
    losses = []
    for _ in range(2):
        part.load_state_dict(state)
        losses.append(part.learn(inputs.expand(3, -1, -1), targets.expand(3, -1, -1), stream))
    assert not torch.equal(*losses)
