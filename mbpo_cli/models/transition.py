"""Learned transition functions: an ensemble that predicts o' from (o, a)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.models.function import LearnedFunction, LearnedOptions
from mbpo_cli.models.regression import Distribution, Regression
from mbpo_cli.nn.optimizers import MemberOptimizerOptions
from mbpo_cli.options import option
from mbpo_cli.types import SpaceSpec, Transitions

# Twice the rounding error of o' - o relative to o, in float32.
ROUNDING_OF_DIFFERENCE = 3e-7


@dataclass
class TransitionOptions(LearnedOptions):
    """Options of the ensemble of transition functions."""

    optimizer: MemberOptimizerOptions = option("how they are trained", matlab="TransitionOptimizerOptions")
    distribution: Distribution = option(
        "deterministic: half-mean loss; gaussian: maximum likelihood with a variance that is learned, "
        "constant_noise: with one that does not depend on the inputs",
        matlab=("rlContinuousDeterministicTransitionFunction", "rlContinuousGaussianTransitionFunction"),
    )
    num_networks: int = option("N_M, members of the ensemble", low=1, high=1000)
    num_elites: int | None = option(
        "members used in rollouts: those with the smallest hold-out error; null = all", low=1
    )
    predict_difference: bool = option("predict o' - o instead of o'", matlab="PredictDiff")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self.optimizer).items():
            if isinstance(value, list) and len(value) != self.num_networks:
                raise ValueError(
                    f"optimizer.{name}={value}: needs one value per network, num_networks={self.num_networks}"
                )
        if self.num_elites is not None and self.num_elites > self.num_networks:
            raise ValueError(
                f"num_elites={self.num_elites}: must be at most num_networks={self.num_networks}"
            )


class LearnedTransition(LearnedFunction):
    """N_M transition functions, trained as one batched network; rollouts use the members `elites`, int64."""

    Options = TransitionOptions
    network: Regression

    def __init__(self, options: TransitionOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        network = Regression(
            options.distribution,
            options.num_networks,
            spaces.obs_size + spaces.action_size,
            options.hidden_sizes,
            spaces.channels,
            generator,
            options.layer_norm,
        )
        super().__init__(network, options, options.optimizer)
        self.predict_difference = options.predict_difference
        self.obs_size = spaces.obs_size
        self.num_elites = options.num_elites or options.num_networks
        self.elites = torch.arange(self.num_elites, device=generator.device)

    def examples(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return (o, a) and o' - o, or o'."""
        target = transitions.next_obs
        if self.predict_difference:
            target = target - transitions.obs
        return torch.cat((transitions.obs, transitions.action), -1), target

    def fit_normalizers(self, inputs_NI: Tensor, targets_NO: Tensor) -> None:
        """Compute the normalization of the network; o' - o has the rounding errors of observations."""
        obs_NO = inputs_NI[:, : self.obs_size].double()
        rounding_O = ROUNDING_OF_DIFFERENCE * obs_NO.abs().mean(0) if self.predict_difference else None
        self.network.fit_normalizers(inputs_NI, targets_NO, rounding_O)

    def predict(
        self, obs_MGO: Tensor, action_MGA: Tensor, members: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Predict next observations, shape (M, G, O), row block m by member `members[m]`."""
        prediction = self.network.sample(torch.cat((obs_MGO, action_MGA), -1), generator, members)
        return self._next_obs(obs_MGO, prediction)

    def moments_of_groups(
        self, obs_MGO: Tensor, action_MGA: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return mean and log-variance of the next observation, both (M, G, O); None if deterministic.

        Row block m is predicted by member `members[m]`, by default m.
        """
        mean, log_variance = self.network.moments(torch.cat((obs_MGO, action_MGA), -1), members)
        return self._next_obs(obs_MGO, mean), log_variance

    def moments(self, obs_BO: Tensor, action_BA: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the next observation's mean and standard deviation by member, shape (M, B, O).

        The deviation is None if the functions are deterministic.
        """
        inputs = torch.cat((obs_BO, action_BA), -1).expand(self.network.num_members, -1, -1)
        mean, log_variance = self.network.moments(inputs)
        deviation = None if log_variance is None else torch.exp(0.5 * log_variance)
        return self._next_obs(obs_BO, mean), deviation

    def compared(
        self, obs_MGO: Tensor, action_MGA: Tensor, count: int, members: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what `count` (K) members predict for each row, its own first: mean and log-variance.

        Row block m is predicted by the members m, m + 1 and so on in a circle, of `members` or of all. Means
        have shape (K, M, G, O); log-variances that are the same for all rows of a block have G = 1. A
        deterministic member counts as a Gaussian with the variance of its targets in the training data.
        """
        obs, action = (
            torch.cat([rows.roll(shift, 0) for shift in range(count)], 1) for rows in (obs_MGO, action_MGA)
        )
        mean, log_variance = self.moments_of_groups(obs, action, members)
        if log_variance is None:
            log_variance = 2 * self.network.targets.std.log().expand_as(mean)
        mean_KMGO, log_variance_KMGO = (
            torch.stack([part.roll(-shift, 0) for shift, part in enumerate(values.chunk(count, 1))])
            for values in (mean, log_variance)
        )
        return mean_KMGO, log_variance_KMGO if self.network.gaussian else log_variance_KMGO[:, :, :1]

    def mixture(self, obs_BO: Tensor, action_BA: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, (B, O), of the next observation that a random member predicts.

        The variance is that between the members' means plus the mean of their own.
        """
        inputs = torch.cat((obs_BO, action_BA), -1).expand(self.network.num_members, -1, -1)
        mean_MBO, log_variance = self.network.moments(inputs)
        # Before o is added: where it is large, rounding would hide how little the members differ.
        variance_BO = mean_MBO.var(0, correction=0)
        if log_variance is not None:
            variance_BO = variance_BO + log_variance.exp().mean(0)
        return self._next_obs(obs_BO, mean_MBO.mean(0)), variance_BO.sqrt()

    def _next_obs(self, obs: Tensor, prediction: Tensor) -> Tensor:
        return obs + prediction if self.predict_difference else prediction

    def error_of_no_change(self, transitions: Transitions) -> Tensor:
        """Return the error of predicting o' = o, in the units of the hold-out errors."""
        same = 0.0 if self.predict_difference else transitions.obs
        _, target = self.examples(transitions)
        return ((target - same) / self.network.targets.std).square().mean(0) @ self.network.weights

    def elect(self, holdout_error_M: Tensor) -> None:
        """Make the members with the smallest hold-out error the elites."""
        self.elites = holdout_error_M.argsort()[: self.num_elites]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of network and optimizer, and the elites."""
        return {**super().state_dict(), "elites": self.elites}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.elites = state["elites"].to(self.elites.device)
