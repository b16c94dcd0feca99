"""What the agents of this package share besides networks: counting updates, compilation and checkpoints.

An agent of your own does not need it (see `mbpo_cli.types.Agent`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mbpo_cli.agents.bounds import ReturnBounds
from mbpo_cli.agents.networks import (
    ACTIVATIONS,
    INITIALIZERS,
    Network,
    Scaling,
    Shared,
    smooth_update,
    target_of,
)
from mbpo_cli.agents.options import TargetNetworkOptions
from mbpo_cli.nn.compilation import one_by_one
from mbpo_cli.nn.networks import dropout_factors
from mbpo_cli.nn.optimizers import Optimizer
from mbpo_cli.types import Accelerate, GradientStep, Metrics, SpaceSpec, Transitions


class Draws(NamedTuple):
    """What is random in one update of the critics.

    `subset` are the critics whose smallest value is the target, None all of them. The others are factors of
    the hidden units of target critics and critics, by layer, None without dropout.
    """

    subset: Tensor | None = None
    target_dropout: Sequence[Tensor] | None = None
    dropout: Sequence[Tensor] | None = None


class Bookkeeping:
    """Counts updates, takes gradient steps (compiled or not), and saves every attribute that has a state."""

    policy: Any  # the network of the greedy policy
    critic_optimizer: Optimizer
    _step: GradientStep
    """One gradient step: a function of what `arguments` returns that changes nothing but parameters."""

    def __init__(self, options: TargetNetworkOptions, spaces: SpaceSpec, generator: torch.Generator) -> None:
        self.options = options
        self.num_updates = 0
        self._steps = one_by_one(self._step)
        if options.critics.are_random:
            self.generator = generator
        self.scaling = Scaling(spaces.obs_size, generator.device) if options.normalize_observations else None
        self.bounds: ReturnBounds | None = None
        critics = options.critics
        if critics.bound_targets or critics.scale_outputs:
            self.bounds = ReturnBounds(options.discount_factor, critics.bound_quantile, generator.device)
        initialize, activation = INITIALIZERS[options.initial_weights], ACTIVATIONS[options.activation]
        self.shared = Shared(activation, initialize, self.scaling, self.bounds)

    def observe(self, obs: Tensor) -> None:
        """Count real observations, shape (B, O), in the scaling of the networks' inputs."""
        if self.scaling is not None:
            self.scaling.count_in(obs)

    def arguments(self, batch: Transitions) -> dict[str, Any]:
        """Return the arguments of one gradient step; subclasses add flags and random numbers."""
        with_targets = self.is_due(self.options.target_update_frequency)
        return {"batch": batch, "draws": self.draw(len(batch)), "with_targets": with_targets}

    def draw(self, num_rows: int) -> Draws:
        """Draw what is random in an update of the critics on `num_rows` transitions."""
        options, draws = self.options.critics, Draws()
        if options.num_in_target < options.number:
            order = torch.randperm(options.number, generator=self.generator, device=self.generator.device)
            draws = draws._replace(subset=order[: options.num_in_target])
        if options.dropout > 0:
            sizes = self.options.hidden_sizes
            of_targets, of_values = (
                dropout_factors(options.dropout, options.number, num_rows, sizes, self.generator)
                for _ in range(2)
            )
            draws = draws._replace(target_dropout=of_targets, dropout=of_values)
        return draws

    def bounded(self, reward_B: Tensor, value_B: Tensor) -> Tensor:
        """Return values within what is possible, if targets are bounded."""
        if self.bounds is None:
            return value_B
        self.bounds.see(reward_B)
        is_limited = self.options.critics.bound_targets
        return self.bounds.limited(value_B, *self.bonus_range()) if is_limited else value_B

    def bonus_range(self) -> tuple[Tensor | float, Tensor | float]:
        """Return the range of the bonuses of actions, for the bounds of targets."""
        return 0.0, 0.0

    def fit_critics(self, values: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Take a gradient step from the critics' values (M, B) towards their target (B,)."""
        loss = 0.5 * (values - target).square().mean(1).sum()
        self.critic_optimizer.minimize(loss)
        return {"agent/critic_loss": loss.detach(), "agent/q_value": values.detach().mean()}

    def policy_state(self) -> dict[str, Tensor]:
        """Return the weights of the greedy policy."""
        state: dict[str, Tensor] = self.policy.state_dict()
        return state

    def policy_of(self, network: Network) -> Network:
        """Return the network of the greedy policy: an average of a trained one, or that itself."""
        return network if self.options.policy_smooth_factor == 1 else target_of(network)

    def average(self, policy: nn.Module, trained: nn.Module) -> None:
        """Move the network of the greedy policy towards the trained one, after an update of that."""
        if policy is not trained:
            smooth_update(policy, trained, self.options.policy_smooth_factor)

    def is_due(self, frequency: int) -> bool:
        """Return True in every `frequency`-th update."""
        return self.num_updates % frequency == 0

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        """Take one gradient step per mini-batch, and return the metrics of each."""
        arguments = []
        for batch in batches:
            self.num_updates += 1
            arguments.append(self.arguments(batch))
        return self._steps(arguments)

    def compile(self, accelerate: Accelerate) -> None:
        """Replace the gradient step by an accelerated one."""
        self._steps = accelerate(self._step)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part by attribute name, and the number of updates."""
        return {name: _state(part) for name, part in self._parts.items()} | {"num_updates": self.num_updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        for name, part in self._parts.items():
            _restore(part, state[name])
        self.num_updates = state["num_updates"]

    @property
    def _parts(self) -> dict[str, Any]:
        """Networks, optimizers, noise, learned tensors and random streams, each once, by its first name."""
        found: dict[int, tuple[str, Any]] = {}
        for name, part in vars(self).items():
            if isinstance(part, (Tensor, torch.Generator)) or hasattr(part, "state_dict"):
                found.setdefault(id(part), (name, part))
        return dict(found.values())


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, Tensor):
        return part.detach().clone()
    state = part.state_dict()
    # Networks share their scaling, and a checkpoint holds no memory twice.
    return {name: value.clone() for name, value in state.items()} if isinstance(part, nn.Module) else state


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, Tensor):
        part.copy_(state)
    else:
        part.load_state_dict(state)
