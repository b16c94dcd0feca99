"""Learned reward functions of (o, a, o')."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbpo_cli.models.function import LearnedFunction, OutcomeOptions
from mbpo_cli.models.regression import Distribution, Regression
from mbpo_cli.nn.optimizers import OptimizerOptions
from mbpo_cli.options import option
from mbpo_cli.types import SpaceSpec, Transitions

MAX_ROWS = 20_000  # real transitions that are looked at to tell what a reward function misses


@dataclass
class LearnedRewardOptions(OutcomeOptions):
    """Options of a learned reward function."""

    optimizer: OptimizerOptions = option("how it is trained", matlab="RewardOptimizerOptions")
    distribution: Distribution = option(
        "deterministic: half-mean loss; gaussian: maximum likelihood with a variance that is learned, "
        "constant_noise: with one that does not depend on the inputs",
        matlab=("rlContinuousDeterministicRewardFunction", "rlContinuousGaussianRewardFunction"),
    )


class LearnedReward(LearnedFunction):
    """A network that predicts the reward from the chosen inputs."""

    Options = LearnedRewardOptions
    network: Regression

    def __init__(self, options: LearnedRewardOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        input_size = options.input_size(spaces)
        network = Regression(
            options.distribution, 1, input_size, options.hidden_sizes, (1,), generator, options.layer_norm
        )
        super().__init__(network, options, options.optimizer)
        self.select = options.select

    def examples(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return the chosen inputs and r."""
        inputs = self.select(transitions.obs, transitions.action, transitions.next_obs)
        return inputs, transitions.reward[:, None]

    def relative_error(self, transitions: Transitions) -> Tensor:
        """Return the mean squared error relative to that of the mean reward.

        Errors of a hundredth of the rewards' size count as none: a constant reward, which its mean predicts
        without an error, cannot be learned exactly.
        """
        reward = transitions.reward
        tolerance = (0.01 * reward).square().mean()
        trivial = (reward - self.network.targets.mean).square().mean()
        error = self._errors(transitions).square().mean()
        return (error + tolerance) / (torch.maximum(trivial, tolerance) + tolerance)

    def missed(self, transitions: Transitions) -> Tensor:
        """Return the squared errors relative to the squared rewards: 1 if no reward were predicted at all.

        They are those of the largest rewards on either side: a goal that is rarely reached may bring nearly
        all there is, and may not be in the hold-out set.
        """
        size = transitions.reward.abs()
        largest = transitions[size.topk(min(MAX_ROWS, len(size))).indices]
        tiny = torch.finfo(size.dtype).tiny
        return self._errors(largest).square().sum() / largest.reward.square().sum().clamp(min=tiny)

    def predict(self, obs: Tensor, action: Tensor, next_obs: Tensor, generator: torch.Generator) -> Tensor:
        """Predict rewards, shape (B,)."""
        inputs = self.select(obs, action, next_obs)
        return self.network.sample(inputs[None], generator)[0, :, 0]

    def most_likely(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Return mean rewards, shape (B,)."""
        mean, _ = self.network.moments(self.select(obs, action, next_obs)[None])
        return mean[0, :, 0]

    def _errors(self, real: Transitions) -> Tensor:
        return self.most_likely(real.obs, real.action, real.next_obs) - real.reward
