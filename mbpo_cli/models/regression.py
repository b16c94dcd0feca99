"""Batched networks that map normalized inputs to targets: deterministic, or Gaussian of two kinds.

Used by transition and reward functions. Does not know what the targets mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbpo_cli.models.function import Network, Normalizer
from mbpo_cli.models.losses import channel_weights, gaussian_loss, half_mean_loss

Distribution = Literal["deterministic", "gaussian", "constant_noise"]

SMALLEST_LOG_STD = math.log(1e-3)  # of constant noise, in deviations of the targets

# Rows whose intermediate results of all members fit into a CPU's cache.
ROWS_AT_ONCE = 512


class Regression(Network):
    """An ensemble of networks that maps inputs to targets, with a half-mean or a Gaussian loss.

    Inputs are normalized, and so are targets inside the network, so that its outputs are well scaled.
    Predictions and reported losses are in the targets' own units, as the page defines them.
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
        layer_norm: bool = False,
    ) -> None:
        size, device = sum(channels), generator.device
        is_gaussian = distribution == "gaussian"
        output_size = 2 * size if is_gaussian else size
        super().__init__(num_members, (input_size, *hidden_sizes, output_size), generator, layer_norm)
        self.gaussian = is_gaussian
        self.targets = Normalizer(size, device)
        self.register_buffer("weights", channel_weights(channels).to(device), persistent=False)
        if self.gaussian:
            # Learned soft limits of the log-variance. Source: PETS, appendix A.1, and MBPO's code.
            self.max_log_variance = nn.Parameter(torch.full((num_members, 1, size), 0.5, device=device))
            self.min_log_variance = nn.Parameter(torch.full((num_members, 1, size), -10.0, device=device))
        self.log_std: nn.Parameter | None = None
        if distribution == "constant_noise":
            self.log_std = nn.Parameter(torch.zeros(num_members, 1, size, device=device))

    @property
    def is_random(self) -> bool:
        """True if predictions are drawn from a distribution."""
        return self.gaussian or self.log_std is not None

    def fit_normalizers(
        self, inputs_NI: Tensor, targets_ND: Tensor, rounding_D: Tensor | None = None
    ) -> None:
        """Compute the normalization of inputs and targets from the training data.

        `rounding_D` are the largest deviations of the targets that rounding errors can cause.
        """
        super().fit_normalizers(inputs_NI, targets_ND)
        self.targets.fit(targets_ND, rounding_D)

    def moments(
        self, inputs_MBI: Tensor, members: Tensor | None = None, dropout: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return mean and log-variance of the targets, both (M, B, D); the latter is None if deterministic.

        With `members`, row block m goes through member `members[m]`. `dropout` are factors of hidden units.
        """
        output: Tensor = self.mlp(self.inputs(inputs_MBI), members, dropout)
        if not self.gaussian:
            mean = output * self.targets.std + self.targets.mean
            if self.log_std is None:
                return mean, None
            log_std = self.log_std.clamp(min=SMALLEST_LOG_STD) + self.targets.std.log()
            return mean, 2 * (log_std if members is None else log_std[members]).expand_as(mean)
        mean, log_variance = output.chunk(2, dim=-1)
        chosen = slice(None) if members is None else members
        high, low = self.max_log_variance[chosen], self.min_log_variance[chosen]
        log_variance = high - functional.softplus(high - log_variance)
        log_variance = low + functional.softplus(log_variance - low)
        return mean * self.targets.std + self.targets.mean, log_variance + 2 * self.targets.std.log()

    def losses(
        self,
        inputs_MBI: Tensor,
        targets_MBD: Tensor,
        dropout: Sequence[Tensor] | None = None,
        importance_MB: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return each member's loss as the page defines it, shape (M,), and the scalar to minimize.

        The half-mean loss is in the targets' own units, in which positions in millimeters would hardly count
        next to speeds in meters per second. The minimized scalar therefore weights each element by its
        inverse variance, as maximum likelihood does by itself.
        """
        mean, log_variance = self.moments(inputs_MBI, dropout=dropout)
        if log_variance is None:
            loss_M = half_mean_loss(mean, targets_MBD, self.weights, importance_MB)
            scaled = self.weights / self.targets.std.square()
            return loss_M, half_mean_loss(mean, targets_MBD, scaled, importance_MB).sum()
        loss_M = gaussian_loss(mean, log_variance, targets_MBD, self.weights, importance_MB)
        if not self.gaussian:
            return loss_M, loss_M.sum()
        # Pulls the limits of the log-variance together; the factor is that of PETS and of MBPO's code.
        # Elements have their weights in the loss, or the penalty would dominate for long observations.
        width_MD = (self.max_log_variance - self.min_log_variance)[:, 0]
        return loss_M, loss_M.sum() + 0.01 * (width_MD @ self.weights).sum()

    def sample(self, inputs_MBI: Tensor, generator: torch.Generator, members: Tensor | None = None) -> Tensor:
        """Predict targets, shape (M, B, D), drawn from the distribution if it is Gaussian."""
        return drawn(*self.moments(inputs_MBI, members), generator)

    def scores(self, inputs_NI: Tensor, targets_ND: Tensor) -> Tensor:
        """Return how badly the ensemble as a whole predicts each row, shape (N,).

        The squared error of its mean, in deviations of the targets, or the negative log-likelihood of a
        normal distribution with the mean and the variance of its predictions.
        """
        found = []
        for targets, mean_MND, log_variance in self._predictions(inputs_NI, targets_ND):
            square_ND = (targets - mean_MND.mean(0)).square()
            if log_variance is None:
                score_ND = square_ND / self.targets.std.square()
            else:
                between = mean_MND.var(0) if self.num_members > 1 else 0.0
                variance_ND = between + log_variance.mean(0).exp()
                score_ND = 0.5 * (square_ND / variance_ND + variance_ND.log())
            found.append(score_ND @ self.weights)
        return torch.cat(found)

    def errors(self, inputs_NI: Tensor, targets_ND: Tensor) -> Tensor:
        """Return each member's mean squared error, in units of the targets' variance, shape (M,).

        The paper's code also ranks members by squared error, whatever the loss, but in the targets' units.
        """
        squares_MD = torch.zeros(self.num_members, targets_ND.shape[1], device=targets_ND.device)
        for targets, mean, _ in self._predictions(inputs_NI, targets_ND):
            squares_MD += ((mean - targets) / self.targets.std).square().sum(1)
        return squares_MD / len(targets_ND) @ self.weights

    def _predictions(
        self, inputs_NI: Tensor, targets_ND: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield the targets in chunks, with the moments that each member predicts for them."""
        chunks = (torch.split(rows, ROWS_AT_ONCE) for rows in (inputs_NI, targets_ND))
        for inputs, targets in zip(*chunks, strict=True):
            yield targets, *self.moments(inputs.expand(self.num_members, -1, -1))


def drawn(mean: Tensor, log_variance: Tensor | None, generator: torch.Generator) -> Tensor:
    """Draw from normal distributions; without a log-variance, return the mean."""
    if log_variance is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean + noise * torch.exp(0.5 * log_variance)
