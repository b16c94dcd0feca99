"""Load what a run has learned so far: its policy, its model, its experience.

Only reads, so the run may still be in progress. Knows checkpoints and how to build an agent and a model; does
not know what they are used for.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.buffers import ReplayBuffer
from mbpo_cli.build import build_agent, build_env, build_model, uses_model
from mbpo_cli.config.stored import trusted_config
from mbpo_cli.config.typed import Config, typed
from mbpo_cli.envs.functions import EnvSource, register
from mbpo_cli.failures import ConfigError, NoUsableCheckpoint, RunFailed, one_line
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.storage.checkpoint import Checkpoint, Checkpoints
from mbpo_cli.storage.records import CHECKPOINTS, CONFIG, HARMLESS, POLICY, leaves
from mbpo_cli.trained.policy import RawPolicy
from mbpo_cli.types import Agent, SpaceSpec, Transitions

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
BEST = "best"  # names a checkpoint, in place of its step


@dataclass(frozen=True)
class Trained:
    """What a run has learned, on the CPU.

    Attributes:
        path: The run directory.
        config: The run's configuration, with device and precision replaced by cpu and float32.
        spaces: The spaces of its environment.
        policy: The greedy policy in the environment's own terms, for arrays: `policy.predict(obs)`.
        agent: The base agent with the run's weights; it computes in float32 even if the run did not, and its
            random streams are not those of the run.
        source: Where the weights come from, in words.
        checkpoint: The checkpoint they come from; None if only `policy.pt` is left.
    """

    path: Path
    config: Config
    spaces: SpaceSpec
    policy: RawPolicy
    agent: Agent
    source: str
    checkpoint: Checkpoint | None

    @property
    def title(self) -> str:
        """Agent, environment and source, in words."""
        return f"{self.config.agent.name} on {self.config.env.name}, {self.source}"

    @property
    def state(self) -> dict[str, Any]:
        """The state of the whole training.

        Raises:
            ConfigError: The run has no checkpoint.
        """
        return self._checkpoint_with("training state").state

    def model(self) -> EnvironmentModel:
        """Return the environment model, a new object at each call.

        Raises:
            ConfigError: The run has none.
        """
        if not uses_model(self.config):
            raise ConfigError(f"{self.path}: the run has no model (mbpo=off, or mbpo.real_ratio=1)")
        state = self._checkpoint_with("model").state
        model = build_model(self.config, self.spaces, CPU)
        with _explained_misfit(self.path):
            model.load_state_dict(state["model"])
        return model

    def fitted_model(self) -> EnvironmentModel:
        """Return the environment model, a new object at each call.

        Raises:
            ConfigError: The run has none, or it has not been fitted yet.
        """
        model = self.model()
        if not self.state.get("num_model_trainings"):
            raise ConfigError(f"{self.path}: the model has not been fitted yet")
        return model

    def experience(self) -> Transitions:
        """Return the contents of the real replay buffer, oldest first.

        Raises:
            ConfigError: The run has no checkpoint.
            NoUsableCheckpoint: The experience cannot be read.
        """
        step = self._checkpoint_with("experience").step
        rows = Checkpoints(self.path, keep=2).experience(step, "real")
        return ReplayBuffer(1, self.spaces).unpack(rows)

    def _checkpoint_with(self, content: str) -> Checkpoint:
        if self.checkpoint is None:
            raise ConfigError(f"{self.path}: no {content} without a checkpoint; only {POLICY} is left")
        return self.checkpoint


def load(
    path: str | os.PathLike[str],
    best: bool = False,
    trust: Sequence[str] = (),
    remedy: str = "load(..., trust=['{}'])",
    env: EnvSource | None = None,
) -> Trained:
    """Load the newest checkpoint of a run, or its stored policy if no checkpoint is usable.

    Args:
        path: The run directory; or one of its checkpoints, `RUN/checkpoints/STEP`, or that of the best
            evaluation, `RUN/checkpoints/best`.
        best: Load the checkpoint of the best evaluation instead.
        trust: Packages outside this one from which the run's configuration may import.
        remedy: What the user would write to trust a package, with `{}` for its name.
        env: What makes the environment, for a run that was trained with such a function; of other runs it
            replaces the environment by another with the same spaces.

    Raises:
        ConfigError: There is no run, it has saved nothing yet, or it names a package that is not trusted.
        NoUsableCheckpoint: Nothing that it has saved is usable.
    """
    path, name = _run_and_checkpoint(Path(path))
    values = trusted_config(path, trust, remedy)
    _add_missing_options(values)
    try:
        config = replace(typed(values), device="cpu", precision="float32")
        if env is not None:
            config = replace(config, env=replace(config.env, id=register(env)))
        real = build_env(config)
        real.close()
        agent = build_agent(config, real.spaces, CPU)
    except (ConfigError, RunFailed):
        raise
    except (Exception, SystemExit) as error:  # trusted code may raise anything
        raise ConfigError(f"{path / CONFIG}: {type(error).__name__}: {error}") from error
    policy = RawPolicy(agent, real.spaces, real.obs_space, real.action_space)
    best = best or name == BEST
    checkpoint = Checkpoints(path, keep=2).read_at(int(name)) if name.isdecimal() else _checkpoint(path, best)
    if checkpoint is None:
        _load_policy(agent, path)
        return Trained(path, config, real.spaces, policy, agent, POLICY, None)
    # The run's random streams may be those of a GPU. Greedy actions need none.
    streams = {key: value for key, value in agent.state_dict().items() if key == "generator"}
    with _explained_misfit(path):
        agent.load_state_dict({**checkpoint.state["agent"], **streams})
    which = "" if name.isdecimal() else "best " if best else "newest "
    source = f"{which}checkpoint, step {checkpoint.step:,}"
    return Trained(path, config, real.spaces, policy, agent, source, checkpoint)


def _run_and_checkpoint(path: Path) -> tuple[Path, str]:
    """Return the run directory in a path, and the name of a checkpoint in it, which may be empty."""
    names_checkpoint = path.parent.name == CHECKPOINTS and (path.name == BEST or path.name.isdecimal())
    if names_checkpoint and not (path / CONFIG).is_file():
        return path.parent.parent, path.name
    return path, ""


def with_env_kwargs(trained: Trained, kwargs: dict[str, Any]) -> tuple[Trained, int | None]:
    """Return a run with changed keyword arguments of its environment, and the environment's time limit."""
    options = trained.config.env
    config = replace(trained.config, env=replace(options, kwargs={**(options.kwargs or {}), **kwargs}))
    shown = f"--env-kwargs {json.dumps(kwargs, default=str)}"
    try:
        env = build_env(config)
    except Exception as error:  # an environment may raise anything
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"{shown}: {kind}{error}") from error
    env.close()
    if env.spaces != trained.spaces:
        raise ConfigError(f"{shown}: changes the spaces, for which the policy was not trained")
    return replace(trained, config=config), env.max_steps


def _add_missing_options(values: dict[str, Any]) -> None:
    """Add options that an older version did not have, if they cannot change any result."""
    from mbpo_cli.config.compose import make_config

    present = dict(leaves(values))
    if all(any(key.startswith(name) for key in present) for name in HARMLESS):
        return
    for key, value in leaves(asdict(make_config())):
        if key.startswith(HARMLESS) and key not in present:
            group, _, name = key.rpartition(".")
            options = values.setdefault(group, {}) if group else values
            if isinstance(options, dict):  # otherwise `typed` reports it
                options[name] = value


def _checkpoint(path: Path, best: bool) -> Checkpoint | None:
    """Return the checkpoint to use, or None to use the stored policy."""
    try:
        checkpoint = Checkpoints(path, keep=2).read(best)
    except NoUsableCheckpoint as error:
        if best or not (path / POLICY).exists():
            raise
        log.warning("no checkpoint is usable, so %s is used: %s", POLICY, one_line(error))
        return None
    if checkpoint is None and best:
        raise ConfigError(f"best: {path} has no checkpoint of an evaluation; omit it to use the newest")
    return checkpoint


def _load_policy(agent: Agent, path: Path) -> None:
    """Copy the weights in `policy.pt` into an agent."""
    file = path / POLICY
    if not file.exists():
        raise ConfigError(f"{path}: the run has saved neither a checkpoint nor {POLICY} yet")
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise NoUsableCheckpoint(f"{file}: cannot be read: {one_line(error)}") from error
    own = agent.policy_state()
    with _explained_misfit(path):
        if not isinstance(stored, Mapping) or _shapes(stored) != _shapes(own):
            raise ValueError(f"{POLICY} has weights of other names or shapes")
    for name, weights in own.items():  # they share memory with the agent's
        weights.copy_(stored[name])
    if not all(torch.equal(weights, stored[name]) for name, weights in agent.policy_state().items()):
        raise ConfigError(f"{file}: {type(agent).__name__} cannot load it; a checkpoint is needed")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


@contextmanager
def _explained_misfit(path: Path) -> Iterator[None]:
    """Turn what loading the state of another configuration raises into a ConfigError."""
    try:
        yield
    except Exception as error:  # whatever the agent's own code makes of it
        raise ConfigError(f"{path}: the saved weights do not fit {CONFIG}: {error}") from error
