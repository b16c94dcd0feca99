"""Export a greedy policy as one file that does not need this package, and check that it is the same policy.

Knows the formats of torch and ONNX; does not know where the policy comes from.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.files import write_whole
from mbpo_cli.types import Agent, ContinuousActions, SpaceSpec

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The largest difference that rounding explains, with actions in [-1, 1].
TOLERANCE = 1e-5

Function = Callable[[Tensor], Tensor]


class GreedyPolicy(nn.Module):
    """Maps raw observations to the environment's own actions, with only the network that this needs.

    The agent's policy network is no longer trained.

    Raises:
        ConfigError: The agent's policy is not one network.
    """

    def __init__(self, agent: Agent, spaces: SpaceSpec, action_space: gym.Space[object]) -> None:
        super().__init__()
        self.network = _network_of(agent).requires_grad_(False)
        self.spaces = spaces
        self.shape = action_space.shape or ()
        self._act = agent.act

    def forward(self, obs: Tensor) -> Tensor:
        """Map flat observations, float32 of shape (B, O), to actions.

        These are within the environment's bounds, float32 of shape (B, ...), or its action numbers, int64 of
        shape (B,).
        """
        return self.spaces.actions.to_env(self._act(obs)).reshape(-1, *self.shape)


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


def format_of(path: Path, name: str | None) -> str:
    """Return the format that a file's suffix determines; check that it is `name` and can be written."""
    found = next((known for known, form in FORMATS.items() if form.suffix == path.suffix), None)
    if found is None or name not in (None, found):
        suffixes = ", ".join(f"{form.suffix} for {known}" for known, form in FORMATS.items())
        raise ConfigError(f"--output {path}: must end in {FORMATS[name].suffix if name else suffixes}")
    if found == "onnx" and not all(importlib.util.find_spec(package) for package in ONNX_PACKAGES):
        raise ConfigError(
            f"--output {path}: needs this package's extra: pip install 'mbpo-cli[onnx]'; .pt2 needs none"
        )
    return found


def export(policy: GreedyPolicy, name: str, path: Path) -> float:
    """Write a policy to a file in the format of that name; return the `greatest_difference` of its actions.

    Raises:
        ConfigError: The difference is more than rounding; nothing was written.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # TorchScript warns at each call that it is deprecated, and ONNX's exporter uses deprecated functions.
        warnings.simplefilter("ignore")
        exported = FORMATS[name].write(policy.eval(), torch.zeros(2, policy.spaces.obs_size))
        difference = greatest_difference(policy, FORMATS[name].read(exported), policy.spaces)
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"--output {path}: not written, as its actions differ by {difference:.1e} from the run's; "
            f"rounding would explain {TOLERANCE:.0e} of half their range"
        )
    write_whole(path, exported)
    return difference


def greatest_difference(original: Function, exported: Function, spaces: SpaceSpec) -> float:
    """Return the greatest difference between two policies' actions on random observations.

    Observations are normal with standard deviations from 0.001 to 3, in batches of several sizes. The unit
    is half the distance between the bounds of a Box; for Discrete actions, it is the share of observations
    with different actions. NaN if an action is NaN.
    """
    stream = torch.Generator().manual_seed(0)
    differences = []
    for batch in (1, 2, 1000):
        size = 10 ** (3.5 * torch.rand(batch, 1, generator=stream) - 3)
        obs = size * torch.randn(batch, spaces.obs_size, generator=stream)
        expected, actual = original(obs), exported(obs)
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return torch.inf
        if isinstance(spaces.actions, ContinuousActions):
            low, high = torch.tensor(spaces.actions.low), torch.tensor(spaces.actions.high)
            half = torch.where(high > low, high - low, 1.0) / 2
            differences.append(((actual - expected).reshape(batch, -1) / half).abs().max())
        else:
            differences.append((actual != expected).float().mean())
    return float(torch.stack(differences).max())


def _write_pt2(policy: GreedyPolicy, example: Tensor) -> bytes:
    file = io.BytesIO()
    dynamic = {"obs": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(policy, (example,), dynamic_shapes=dynamic), file)
    return file.getvalue()


def _write_torchscript(policy: GreedyPolicy, example: Tensor) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(policy, (example,), check_trace=False), file)  # type: ignore[no-untyped-call]
    return file.getvalue()


def _write_onnx(policy: GreedyPolicy, example: Tensor) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not needed
    program = torch.onnx.export(
        policy,
        (example,),
        input_names=["obs"],
        output_names=["action"],
        dynamic_shapes={"obs": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


def _read_onnx(data: bytes) -> Function:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda obs: torch.from_numpy(np.asarray(session.run(None, {"obs": obs.numpy()})[0]))


class Format(NamedTuple):
    """The suffix of a file format, and functions that encode a policy, given an example, and decode it."""

    suffix: str
    write: Callable[[GreedyPolicy, Tensor], bytes]
    read: Callable[[bytes], Function]


FORMATS = {
    "pt2": Format(".pt2", _write_pt2, lambda data: torch.export.load(io.BytesIO(data)).module()),
    "torchscript": Format(
        ".pt",
        _write_torchscript,
        lambda data: torch.jit.load(io.BytesIO(data)),  # type: ignore[no-untyped-call]
    ),
    "onnx": Format(".onnx", _write_onnx, _read_onnx),
}
