from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mbpo_cli.config.compose import make_config
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.transition import TransitionOptions
from mbpo_cli.nn.optimizers import MemberOptimizerOptions, Optimizer, OptimizerOptions


def test_gradient_threshold_limits_each_network_separately() -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    options = OptimizerOptions(learn_rate=1.0, gradient_threshold=1.0, l2_regularization=0.0)
    optimizer = Optimizer([parameter], options)
    slope = torch.tensor([[30.0, 40.0, 0.0], [0.3, 0.4, 0.0]])
    optimizer.minimize((parameter * slope).sum())
    limited = torch.tensor([[0.6, 0.8, 0.0], [0.3, 0.4, 0.0]])
    torch.testing.assert_close(optimizer.first_moments[0], 0.1 * limited)


def test_l2_regularization_shrinks_weights() -> None:
    parameter = nn.Parameter(torch.ones(1, 3))
    options = OptimizerOptions(learn_rate=0.1, gradient_threshold=None, l2_regularization=0.1)
    Optimizer([parameter], options).minimize((parameter * 0).sum())
    assert (parameter < 1).all()


@pytest.mark.parametrize("is_compiling", [False, True])
def test_steps_equal_torchs_adam_and_continue_after_a_restart(
    is_compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    options = OptimizerOptions(learn_rate=0.1, gradient_threshold=None, l2_regularization=0.1)
    ours, again, theirs = (nn.Parameter(torch.ones(2, 3, 1)) for _ in range(3))
    optimizer, restarted = Optimizer([ours], options), Optimizer([again], options)
    adam = torch.optim.Adam([theirs], lr=0.1, weight_decay=0.1)
    for step in range(6):
        if step == 3:
            restarted.load_state_dict(optimizer.state_dict())
            again.data.copy_(ours.data)
        if step >= 3:
            restarted.minimize((step + again).sin().sum())
        optimizer.minimize((step + ours).sin().sum())
        adam.zero_grad()
        (step + theirs).sin().sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours, again)


def test_gradients_may_have_any_memory_layout() -> None:
    options = OptimizerOptions(learn_rate=0.1, gradient_threshold=None, l2_regularization=0.0)
    weight, bias = nn.Parameter(torch.zeros(1, 2, 3)), nn.Parameter(torch.zeros(1, 1, 3))
    factor = torch.arange(6.0).view(1, 3, 2)
    optimizer = Optimizer([weight, bias], options)
    optimizer.minimize((weight.mT * factor).sum() + bias.sum())
    torch.testing.assert_close(optimizer.first_moments[0], 0.1 * factor.mT)
    torch.testing.assert_close(optimizer.first_moments[1], torch.full((1, 1, 3), 0.1))


def minimized(options: MemberOptimizerOptions | OptimizerOptions, num_steps: int = 5) -> list[torch.Tensor]:
    """The members of a small problem after some steps."""
    weight, bias = nn.Parameter(torch.ones(2, 3, 1)), nn.Parameter(torch.ones(2, 1, 4))
    optimizer = Optimizer([weight, bias], options)
    for step in range(num_steps):
        optimizer.minimize(((step + 1) * weight).square().sum() + (30 * bias).sin().sum())
    return [weight.detach(), bias.detach()]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0.1, None, 0.0), (0.03, None, 0.0)),
        ((0.1, 1.0, 0.0), (0.1, 5.0, 0.0)),
        ((0.1, 2.0, 0.5), (0.0, 3.0, 0.1)),
    ],
)
def test_members_with_their_own_options_train_as_if_alone(
    first: tuple[float, float | None, float], second: tuple[float, float | None, float]
) -> None:
    threshold = None if first[1] is None or second[1] is None else [first[1], second[1]]
    both = minimized(MemberOptimizerOptions([first[0], second[0]], threshold, [first[2], second[2]]))
    for member, options in enumerate((first, second)):
        alone = minimized(OptimizerOptions(*options))
        for together, single in zip(both, alone, strict=True):
            torch.testing.assert_close(together[member], single[member], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [OptimizerOptions(0.1, 1e-9, 0.5), MemberOptimizerOptions(0.1, 1e-9, [0.5] * 2)]
)
@pytest.mark.parametrize("step", [Optimizer._step, Optimizer._step_by_formula])
def test_l2_regularization_is_added_to_all_gradients_after_the_threshold(
    options: OptimizerOptions | MemberOptimizerOptions, step: Any, monkeypatch: pytest.MonkeyPatch
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
