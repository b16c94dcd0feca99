import math

import torch
from torch import tensor

from mbpo_cli.models.losses import channel_weights, gaussian_loss, half_mean_loss, is_done_loss


def test_every_channel_has_the_same_total_weight() -> None:
    weights = channel_weights((10, 4))
    assert weights.tolist() == [tensor(1 / 20).item()] * 10 + [tensor(1 / 8).item()] * 4
    torch.testing.assert_close(weights.sum(), tensor(1.0))


def test_half_mean_loss_by_hand() -> None:
    # One channel: 1/(2*2) * ((1 + 4) + (9 + 0)) / 2 elements = 1.75
    target = tensor([[[0.0, 0.0], [0.0, 0.0]]])
    output = tensor([[[1.0, 2.0], [3.0, 0.0]]])
    assert half_mean_loss(output, target, channel_weights((2,))).tolist() == [1.75]
    # Two channels of one element: (1/4 * (1 + 9) / 1 + 1/4 * (4 + 0) / 1) / 2 = 1.75 as well
    assert half_mean_loss(output, target, channel_weights((1, 1))).tolist() == [1.75]


def test_half_mean_loss_with_two_channels_by_hand() -> None:
    # Errors of 2 in the channel of 10 and of 3 in the channel of 4, batch of 5:
    # L_1 = 1/10 * 5 * 10 * 4 = 20, L_2 = 1/10 * 5 * 4 * 9 = 18, J = (20/10 + 18/4) / 2 = 3.25
    output = torch.cat((torch.full((1, 5, 10), 2.0), torch.full((1, 5, 4), 3.0)), dim=2)
    loss = half_mean_loss(output, torch.zeros(1, 5, 14), channel_weights((10, 4)))
    torch.testing.assert_close(loss, tensor([3.25]))


def test_each_member_has_its_own_loss() -> None:
    output = tensor([[[1.0]], [[2.0]]])
    assert half_mean_loss(output, torch.zeros(2, 1, 1), channel_weights((1,))).tolist() == [0.5, 2.0]


def test_gaussian_loss_is_the_mean_negative_log_likelihood() -> None:
    mean, std, target = tensor([[[0.0], [1.0]]]), tensor([[[1.0], [2.0]]]), tensor([[[1.0], [-3.0]]])
    # -ln N(1; 0, 1) = 0.5 + ln sqrt(2 pi); -ln N(-3; 1, 4) = 0.5 * 16/4 + ln 2 + ln sqrt(2 pi)
    by_hand = (0.5 + 2.0 + math.log(2)) / 2 + 0.5 * math.log(2 * math.pi)
    loss = gaussian_loss(mean, 2 * std.log(), target, channel_weights((1,)))
    torch.testing.assert_close(loss, tensor([by_hand]))
    library = torch.distributions.Normal(mean, std).log_prob(target)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss[0], -library.mean())


def test_is_done_loss_by_hand() -> None:
    # Y = 0.5 everywhere; T = 1, 0, 0, 0: w0 = 1, w1 = 1/3,
    # J = -1/4 * (1 * ln 0.5 + 3 * 1/3 * ln 0.5) = ln(2)/2
    loss = is_done_loss(torch.zeros(1, 4), tensor([[1.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(loss, tensor([math.log(2) / 2]))
    # Y = 0.8, 0.4 with T = 1, 0: J = -1/2 * (ln 0.8 + ln 0.6)
    logits = torch.logit(tensor([[0.8, 0.4]]))
    torch.testing.assert_close(
        is_done_loss(logits, tensor([[1.0, 0.0]])), tensor([-(math.log(0.8) + math.log(0.6)) / 2])
    )


def test_a_class_absent_from_the_batch_contributes_nothing() -> None:
    torch.testing.assert_close(is_done_loss(torch.zeros(1, 2), torch.zeros(1, 2)), tensor([math.log(2) / 2]))
    torch.testing.assert_close(is_done_loss(torch.zeros(1, 2), torch.ones(1, 2)), tensor([math.log(2) / 2]))


def test_is_done_loss_stays_finite_for_certain_and_wrong_predictions() -> None:
    loss = is_done_loss(tensor([[-500.0, 500.0]]), tensor([[1.0, 0.0]]))
    assert loss.tolist() == [500.0]
