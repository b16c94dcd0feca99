"""What can be exported: a greedy policy and a learned model, as functions in the environment's own units.

Knows agents, models and spaces; does not know file formats.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from importlib.metadata import metadata
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

import mbpo_cli
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.world import LearnedWorld
from mbpo_cli.storage.records import evaluations
from mbpo_cli.trained.load import Trained
from mbpo_cli.types import Agent, SpaceSpec


@dataclass(frozen=True)
class Port:
    """An input or output of an exported function, batch first.

    Attributes:
        name: Its name, where the format of the file has names.
        shape: The shape of one row, without the batch.
        dtype: float32, or int64 for numbers of actions.
        low: The lowest value of each element, in flat order; empty without bounds.
        high: The highest value of each element.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, space: gym.Space[Any]) -> Port:
        """Describe the values of a Box or Discrete space."""
        if isinstance(space, gym.spaces.Discrete):
            start, number = int(space.start), int(space.n)
            return cls(name, (), torch.int64, (start,), (start + number - 1,))
        assert isinstance(space, gym.spaces.Box)
        low, high = (tuple(bound.astype(float).ravel().tolist()) for bound in (space.low, space.high))
        return cls(name, space.shape, torch.float32, low, high)

    @property
    def size(self) -> int:
        """The number of elements of one row."""
        return math.prod(self.shape)

    @property
    def type(self) -> str:
        """The type of its numbers and the shape of a batch, in words."""
        shape = ", ".join(("batch", *map(str, self.shape)))
        return f"{str(self.dtype).removeprefix('torch.')} of shape ({shape})"

    def as_json(self) -> dict[str, Any]:
        """Return the description as JSON values; an infinite bound becomes null."""
        bounds = {
            key: [value if math.isfinite(value) else None for value in values]
            for key, values in (("low", self.low), ("high", self.high))
            if values
        }
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "dtype": dtype, "shape": ["batch", *self.shape], **bounds}

    def difference(self, expected: Tensor, actual: Tensor, unit: Tensor) -> Tensor:
        """Return the greatest difference of two values of this port.

        Of floats, in the given unit of each element; of numbers, the share of rows that differ. Infinite if
        the shapes or types differ, NaN if a value is NaN.
        """
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return torch.tensor(torch.inf)
        if self.dtype == torch.int64:
            return (actual != expected).float().mean()
        return ((actual - expected) / unit).abs().max()

    def unit(self, expected: Tensor) -> Tensor:
        """Return the unit of each element: half the distance of finite bounds, or else the largest value."""
        largest = expected.abs().amax(0)
        if self.low and all(map(math.isfinite, (*self.low, *self.high))):
            largest = (torch.tensor(self.high) - torch.tensor(self.low)).reshape(self.shape) / 2
        return torch.where(largest > 0, largest, 1.0)


class Exportable(nn.Module):
    """A function from the tensors of its inputs to those of its outputs, all batch first."""

    inputs: list[Port]
    outputs: list[Port]
    has_gradients: bool

    @abstractmethod
    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map the inputs to the outputs; a single output is not in a tuple."""

    @abstractmethod
    def examples(self, num_rows: int, stream: torch.Generator) -> list[Tensor]:
        """Draw values of the inputs for which exported functions are compared with this one."""


class GreedyPolicy(Exportable):
    """Maps raw observations to the environment's own actions, with only the network that this needs.

    The agent's policy network is no longer trained. There is an input for each observation channel. The
    output are actions within the environment's bounds, float32 of shape (B, ...), or its action numbers,
    int64 of shape (B,).

    Raises:
        ConfigError: The agent's policy is not one network.
    """

    has_gradients = False

    def __init__(
        self, agent: Agent, spaces: SpaceSpec, obs_space: gym.Space[Any], action_space: gym.Space[Any]
    ) -> None:
        super().__init__()
        self.network = _network_of(agent).requires_grad_(False)
        self.inputs = obs_ports(obs_space)
        self.outputs = [Port.of(_free_name("action", self.inputs), action_space)]
        self._actions, self._act = spaces.actions, agent.act

    def forward(self, *channels: Tensor) -> Tensor:
        """Map observations, one tensor for each channel, to actions."""
        return self._actions.to_env(self._act(_joined(channels))).reshape(-1, *self.outputs[0].shape)

    def examples(self, num_rows: int, stream: torch.Generator) -> list[Tensor]:
        """Draw normal observations with standard deviations from 0.001 to 3."""
        size = 10 ** (3.5 * torch.rand(num_rows, 1, generator=stream) - 3)
        num_elements = sum(port.size for port in self.inputs)
        return _split(size * torch.randn(num_rows, num_elements, generator=stream), self.inputs)


class LearnedModel(Exportable):
    """Predicts a step of the environment without noise, from raw observations and the environment's actions.

    Inputs are those of the policy, and the action, which is clipped to its bounds. Outputs are, for each
    channel, the mean of the next observation over the elites and its standard deviation, if a random elite
    predicts it; then the reward of the mean and 1.0 where it is predicted to be terminal, float32 of
    shape (B,). Gradients flow through all but the last.
    """

    has_gradients = True

    def __init__(
        self,
        model: EnvironmentModel,
        spaces: SpaceSpec,
        obs_space: gym.Space[Any],
        action_space: gym.Space[Any],
    ) -> None:
        super().__init__()
        self._world, self._actions = LearnedWorld(model, num_steps=1), spaces.actions
        self.networks = nn.ModuleList(self._world.networks)
        self._channels = obs_ports(obs_space)
        self.inputs = [*self._channels, Port.of(_free_name("action", self._channels), action_space)]
        means, deviations = (
            [Port(_free_name(name.format(port.name), self.inputs), port.shape) for port in self._channels]
            for name in ("next_{}", "next_{}_deviation")
        )
        outcomes = [Port(_free_name(name, self.inputs), ()) for name in ("reward", "terminated")]
        self.outputs = [*means, *deviations, *outcomes]
        normalizer = model.transition.network.inputs
        self._mean, self._std = normalizer.mean[: spaces.obs_size], normalizer.std[: spaces.obs_size]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Map observations, one tensor for each channel, and actions to predictions."""
        *channels, action = values
        if action.is_floating_point():
            action = action.reshape(action.shape[0], -1)
        step = self._world.expected(_joined(channels), self._actions.from_env(action))
        next_obs, deviation, reward, terminated = step
        return *_split(next_obs, self._channels), *_split(deviation, self._channels), reward, terminated

    def examples(self, num_rows: int, stream: torch.Generator) -> list[Tensor]:
        """Draw observations as varied as those of the run, and actions."""
        obs = self._mean + self._std * torch.randn(num_rows, len(self._mean), generator=stream)
        action = self._actions.to_env(self._actions.sample_rows(num_rows, stream))
        return [*_split(obs, self._channels), action.reshape(num_rows, *self.inputs[-1].shape)]


def obs_ports(obs_space: gym.Space[Any]) -> list[Port]:
    """Return an input for each observation channel, in their flat order, named by its key in a Dict.

    The input is called `obs` if the observation is a Box, and `obs_0` and so on if it is a Tuple.
    """
    match obs_space:
        case gym.spaces.Dict(spaces=parts):
            named = {str(key): part for key, part in parts.items()}
        case gym.spaces.Tuple(spaces=parts):
            named = {f"obs_{index}": part for index, part in enumerate(parts)}
        case _:
            named = {"obs": obs_space}
    return [Port.of(name, part) for name, part in named.items()]


def description(trained: Trained, exportable: Exportable, license_name: str | None) -> dict[str, Any]:
    """Return what an exported file says about itself, as JSON values.

    `return_mean` is the mean return of the last evaluation up to the training steps of these weights.
    """
    found: dict[str, Any] = {"environment": trained.config.env.id, "agent": trained.config.agent.name}
    if trained.checkpoint is not None:
        found["env_steps"] = trained.checkpoint.step
        returns = evaluations(trained.path)
        last = max((step for step in returns if step <= trained.checkpoint.step), default=None)
        if last is not None:
            found["return_mean"] = returns[last]
    found["inputs"] = [port.as_json() for port in exportable.inputs]
    found["outputs"] = [port.as_json() for port in exportable.outputs]
    found["software"] = f"mbpo-cli {mbpo_cli.__version__}"
    found["software_license"] = metadata("mbpo-cli")["License-Expression"]
    if license_name is not None:
        found["model_license"] = license_name  # ONNX's name for it
    return found


def _network_of(agent: Agent) -> nn.Module:
    """Return the network of an agent whose weights are those of its greedy policy."""
    weights = {name: tensor.data_ptr() for name, tensor in agent.policy_state().items()}
    for part in vars(agent).values():
        if isinstance(part, nn.Module):
            own = {name: tensor.data_ptr() for name, tensor in part.state_dict().items()}
            if weights and own == weights:
                return part
    name = type(agent).__name__
    raise ConfigError(f"agent={name}: cannot be exported, as its policy_state is not that of one network")


def _free_name(name: str, taken: list[Port]) -> str:
    """Return a name that none of these ports has, with underscores appended if need be."""
    while any(port.name == name for port in taken):
        name += "_"
    return name


def _joined(channels: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Return flat observations, shape (B, O)."""
    return torch.cat([channel.reshape(channel.shape[0], -1) for channel in channels], 1)


def _split(flat: Tensor, ports: list[Port]) -> list[Tensor]:
    """Return the tensor of each channel of flat observations."""
    parts = torch.split(flat, [port.size for port in ports], 1)
    return [part.reshape(-1, *port.shape) for part, port in zip(parts, ports, strict=True)]
