"""Batched networks from normalised inputs to targets: deterministic or Gaussian.

They serve transition and reward functions alike, and do not know what they predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbpo_cli.models.function import Network
from mbpo_cli.models.losses import channel_weights, gaussian_loss, half_mean_loss
from mbpo_cli.nn.networks import BatchedMLP, truncated_normal

Distribution = Literal["deterministic", "gaussian"]

# What all members of an ensemble make of so many rows stays in a CPU's cache.
ROWS_AT_ONCE = 512


class Normalizer(nn.Module):
    """Mean and standard deviation of each dimension, taken from data."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, device: torch.device) -> None:
        """Start as the identity."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, device=device))
        self.register_buffer("std", torch.ones(size, device=device))

    def fit(self, values_ND: Tensor) -> None:
        """Take mean and deviation of the rows; a dimension that never varies is only centred."""
        values = values_ND.double()
        mean, std = values.mean(0), values.std(0, correction=0)
        # Rounding gives a constant dimension a tiny deviation, relative to its size.
        constant = std <= 1e-6 * mean.abs().clamp(min=1)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(constant, 1.0, std))

    def forward(self, values: Tensor) -> Tensor:
        """Return normalised values."""
        return (values - self.mean) / self.std


class Regression(Network):
    """An ensemble of networks that maps inputs to targets and is trained by one of two losses.

    Inputs are normalised. So are targets inside the network, which makes the outputs well scaled;
    predictions, and the losses that are reported, are in the targets' own units, as the page defines them.
    """

    weights: Tensor

    def __init__(
        self,
        distribution: Distribution,
        num_members: int,
        input_size: int,
        hidden_sizes: Sequence[int],
        channels: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        """Build the ensemble on the generator's device; targets have `sum(channels)` elements."""
        super().__init__()
        size = sum(channels)
        device = generator.device
        self.gaussian = distribution == "gaussian"
        self.num_members = num_members
        self.inputs = Normalizer(input_size, device)
        self.targets = Normalizer(size, device)
        self.register_buffer("weights", channel_weights(channels).to(device), persistent=False)
        sizes = (input_size, *hidden_sizes, size * (2 if self.gaussian else 1))
        self.mlp = BatchedMLP(num_members, sizes, functional.silu, truncated_normal, generator)
        if self.gaussian:
            # Learned soft limits of the log-variance. Source: PETS, appendix A.1, and MBPO's code.
            self.max_log_variance = nn.Parameter(torch.full((num_members, 1, size), 0.5, device=device))
            self.min_log_variance = nn.Parameter(torch.full((num_members, 1, size), -10.0, device=device))

    def fit_normalizers(self, inputs_NI: Tensor, targets_ND: Tensor) -> None:
        """Take the normalisation from the training data."""
        self.inputs.fit(inputs_NI)
        self.targets.fit(targets_ND)

    def moments(self, inputs_MBI: Tensor, members: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return mean and log-variance (None if deterministic) of the targets, both (M, B, D).

        With `members`, row block m goes through member `members[m]`.
        """
        output: Tensor = self.mlp(self.inputs(inputs_MBI), members)
        if not self.gaussian:
            return output * self.targets.std + self.targets.mean, None
        mean, log_variance = output.chunk(2, dim=-1)
        chosen = slice(None) if members is None else members
        high, low = self.max_log_variance[chosen], self.min_log_variance[chosen]
        log_variance = high - functional.softplus(high - log_variance)
        log_variance = low + functional.softplus(log_variance - low)
        return mean * self.targets.std + self.targets.mean, log_variance + 2 * self.targets.std.log()

    def losses(self, inputs_MBI: Tensor, targets_MBD: Tensor) -> tuple[Tensor, Tensor]:
        """Return each member's loss as the page defines it, shape (M,), and the scalar to minimise.

        The half-mean loss is in the targets' own units, where positions of millimetres would hardly
        count beside speeds of metres per second. What is minimised weighs each element by the inverse
        of its variance, as maximum likelihood does by itself.
        """
        mean, log_variance = self.moments(inputs_MBI)
        if log_variance is None:
            loss_M = half_mean_loss(mean, targets_MBD, self.weights)
            return loss_M, half_mean_loss(mean, targets_MBD, self.weights / self.targets.std.square()).sum()
        loss_M = gaussian_loss(mean, log_variance, targets_MBD, self.weights)
        # Pulls the limits of the log-variance together. Source: the factor of PETS and of MBPO's code.
        # Elements weigh what they weigh in the loss, or the penalty would win where there are many of them.
        width_MD = (self.max_log_variance - self.min_log_variance)[:, 0]
        return loss_M, loss_M.sum() + 0.01 * (width_MD @ self.weights).sum()

    def sample(self, inputs_MBI: Tensor, generator: torch.Generator, members: Tensor | None = None) -> Tensor:
        """Predict targets, drawn from the distribution if it is Gaussian; shape (M, B, D)."""
        mean, log_variance = self.moments(inputs_MBI, members)
        if log_variance is None:
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + noise * torch.exp(0.5 * log_variance)

    def errors(self, inputs_NI: Tensor, targets_ND: Tensor) -> Tensor:
        """Return each member's mean squared error in units of the targets' variance, shape (M,).

        The paper's code ranks members by squared error too, whatever loss trains them, in the targets' units.
        """
        squares_MD = torch.zeros(self.num_members, targets_ND.shape[1], device=targets_ND.device)
        num_rows = len(targets_ND)
        for first in range(0, num_rows, ROWS_AT_ONCE):
            inputs, targets = (rows[first : first + ROWS_AT_ONCE] for rows in (inputs_NI, targets_ND))
            mean, _ = self.moments(inputs.expand(self.num_members, -1, -1))
            squares_MD += ((mean - targets) / self.targets.std).square().sum(1)
        return squares_MD / num_rows @ self.weights
