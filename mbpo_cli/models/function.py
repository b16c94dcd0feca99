"""What transition, reward and is-done functions share when they are learned: a network and its optimiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mbpo_cli.optimizers import Optimizer, OptimizerOptions
from mbpo_cli.options import Component, option
from mbpo_cli.types import Transitions


@dataclass
class LearnedOptions(Component):
    """Options that all learned functions share."""

    hidden_sizes: list[int] = option("units of each hidden layer", low=1, high=65536)
    optimizer: OptimizerOptions = option("how it is trained")


class Network(nn.Module, ABC):
    """An ensemble of networks that knows its own loss."""

    num_members: int

    @abstractmethod
    def fit_normalizers(self, inputs_NI: Tensor, targets_ND: Tensor) -> None:
        """Take the normalisation from the training data."""

    @abstractmethod
    def loss(self, inputs_MBI: Tensor, targets_MBD: Tensor) -> Tensor:
        """Return each member's loss, shape (M,)."""

    def penalty(self) -> Tensor | float:
        """Return what is added to the sum of losses in training."""
        return 0.0


class LearnedFunction(ABC):
    """A network with its optimiser, trained on examples that it takes from transitions."""

    def __init__(self, network: Network, options: LearnedOptions) -> None:
        """Train `network` as `options.optimizer` says; a learn rate of 0 leaves it as it is."""
        self.network = network
        self.optimizer = Optimizer(network.parameters(), options.optimizer)
        self.is_trained = options.optimizer.learn_rate > 0

    @abstractmethod
    def examples(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return inputs (N, I) and targets (N, D) for real transitions."""

    def state_dict(self) -> dict[str, Any]:
        """Return weights, normalisation and optimiser."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
