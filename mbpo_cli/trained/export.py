"""A greedy policy as one file that needs nothing of this package, and the check that it is the same policy.

Knows torch's and ONNX's formats; does not know where the policy comes from.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from mbpo_cli.failures import ConfigError
from mbpo_cli.types import Agent, ContinuousActions, SpaceSpec

# Suffix of each format.
FORMATS = {"pt2": ".pt2", "torchscript": ".pt", "onnx": ".onnx"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The greatest difference to the original that rounding explains, with actions in [-1, 1].
TOLERANCE = 1e-5
CHECKED_BATCHES = (1, 2, 1000)

Function = Callable[[Tensor], Tensor]


class GreedyPolicy(nn.Module):
    """From raw observations to the environment's own actions."""

    def __init__(self, agent: Agent, spaces: SpaceSpec, action_space: gym.Space[object]) -> None:
        """Take what chooses the agent's greedy actions, which is not trained on, and leave the rest behind.

        Raises:
            ConfigError: The agent has nothing that can be exported.
        """
        super().__init__()
        self.network = _network_of(agent).requires_grad_(False)
        self.spaces = spaces
        self.shape = action_space.shape or ()
        self._act = agent.act

    def forward(self, obs: Tensor) -> Tensor:
        """Map observations to actions.

        Args:
            obs: Flat, float32 of shape (B, O), as the environment shows them.

        Returns:
            Actions within the environment's bounds, float32 of shape (B, ...), or its numbers, int64 of
            shape (B,).
        """
        return self.spaces.actions.to_env(self._act(obs)).reshape(-1, *self.shape)


def _network_of(agent: Agent) -> nn.Module:
    """Return the part of an agent whose weights are those of its greedy policy."""
    weights = {name: tensor.data_ptr() for name, tensor in agent.policy_state().items()}
    for part in vars(agent).values():
        if isinstance(part, nn.Module):
            own = {name: tensor.data_ptr() for name, tensor in part.state_dict().items()}
            if weights and own == weights:
                return part
    name = type(agent).__name__
    raise ConfigError(f"agent={name}: cannot be exported, as its policy_state is not that of one network")


def check_available(form: str) -> None:
    """Check that what writes a format is there.

    Raises:
        ConfigError: It is not; the message names the extra.
    """
    if form == "onnx" and not all(importlib.util.find_spec(name) for name in ONNX_PACKAGES):
        raise ConfigError(
            "--format onnx: needs this package's extra: pip install 'mbpo-cli[onnx]'; pt2 needs none"
        )


def export(policy: GreedyPolicy, form: str, path: Path) -> float:
    """Write a policy into a file, which is read again and compared before it takes the name `path`.

    Returns:
        How much its actions differ at most from the original's, as `greatest_difference` tells.

    Raises:
        ConfigError: The difference is more than rounding; there is no file then.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    write, read = {
        "pt2": (_write_pt2, _read_pt2),
        "torchscript": (_write_torchscript, _read_torchscript),
        "onnx": (_write_onnx, _read_onnx),
    }[form]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # TorchScript is deprecated, and says so at each call; ONNX's exporter uses what is deprecated.
            warnings.simplefilter("ignore")
            write(policy.eval(), temporary)
            difference = greatest_difference(policy, read(temporary), policy.spaces)
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"--output {path}: not written, as its actions differ by {difference:.1e} from the run's; "
                f"rounding would explain {TOLERANCE:.0e} of half their range"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def greatest_difference(original: Function, exported: Function, spaces: SpaceSpec) -> float:
    """Return the greatest difference of two policies' actions on random observations.

    Observations are normal, of deviations from a thousandth to three, in batches of several lengths.

    Returns:
        For a Box, in units of half the distance of its bounds; for Discrete actions, the share of
        observations whose actions differ. NaN if something is not a number.
    """
    stream = torch.Generator().manual_seed(0)
    differences = []
    for batch in CHECKED_BATCHES:
        size = 10 ** (3.5 * torch.rand(batch, 1, generator=stream) - 3)
        obs = size * torch.randn(batch, spaces.obs_size, generator=stream)
        expected, got = original(obs), exported(obs)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return torch.inf
        if isinstance(spaces.actions, ContinuousActions):
            low, high = torch.tensor(spaces.actions.low), torch.tensor(spaces.actions.high)
            half = torch.where(high > low, high - low, 1.0) / 2
            differences.append(((got - expected).reshape(batch, -1) / half).abs().max())
        else:
            differences.append((got != expected).float().mean())
    return float(torch.stack(differences).max())


def _example(policy: GreedyPolicy) -> Tensor:
    return torch.zeros(2, policy.spaces.obs_size)


def _write_pt2(policy: GreedyPolicy, path: Path) -> None:
    dynamic = {"obs": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(policy, (_example(policy),), dynamic_shapes=dynamic), path)


def _read_pt2(path: Path) -> Function:
    return torch.export.load(path).module()


def _write_torchscript(policy: GreedyPolicy, path: Path) -> None:
    traced = torch.jit.trace(policy, (_example(policy),), check_trace=False)  # type: ignore[no-untyped-call]
    traced.save(str(path))


def _read_torchscript(path: Path) -> Function:
    loaded: Function = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return loaded


def _write_onnx(policy: GreedyPolicy, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not needed
    torch.onnx.export(
        policy,
        (_example(policy),),
        path,
        input_names=["obs"],
        output_names=["action"],
        dynamic_shapes={"obs": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,  # one file
        verbose=False,
    )


def _read_onnx(path: Path) -> Function:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def act(obs: Tensor) -> Tensor:
        (action,) = session.run(None, {"obs": obs.numpy()})
        return torch.from_numpy(np.asarray(action))

    return act


def form_of(path: Path, form: str | None) -> str:
    """Return the format of a file, which its name tells where nothing else does.

    Raises:
        ConfigError: The two do not fit together.
    """
    told: Sequence[str] = [name for name, suffix in FORMATS.items() if suffix == path.suffix]
    if not told or form not in (None, *told):
        suffixes = ", ".join(f"{suffix} for {name}" for name, suffix in FORMATS.items())
        raise ConfigError(f"--output {path}: must end in {FORMATS[form] if form else suffixes}")
    return told[0]
