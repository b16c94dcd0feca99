"""Measures of this package, with its defaults."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from benchmarks.sizes import (
    BATCH,
    DEFAULT_RUN,
    ELITES,
    ENSEMBLE,
    MODEL_HIDDEN,
    NUM_STARTS,
    NUM_TRAINING,
    NUM_TRANSITIONS,
    POLICY_HIDDEN,
    UNROLLED_HIDDEN,
    UPDATE_SPACES,
    UPDATES_PER_CALL,
)
from mbpo_cli import rollouts as mbpo_rollouts
from mbpo_cli.agents.imagination import Imagining
from mbpo_cli.buffers import ReplayBuffer, mix
from mbpo_cli.build import build_agent, build_model, build_trainer
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import Config
from mbpo_cli.logs.logger import Logger
from mbpo_cli.models.fit import ModelFitter
from mbpo_cli.models.regression import Regression
from mbpo_cli.models.world import LearnedWorld
from mbpo_cli.nn.compilation import SEVERAL, compiled, one_by_one
from mbpo_cli.nn.networks import hidden_products_in
from mbpo_cli.nn.optimizers import Optimizer, OptimizerOptions
from mbpo_cli.types import ActionSpec, ContinuousActions, DiscreteActions, SpaceSpec, Transitions

CPU = torch.device("cpu")


# The agents as the other libraries have them, so that the work is the same; their DQN is not double.
PLAIN = (
    "agent.critics.bound_targets=false",
    "agent.normalize_observations=false",
    "agent.policy_smooth_factor=1",
)
AS_ELSEWHERE = {
    "sac": ("agent.policy_update_frequency=1",),
    "td3": (
        "agent.actor_output_limit=null",
        "agent.policy_update_frequency=2",
        "agent.target_update_frequency=2",
    ),
    "ddpg": (
        "agent.actor_output_limit=null",
        "agent.critics.number=1",
        "agent.critics.num_in_target=1",
    ),
    "dqn": ("agent.use_double_dqn=false",),
}


def bench_config(*overrides: str) -> Config:
    """Return a configuration with the sizes of `benchmarks.sizes`."""
    torch.set_flush_denormal(True)  # as in a run
    hidden = f"agent.hidden_sizes={list(POLICY_HIDDEN)}"
    model = (
        f"model.transition.num_networks={ENSEMBLE}",
        f"model.transition.num_elites={ELITES}",
        f"model.transition.hidden_sizes={list(MODEL_HIDDEN)}",
        f"model.training.mini_batch_size={BATCH}",
        "model.training.num_mini_batches=all",
    )
    return make_config("env=gym", "env.id=Pendulum-v1", hidden, *model, *overrides)


def precision(choices: Sequence[str]) -> str:
    """Return the chosen precision, or the default."""
    return "bfloat16" if "bfloat16" in choices else "float32"


def spaces_of(name: str) -> SpaceSpec:
    """Return the spaces for an agent."""
    obs, action = UPDATE_SPACES[name]
    actions: ActionSpec = ContinuousActions((-1.0,) * action, (1.0,) * action)
    if name == "dqn":
        actions = DiscreteActions(action)
    return SpaceSpec((obs,), actions)


def random_transitions(count: int, spaces: SpaceSpec) -> Transitions:
    """Return random transitions, the same at every call."""
    stream = torch.Generator().manual_seed(0)
    obs = torch.randn(count, spaces.obs_size, generator=stream)
    action = 2 * torch.rand(count, spaces.action_size, generator=stream) - 1
    if isinstance(spaces.actions, DiscreteActions):
        action = spaces.actions.one_hot(torch.randint(spaces.action_size, (count,), generator=stream))
    noise = torch.randn(count, spaces.obs_size, generator=stream)
    return Transitions(obs, action, obs[:, 0], obs + 0.1 * noise, torch.zeros(count))


def filled_buffer(count: int, spaces: SpaceSpec) -> ReplayBuffer:
    """Return a full buffer of random transitions."""
    buffer = ReplayBuffer(count, spaces)
    buffer.add(random_transitions(count, spaces))
    return buffer


def update(name: str, *choices: str) -> Callable[[int], None]:
    """Return the work of updating an agent: mixed batches, gradient steps, and collecting metrics."""
    spaces = spaces_of(name)
    config = bench_config(
        f"agent={name}",
        f"precision={precision(choices)}",
        *PLAIN,
        *AS_ELSEWHERE[name],
        f"agent.critics.layer_norm={'layer norm' in choices}".lower(),  # the others have none
    )
    agent = build_agent(config, spaces, CPU)
    if "compiled" in choices:
        agent.compile(partial(compiled, per_launch=SEVERAL))
    real, generated = filled_buffer(10_000, spaces), filled_buffer(NUM_TRANSITIONS, spaces)
    stream = torch.Generator().manual_seed(0)
    logger = Logger([])

    def work(count: int) -> None:
        while count > 0:
            batches, _ = mix(real, generated, BATCH, 0.05, min(count, UPDATES_PER_CALL), stream)
            for metrics in agent.update(batches):
                logger.collect(metrics)
            count -= len(batches)
        logger.summarize()

    return work


def unrolled_update(num_steps: str, *choices: str) -> Callable[[int], None]:
    """Return the work of updating SAC through that many steps in the model, of the size of Hopper's."""
    spaces = spaces_of("sac")
    hidden = list(UNROLLED_HIDDEN)
    config = make_config(
        *("env=hopper", "model/is_done=never", "algorithm=double_horizon"),
        *(f"agent.hidden_sizes={hidden}", f"model.transition.hidden_sizes={hidden}"),
        *(f"model.reward.hidden_sizes={hidden}", f"mbpo.training_horizon={num_steps}"),
        f"precision={precision(choices)}",
    )
    agent = build_agent(config, spaces, CPU)
    assert isinstance(agent, Imagining)
    agent.enter(LearnedWorld(build_model(config, spaces, CPU), config.mbpo.training_horizon))
    if "compiled" in choices:
        agent.compile(compiled)
    generated = filled_buffer(10_000, spaces)
    stream = torch.Generator().manual_seed(0)

    def work(count: int) -> None:
        for _ in range(count):
            agent.update_in_world([generated.sample(BATCH, stream).obs])

    return work


class Fit:
    """The ensemble, its data and its gradient step, compiled or not.

    The reward is one more output, as in mbrl-lib, so that the work is the same.
    """

    def __init__(self, *choices: str) -> None:
        stream = torch.Generator().manual_seed(0)
        data = random_transitions(NUM_TRANSITIONS, spaces_of("sac"))
        self.inputs = torch.cat((data.obs, data.action), 1)
        self.targets = torch.cat((data.next_obs - data.obs, data.reward[:, None]), 1)
        size = (self.inputs.shape[1], MODEL_HIDDEN, (self.targets.shape[1],))
        with hidden_products_in(getattr(torch, precision(choices))):
            self.network = Regression("gaussian", ENSEMBLE, *size, stream)
        self.network.fit_normalizers(self.inputs, self.targets)
        options = OptimizerOptions(1e-3, None, "global_l2norm", 0.0, "adam", 0.9, 0.999, 1e-8)
        self.optimizer = Optimizer(self.network.parameters(), options)
        self.fitter = ModelFitter(bench_config().model.training, NUM_TRANSITIONS, stream)
        self._steps = (compiled if "compiled" in choices else one_by_one)(self._step)
        self.steps(1)  # compiles

    def learn(self, index_MB: Tensor) -> None:
        """Take a gradient step on rows `index_MB`."""
        self._steps([{"inputs_MBI": self.inputs[index_MB], "targets_MBD": self.targets[index_MB]}])

    def _step(self, inputs_MBI: Tensor, targets_MBD: Tensor) -> dict[str, Tensor]:
        loss_M, objective = self.network.losses(inputs_MBI, targets_MBD)
        self.optimizer.minimize(objective)
        return {"loss": loss_M.detach()}

    def steps(self, count: int) -> None:
        """Take gradient steps, including shuffling and gathering."""
        while count > 0:
            batches = self.fitter.mini_batches(len(self.inputs) // BATCH * BATCH, ENSEMBLE)
            for index in itertools.islice(batches, count):
                self.learn(index)
                count -= 1

    def epochs(self, count: int) -> None:
        """Fit for some epochs, each with the hold-out loss."""
        for _ in range(count):
            for index in self.fitter.mini_batches(NUM_TRAINING, ENSEMBLE):
                self.learn(index)
            with torch.no_grad():
                self.network.errors(self.inputs[NUM_TRAINING:], self.targets[NUM_TRAINING:])


def fit_step(*choices: str) -> Callable[[int], None]:
    """Return the work of gradient steps of the ensemble."""
    return Fit(*choices).steps


def fit_epoch(*choices: str) -> Callable[[int], None]:
    """Return the work of epochs of the ensemble's fit."""
    return Fit(*choices).epochs


def env_step(*choices: str) -> Callable[[int], None]:
    """Return the work of environment steps of the default run, including fits and rollouts."""
    overrides = [f"precision={precision(choices)}", f"compile={'compiled' in choices}".lower()]
    # No evaluations, and no end: the default run takes only a minute.
    endless = ["trainer.num_env_steps=1_000_000_000", "trainer.evaluate_every_steps=1_000_000_000"]
    config = make_config(*overrides, *endless)
    torch.set_flush_denormal(True)
    end = 0
    trainer = build_trainer(config, Logger([]), ExitStack(), lambda: trainer.env_steps >= end)

    def work(count: int) -> None:
        nonlocal end
        end = max(trainer.env_steps, DEFAULT_RUN) + count
        trainer.train()

    work(1)
    return work


def rollouts(*choices: str) -> Callable[[int], None]:
    """Return the work of one step of many rollouts: policy, one elite per row, storing.

    As in mbrl-lib, the reward is learned and no episode terminates.
    """
    spaces = spaces_of("sac")
    config = bench_config(f"precision={precision(choices)}", "model/is_done=never")
    agent, model = build_agent(config, spaces, CPU), build_model(config, spaces, CPU)
    starts = random_transitions(NUM_STARTS, spaces).obs
    buffer = ReplayBuffer(4 * NUM_STARTS, spaces)
    stream = torch.Generator().manual_seed(0)

    def work(count: int) -> None:
        for _ in range(count):
            mbpo_rollouts.generate(model, agent.act, starts, 1, buffer.add, stream)

    return work


def replay_insert() -> Callable[[int], None]:
    """Return the work of storing single transitions."""
    spaces = spaces_of("sac")
    buffer, row = ReplayBuffer(1_000_000, spaces), random_transitions(1, spaces)

    def work(count: int) -> None:
        for _ in range(count):
            buffer.add(row)

    return work


def replay_sample(num_stored: str) -> Callable[[int], None]:
    """Return the work of sampling mini-batches from `num_stored` transitions."""
    buffer = filled_buffer(int(num_stored), spaces_of("sac"))
    stream = torch.Generator().manual_seed(0)

    def work(count: int) -> None:
        for _ in range(count):
            buffer.sample(BATCH, stream)

    return work


MEASURES = {
    **{f"{name}_update": partial(update, name) for name in UPDATE_SPACES},
    "unrolled_update": unrolled_update,
    "fit_step": fit_step,
    "fit_epoch": fit_epoch,
    "rollouts": rollouts,
    "replay_insert": replay_insert,
    "replay_sample": replay_sample,
    "env_step": env_step,
}
