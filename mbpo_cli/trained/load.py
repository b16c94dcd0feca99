"""From the directory of a run to what it has learned so far: its policy, its model, its experience.

Only reads, so that the run may still be going on. Knows checkpoints and how parts are built; does not know
what they are used for.
"""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.buffers import ReplayBuffer
from mbpo_cli.build import build_agent, build_env, build_model, uses_model
from mbpo_cli.config.stored import check_trusted
from mbpo_cli.config.typed import Config, typed
from mbpo_cli.failures import ConfigError, NoUsableCheckpoint, one_line
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.storage.checkpoint import Checkpoint, Checkpoints
from mbpo_cli.storage.records import CONFIG, HARMLESS, leaves, stored_config
from mbpo_cli.types import Agent, SpaceSpec, Transitions

log = logging.getLogger(__name__)

POLICY = "policy.pt"
CPU = torch.device("cpu")
# What it may raise to put the state of one configuration into parts of another.
MISFITS = (KeyError, RuntimeError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Trained:
    """What a run has learned, on the CPU.

    Attributes:
        path: The run's directory.
        config: The run's configuration, but for device and precision.
        spaces: The spaces of its environment.
        agent: The base agent with the run's weights, computed in float32 whatever the run's precision was;
            its random streams are not those of the run.
        source: Where all this was found, in words.
        checkpoint: The checkpoint that it was found in; None where only a policy was left.
    """

    path: Path
    config: Config
    spaces: SpaceSpec
    agent: Agent
    source: str
    checkpoint: Checkpoint | None

    @property
    def state(self) -> dict[str, Any]:
        """The state of the whole training.

        Raises:
            ConfigError: The run has left none.
        """
        return self._checkpoint("state").state

    def model(self) -> EnvironmentModel:
        """Return the model of the environment, a new one at each call.

        Raises:
            ConfigError: The run has none.
        """
        if not uses_model(self.config):
            raise ConfigError(f"{self.path}: the run has no model (mbpo=off, or mbpo.real_ratio=1)")
        state = self._checkpoint("model").state
        model = build_model(self.config, self.spaces, CPU)
        try:
            model.load_state_dict(state["model"])
        except MISFITS as error:
            raise _misfit(self.path, error) from error
        return model

    def experience(self) -> Transitions:
        """Return the real experience that is still there, oldest first.

        Raises:
            ConfigError: The run has left none.
            NoUsableCheckpoint: It cannot be read.
        """
        step = self._checkpoint("experience").step
        rows = Checkpoints(self.path, keep=2).experience(step, "real")
        return ReplayBuffer(1, self.spaces).unpack(rows)

    def _checkpoint(self, what: str) -> Checkpoint:
        if self.checkpoint is None:
            raise ConfigError(
                f"{self.path}: holds no {what}, as {POLICY} is all that is left of the run; needs checkpoints"
            )
        return self.checkpoint


def load(path: Path, best: bool = False, trust: Sequence[str] = (), remedy: str = "trust=['{}']") -> Trained:
    """Return what a run has learned, as its newest checkpoint has it, or else its stored policy.

    Args:
        path: The run's directory.
        best: Take the checkpoint of the best evaluation instead.
        trust: Packages outside of this one from which the run's configuration may name things.
        remedy: What the user would write to trust the package whose name is put for `{}`.

    Raises:
        ConfigError: There is no such run, or it has not got so far, or it is not to be trusted.
        NoUsableCheckpoint: Nothing that it has kept can be used.
    """
    if not (path / CONFIG).is_file():
        raise ConfigError(f"{path}: not the directory of a run, as it holds no {CONFIG}")
    values = stored_config(path)
    check_trusted(values, trust, remedy)
    config = replace(typed(_completed(values)), device="cpu", precision="float32")
    env = build_env(config)
    env.close()
    agent = build_agent(config, env.spaces, CPU)
    checkpoint = _checkpoint(path, best)
    if checkpoint is None:
        _load_policy(agent, path)
        return Trained(path, config, env.spaces, agent, POLICY, None)
    # Streams are those of another kind of device, if the run had one; greedy actions draw nothing.
    streams = {key: value for key, value in agent.state_dict().items() if key == "generator"}
    try:
        agent.load_state_dict({**checkpoint.state["agent"], **streams})
    except MISFITS as error:
        raise _misfit(path, error) from error
    kind = "best" if best else "newest"
    return Trained(
        path, config, env.spaces, agent, f"{kind} checkpoint, step {checkpoint.step:,}", checkpoint
    )


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Give the configuration of a run of an older version what it lacks, as far as it changes no numbers."""
    from mbpo_cli.config.compose import make_config

    there = dict(leaves(values))
    if all(key in there for key in HARMLESS if not key.endswith(".")):
        return values
    completed = copy.deepcopy(values)
    for key, value in leaves(asdict(make_config())):
        *groups, name = key.split(".")
        if key.startswith(HARMLESS) and key not in there:
            group: Any = completed
            for part in groups:
                group = group.setdefault(part, {}) if isinstance(group, dict) else None
            if isinstance(group, dict):  # else it is told to be wrong when it is given types
                group[name] = value
    return completed


def _checkpoint(path: Path, best: bool) -> Checkpoint | None:
    """Return the checkpoint to use, or None where the stored policy is to be used."""
    try:
        checkpoint = Checkpoints(path, keep=2).read(best)
    except NoUsableCheckpoint as error:
        if best or not (path / POLICY).exists():
            raise
        log.warning("%s is used, as no checkpoint can be: %s", POLICY, one_line(error))
        return None
    if checkpoint is None and best:
        raise ConfigError(f"best: {path} has no checkpoint of an evaluation; without it the newest is taken")
    return checkpoint


def _load_policy(agent: Agent, path: Path) -> None:
    """Give an agent the weights of the greedy policy that a run has stored."""
    if not (path / POLICY).exists():
        raise ConfigError(f"{path}: the run has not got to its first checkpoint, and has stored no {POLICY}")
    try:
        stored = torch.load(path / POLICY, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise NoUsableCheckpoint(f"{path / POLICY}: cannot be read: {one_line(error)}") from error
    own = agent.policy_state()
    if not isinstance(stored, Mapping) or _shapes(stored) != _shapes(own):
        raise _misfit(path, f"{POLICY} has other weights")
    for name, weights in own.items():  # they share their memory with the agent's
        weights.copy_(stored[name])
    if not all(torch.equal(weights, stored[name]) for name, weights in agent.policy_state().items()):
        raise ConfigError(f"{path / POLICY}: {type(agent).__name__} cannot take it; needs a checkpoint")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def _misfit(path: Path, reason: object) -> ConfigError:
    return ConfigError(f"{path}: what was learned does not fit {CONFIG}: {one_line(reason)}")
