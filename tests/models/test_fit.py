"""What a fit leaves behind when it is stopped."""

import itertools
from typing import Any

import pytest
import torch

from mbpo_cli.build import build_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import Stopped
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.fit import ModelFitter
from mbpo_cli.storage.tensor_tree import encode
from tests.conftest import TINY, random_transitions, spaces

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
