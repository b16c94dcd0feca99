from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.transition import TransitionOptions
from mbpo_cli.nn.compilation import compiled
from mbpo_cli.nn.optimizers import MemberOptimizerOptions, Optimizer
from tests.conftest import adam


def test_gradient_threshold_limits_each_network_separately() -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = Optimizer([parameter], adam(1.0, threshold=1.0))
    slope = torch.tensor([[30.0, 40.0, 0.0], [0.3, 0.4, 0.0]])
    optimizer.minimize((parameter * slope).sum())
    limited = torch.tensor([[0.6, 0.8, 0.0], [0.3, 0.4, 0.0]])
    torch.testing.assert_close(optimizer.first_moments[0], 0.1 * limited)


def test_l2_regularization_shrinks_weights() -> None:
    parameter = nn.Parameter(torch.ones(1, 3))
    Optimizer([parameter], adam(0.1, l2=0.1)).minimize((parameter * 0).sum())
    assert (parameter < 1).all()


BETAS: dict[str, Any] = {"betas": (0.8, 0.99), "eps": 1e-3}


@pytest.mark.parametrize("is_compiling", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "theirs"),
    [
        ("adam", partial(torch.optim.Adam, weight_decay=0.1, **BETAS)),
        ("adamw", partial(torch.optim.AdamW, weight_decay=0.1, **BETAS)),
        ("sgdm", partial(torch.optim.SGD, weight_decay=0.1, momentum=0.8)),
        ("rmsprop", partial(torch.optim.RMSprop, weight_decay=0.1, alpha=0.99, eps=1e-3)),
    ],
)
def test_steps_equal_those_of_torch_and_continue_after_a_restart(
    algorithm: str, theirs: Any, is_compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    others = {"gradient_decay_factor": 0.8, "squared_gradient_decay_factor": 0.99, "epsilon": 1e-3}
    options = adam(0.1, l2=0.1, algorithm=algorithm, **others)
    ours, again, other = (nn.Parameter(torch.ones(2, 3, 1)) for _ in range(3))
    optimizer, restarted = Optimizer([ours], options), Optimizer([again], options)
    reference = theirs([other], lr=0.1)
    for step in range(6):
        if step == 3:
            restarted.load_state_dict(optimizer.state_dict())
            again.data.copy_(ours.data)
        if step >= 3:
            restarted.minimize((step + again).sin().sum())
        optimizer.minimize((step + ours).sin().sum())
        reference.zero_grad()
        (step + other).sin().sum().backward()  # type: ignore[no-untyped-call]
        reference.step()
        torch.testing.assert_close(ours, other)
    assert torch.equal(ours, again)


@pytest.mark.parametrize(
    ("algorithm", "moved"),
    [
        # Two steps with a gradient of 2; the weight before them is 1, the learning rate 0.1.
        ("adam", 2 * 0.1),  # its means are 2 and 4, once their bias is corrected
        ("adamw", 2 * 0.1),
        ("sgdm", 0.1 * 2 + 0.1 * (2 + 0.5 * 2)),
        ("rmsprop", 0.1 * 2 / (0.25 * 4) ** 0.5 + 0.1 * 2 / (0.75 * 0.25 * 4 + 0.25 * 4) ** 0.5),
    ],
)
def test_two_steps_are_those_computed_by_hand(algorithm: str, moved: float) -> None:
    others = {"gradient_decay_factor": 0.5, "squared_gradient_decay_factor": 0.75}
    weight = nn.Parameter(torch.ones(1, 1))
    optimizer = Optimizer([weight], adam(0.1, algorithm=algorithm, **others))
    for _ in range(2):
        optimizer.minimize(2 * weight.sum())
    assert weight.item() == pytest.approx(1 - moved)


@pytest.mark.parametrize("is_compiling", [False, True])
def test_without_memory_adam_moves_by_the_sign_of_the_gradient(
    is_compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    weight = nn.Parameter(torch.zeros(1, 2))
    options = adam(0.1, gradient_decay_factor=0.0, squared_gradient_decay_factor=0.0)
    Optimizer([weight], options).minimize((weight * torch.tensor([3.0, -40.0])).sum())
    torch.testing.assert_close(weight.data, torch.tensor([[-0.1, 0.1]]))


def test_decay_apart_from_the_gradient_shrinks_by_each_members_rate() -> None:
    weight = nn.Parameter(torch.full((2, 3, 1), 2.0))
    Optimizer([weight], adam([0.1, 0.05], l2=[0.5, 0.2], algorithm="adamw")).minimize(0 * weight.sum())
    torch.testing.assert_close(weight[0].data, torch.full((3, 1), 2 * (1 - 0.1 * 0.5)))
    torch.testing.assert_close(weight[1].data, torch.full((3, 1), 2 * (1 - 0.05 * 0.2)))


@pytest.mark.parametrize(
    ("method", "weight", "bias"),
    [
        # The norms are 5 and 12 for the first member, together 13, and 0.5 and 0 for the second.
        ("global_l2norm", [[3 / 6.5, 4 / 6.5], [0.3, 0.4]], [[12 / 6.5, 0], [0, 0]]),
        ("l2norm", [[1.2, 1.6], [0.3, 0.4]], [[2, 0], [0, 0]]),
        ("absolute_value", [[2, 2], [0.3, 0.4]], [[2, 0], [0, 0]]),
    ],
)
@pytest.mark.parametrize("threshold", [2.0, [2.0, 1.0]])
def test_the_method_says_what_the_threshold_limits(
    method: str, weight: list[Any], bias: list[Any], threshold: Any
) -> None:
    slopes = torch.tensor([[3.0, 4.0], [0.3, -0.4]]), torch.tensor([[-12.0, 0.0], [0.0, 0.0]])
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))]
    optimizer = Optimizer(parameters, adam(0.1, threshold, gradient_threshold_method=method))
    loss = [(parameter * slope).sum() for parameter, slope in zip(parameters, slopes, strict=True)]
    optimizer.minimize(torch.stack(loss).sum())
    for moment, slope, limited in zip(optimizer.first_moments, slopes, (weight, bias), strict=True):
        torch.testing.assert_close(moment.data, 0.1 * slope.sign() * torch.tensor(limited))


def test_gradients_may_have_any_memory_layout() -> None:
    weight, bias = nn.Parameter(torch.zeros(1, 2, 3)), nn.Parameter(torch.zeros(1, 1, 3))
    factor = torch.arange(6.0).view(1, 3, 2)
    optimizer = Optimizer([weight, bias], adam(0.1))
    optimizer.minimize((weight.mT * factor).sum() + bias.sum())
    torch.testing.assert_close(optimizer.first_moments[0], 0.1 * factor.mT)
    torch.testing.assert_close(optimizer.first_moments[1], torch.full((1, 1, 3), 0.1))


def minimized(options: MemberOptimizerOptions, num_steps: int = 5) -> list[torch.Tensor]:
    """The members of a small problem after some steps."""
    weight, bias = nn.Parameter(torch.ones(2, 3, 1)), nn.Parameter(torch.ones(2, 1, 4))
    optimizer = Optimizer([weight, bias], options)
    for step in range(num_steps):
        optimizer.minimize(((step + 1) * weight).square().sum() + (30 * bias).sin().sum())
    return [weight.detach(), bias.detach()]


@pytest.mark.parametrize("method", ["global_l2norm", "l2norm", "absolute_value"])
@pytest.mark.parametrize("algorithm", ["adam", "adamw", "sgdm", "rmsprop"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0.1, None, 0.0), (0.03, None, 0.0)),
        ((0.1, 1.0, 0.0), (0.1, 5.0, 0.0)),
        ((0.1, 2.0, 0.5), (0.0, 3.0, 0.1)),
    ],
)
def test_members_with_their_own_options_train_as_if_alone(
    first: tuple[float, float | None, float],
    second: tuple[float, float | None, float],
    algorithm: str,
    method: str,
) -> None:
    others = {"algorithm": algorithm, "gradient_threshold_method": method}
    threshold = None if first[1] is None or second[1] is None else [first[1], second[1]]
    unit = 1.0 if algorithm.startswith("adam") else 1e-3  # first steps of the others are large
    rates = [unit * first[0], unit * second[0]]
    both = minimized(adam(rates, threshold, [first[2], second[2]], **others))
    for member, options in enumerate((first, second)):
        alone = minimized(adam(unit * options[0], *options[1:], **others))
        for together, single in zip(both, alone, strict=True):
            torch.testing.assert_close(together[member], single[member], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "method"),
    [
        ("adamw", "absolute_value"),
        pytest.param("sgdm", "l2norm", marks=pytest.mark.slow),
        pytest.param("rmsprop", "l2norm", marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_equal_plain_ones(algorithm: str, method: str) -> None:
    """Adam with a limit of the whole norm is compiled in the tests of the agents."""
    options = adam([1e-3, 0.0], [0.5, 1.0], [0.1, 0.2], algorithm=algorithm, gradient_threshold_method=method)
    both = [[nn.Parameter(torch.ones(2, 3, 1)), nn.Parameter(torch.ones(2, 1, 4))] for _ in "ab"]
    plain, fast = (Optimizer(parameters, options) for parameters in both)

    def step(optimizer: Optimizer, weight: nn.Parameter, bias: nn.Parameter) -> dict[str, torch.Tensor]:
        loss = weight.square().sum() + bias.sin().sum()
        optimizer.minimize(loss)
        return {"loss": loss.detach()}

    compiled_step = compiled(partial(step, fast, *both[1]))
    for _ in range(3):
        step(plain, *both[0])
        compiled_step([{}])
    for ours, theirs in zip(*both, strict=True):
        assert (ours[0] < 1).all()
        assert torch.equal(theirs[1].data, torch.ones_like(theirs[1]))
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [adam(0.1, 1e-9, 0.5), adam(0.1, 1e-9, [0.5] * 2)])
@pytest.mark.parametrize("step", [Optimizer._step, Optimizer._step_by_formula])
def test_l2_regularization_is_added_to_all_gradients_after_the_threshold(
    options: MemberOptimizerOptions, step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Optimizer, "_step", step)
    parameters = [nn.Parameter(torch.full((2, *shape), 3.0)) for shape in ((3, 1), (1, 4), ())]
    optimizer = Optimizer(parameters, options)
    optimizer.minimize(torch.stack([parameter.sum() for parameter in parameters]).sum())
    for moment in optimizer.first_moments:  # 0.1 of the gradient, of which the threshold leaves nothing
        torch.testing.assert_close(moment, torch.full_like(moment, 0.1 * 0.5 * 3.0))


def test_option_lists_have_one_value_per_network() -> None:
    tiny = ("model.transition.num_networks=2", "model.transition.num_elites=1")
    options = make_config(*tiny, "model.transition.optimizer.learn_rate=[1e-3,0]").model.transition
    assert isinstance(options, TransitionOptions)
    assert options.optimizer.learn_rate == [1e-3, 0.0]
    with pytest.raises(ConfigError, match="needs one value per network, num_networks=2"):
        make_config(*tiny, "model.transition.optimizer.learn_rate=[1e-3]")
    with pytest.raises(ConfigError, match="must be a number from 0 to 1 or a list"):
        make_config(*tiny, "model.transition.optimizer.learn_rate=fast")
    with pytest.raises(ConfigError, match="must be a number from 0 to 1"):
        make_config(*tiny, "model.transition.optimizer.learn_rate=[2,0]")
