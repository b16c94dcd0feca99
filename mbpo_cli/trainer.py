"""The MBPO algorithm: act and store, fit the model, generate, mix, update, evaluate, log.

    env --(o,a,r,o',done)--> real buffer --> fit(model) --> generate rollouts --> model buffer
     ^                           |                                                   |
     | agent.explore             +--------> mix: ceil(M*R) real + rest generated <---+
     +------------------------------------------ agent.update(batches) --> metrics --> logger

Knows its components by their contracts; does not know which agent, which model or which device is in use.

Source: MathWorks, "Model-Based Policy Optimization (MBPO) Agents" ("the page" throughout this package),
section Training Algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from mbpo_cli import rollouts
from mbpo_cli.agents.divergence import check_updates
from mbpo_cli.agents.options import AgentOptions
from mbpo_cli.buffers import ReplayBuffer, mix
from mbpo_cli.envs.collector import Collector
from mbpo_cli.evaluation.evaluate import Evaluation
from mbpo_cli.evaluation.schedule import TrainerOptions, TrainingRecord
from mbpo_cli.exploration import RolloutPolicy, WarmStart
from mbpo_cli.failures import Stopped
from mbpo_cli.logs.logger import Logger
from mbpo_cli.logs.stopwatch import Stopwatch
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.fit import ModelFitter
from mbpo_cli.models.guard import Guard
from mbpo_cli.models.regions import regions
from mbpo_cli.models.uncertainty import Uncertainty, penalized
from mbpo_cli.models.world import LearnedWorld
from mbpo_cli.nn.seeding import generator
from mbpo_cli.rollouts import MBPOOptions
from mbpo_cli.storage import trainer_state
from mbpo_cli.types import Agent, ImaginingAgent, Metrics, Policy, Transitions

EVALUATED = ("return_mean", "return_std", "length_mean")
PHASES = ("env", "fit", "generate", "update", "evaluate", "diagnose", "checkpoint")


@dataclass
class ModelBased:
    """What MBPO adds to its base agent.

    `compare` gets real buffer and step before each fit. Updates go through the `world`, if any.
    """

    model: EnvironmentModel
    fitter: ModelFitter
    policy: RolloutPolicy
    buffer: ReplayBuffer
    guard: Guard = field(default_factory=Guard)
    uncertainty: Uncertainty = field(default_factory=Uncertainty)
    compare: Callable[[ReplayBuffer, int], None] = lambda real, env_steps: None
    world: LearnedWorld | None = None


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Trains a base agent on a mix of real and generated experience.

    Attributes:
        model_based: None trains the base agent alone, on real experience.
        should_stop: Asked before every step of an environment, evaluations included, and of a fit.
        begins_with_data: Recorded data replace the warm start; what they teach is evaluated before step 1.
        undoing_if_stopped: Called with the agent and a random stream for the context of an update.
        reason_to_end: Asked after every environment step; a reason ends the training like a criterion.
        before_step: Called before every environment step and first update, where the state can be saved.
        evaluation: The last evaluation, or None before the first.
        best_evaluation: The evaluation with the largest mean return.
        best_step: Environment steps at the best evaluation.
        stop_reason: Why training ended before its last step, or None.
    """

    options: TrainerOptions
    agent_options: AgentOptions
    mbpo_options: MBPOOptions
    seed: int
    device: torch.device
    collector: Collector
    agent: Agent
    real_buffer: ReplayBuffer
    model_based: ModelBased | None
    evaluate: Callable[[Policy], Evaluation]
    logger: Logger
    begins_with_data: bool = False
    should_stop: Callable[[], bool] = lambda: False
    before_step: Callable[[Trainer], None] = lambda trainer: None
    after_evaluation: Callable[[Trainer], None] = lambda trainer: None
    reason_to_end: Callable[[Trainer], str | None] = lambda trainer: None
    undoing_if_stopped: Callable[[Agent, torch.Generator], AbstractContextManager[None]] = (
        lambda agent, stream: nullcontext()
    )

    def __post_init__(self) -> None:
        self.env_steps = 0
        self.gradient_steps = 0
        self.num_model_trainings = 0
        self.evaluation: Evaluation | None = None
        self.best_evaluation: Evaluation | None = None
        self.best_step: int | None = None
        self.stop_reason: str | None = None
        self.stopwatch = Stopwatch(PHASES)

        hold_steps, stream = self.agent_options.warm_start_hold_steps, generator(self.seed, "warm_start")
        self._warm_start = WarmStart(self.collector.spaces.actions, len(self.collector), hold_steps, stream)
        self._exploration_stream = generator(self.seed, "exploration", device=self.device)
        self._rollout_stream = generator(self.seed, "rollouts", device=self.device)
        self._mix_stream = generator(self.seed, "mix", device=self.device)
        self._max_reward = 0.0
        self._last_episodes: list[tuple[float, int]] = []
        self._generation_sizes: list[float] = []
        self._num_first_updates: int | None = None  # that are left; None before there is a model
        self._num_recorded = 0
        self._num_warm_start_steps = 0 if self.begins_with_data else self.agent_options.num_warm_start_steps
        # While updates, evaluation or log of a step are missing; a resumed run makes up for them.
        self._is_within_step = False
        self._num_iterations = 0

    def begin_with(self, experience: Transitions) -> None:
        """Begin with real experience of another run, or with recorded data, before the first step."""
        self.real_buffer.add(experience)
        self._max_reward = float(experience.reward.abs().max())
        if self.begins_with_data:
            self._num_recorded = len(experience)
            self.agent.observe(experience.obs)

    def train(self) -> bool:
        """Train for the remaining environment steps.

        Returns:
            True if all steps were taken or a criterion is satisfied, False if `should_stop` ended it early.
        """
        try:
            if self._is_within_step:
                self._complete_step()
            elif self.env_steps > 0 or self.evaluation is not None:
                self.stop_reason = self.options.reason_to_stop(self.record)
            while self._is_at_start or (self.env_steps < self.options.num_env_steps and not self.stop_reason):
                with self.stopwatch.phase("checkpoint"):
                    self.before_step(self)
                if self.should_stop():
                    return False
                if self.model_based is not None:
                    if not self._num_first_updates and self._generation_is_due():
                        self._renew(self.model_based)
                    self._take_first_updates(self.model_based)
                self._num_iterations = 0 if self._is_at_start else self._act_and_store()
                self._is_within_step = True
                self._complete_step()
        except Stopped:
            return False
        return True

    @property
    def _is_at_start(self) -> bool:
        """True while what a run learns from data before its first step is not yet evaluated."""
        return self.begins_with_data and self.evaluation is None

    def _complete_step(self) -> None:
        """Update the agent, evaluate and log; a stop within an update undoes it."""
        if self._num_iterations > 0 and self.env_steps > self._num_warm_start_steps:
            self._update_agent(self._num_iterations * self.agent_options.num_gradient_steps_per_update)
        self._num_iterations = 0
        if is_evaluated := self.is_due(self.options.evaluate_every_steps):
            self._evaluate()
        self.stop_reason = self.options.reason_to_stop(self.record) or self.reason_to_end(self)
        if self.stop_reason is not None and not is_evaluated:
            self._evaluate()
        self._log()
        self._is_within_step = False

    def _generation_is_due(self) -> bool:
        if self.env_steps < self._num_warm_start_steps or self.env_steps == 0:
            return self._is_at_start
        every = self.mbpo_options.generate_every
        if every == "episode":
            return bool(self.collector.first.any())
        return self.is_due(every) or self.is_due(self.mbpo_options.fit_every or every)

    def _renew(self, mbpo: ModelBased) -> None:
        """Fit the model, if that is due, and replace the generated experience."""
        every = self.mbpo_options.fit_every
        if self.num_model_trainings == 0 or every is None or self.is_due(every):
            self._fit_model(mbpo)
        if not mbpo.guard.is_closed:
            self._generate_experience(mbpo)

    def _take_first_updates(self, mbpo: ModelBased) -> None:
        """Make up for the gradient steps that the warm start did without, with new rollouts at intervals."""
        while self._num_first_updates:
            with self.stopwatch.phase("checkpoint"):
                self.before_step(self)
            if self.should_stop():
                raise Stopped
            every = self.mbpo_options.generate_every
            assert isinstance(every, int)
            size = min(every * self.agent_options.num_gradient_steps_per_update, self._num_first_updates)
            self._update_agent(size)
            self._num_first_updates -= size
            self._generate_experience(mbpo)

    def _fit_model(self, mbpo: ModelBased) -> None:
        """Fit the model, and hold back all generated experience if it is not better than knowing nothing."""
        real, num_epochs = self.real_buffer.contents(), self.mbpo_options.num_epoch_for_training_model
        with self.stopwatch.phase("fit"):
            mbpo.compare(self.real_buffer, self.env_steps)
            metrics = mbpo.fitter.fit(mbpo.model, real, num_epochs, self.should_stop)
        self.num_model_trainings += 1
        self.logger.log({**metrics, **mbpo.guard.judge(metrics, self.env_steps)})
        mbpo.uncertainty.fit(mbpo.model, real)
        if mbpo.world is not None:
            mbpo.world.refresh()
        if mbpo.guard.is_closed:
            mbpo.buffer.forget_all_but(0)
            self._generation_sizes = []
        elif self._num_first_updates is None:
            self._num_first_updates = self.mbpo_options.first_updates

    def _generate_experience(self, mbpo: ModelBased) -> None:
        options, stream = self.mbpo_options.model_rollout_options, self._rollout_stream
        horizon = rollouts.horizon_at(options, self.num_model_trainings, self.env_steps)
        hold_steps = self.agent_options.warm_start_hold_steps
        with self.stopwatch.phase("generate"):
            real = self.real_buffer
            limits = regions(mbpo.model, real.contents(), options.max_departure, options.max_disagreement)
            starts = real.sample(options.num_rollout, stream).obs
            model, certain = mbpo.uncertainty.begin(mbpo.model, mbpo.policy, starts, stream)
            wandering = rollouts.wandering(options, horizon, self.collector.spaces.actions, hold_steps)
            sink = penalized(mbpo.buffer.add, mbpo.model, options.reward_penalty)
            metrics = rollouts.generate(
                model, mbpo.policy, starts, horizon, sink, stream, certain | limits, wandering
            )
        mbpo.policy.decay()
        retained = self.mbpo_options.retained_generations
        if retained is not None:
            self._generation_sizes = [*self._generation_sizes, metrics["rollout/num_generated"]][-retained:]
            mbpo.buffer.forget_all_but(int(sum(self._generation_sizes)))
        self.logger.log({"rollout/horizon": horizon, **metrics, **mbpo.uncertainty.metrics})

    def _act_and_store(self) -> int:
        """Step every environment, or as many as there are steps left; return the learning iterations due."""
        earlier, episodes = self.env_steps, self.collector.numbers
        num_ended, every = self.collector.episodes, self.agent_options.learning_frequency
        with self.stopwatch.phase("env"):
            num_steps_left = self.options.num_env_steps - self.env_steps
            transitions, metrics = self.collector.step(self._choose_actions()[:num_steps_left])
            self.real_buffer.add(transitions, episodes[: len(transitions)])
            self.agent.observe(transitions.obs)
            window = self.options.score_averaging_window_length
            self._last_episodes = [*self._last_episodes, *self.collector.ended][-window:]
            self.env_steps += len(transitions)
            self._max_reward = max(self._max_reward, float(transitions.reward.abs().max()))
        self.logger.log(metrics)
        if every == "episode":
            return self.collector.episodes - num_ended
        return self.env_steps // every - earlier // every

    def _choose_actions(self) -> Tensor:
        """Return one action per environment, shape (E, A): random ones in the warm start of a new agent."""
        if self.env_steps >= self._num_warm_start_steps or self.agent_options.from_run is not None:
            obs = self.collector.obs.to(self.device)
            return self.agent.explore(obs, self._exploration_stream, self.collector.first).cpu()
        return self._warm_start.act(self.collector.steps)

    def _update_agent(self, num_updates: int) -> None:
        """Take gradient steps on real and generated experience, or through the model from there."""
        size, ratio = self.mbpo_options.mini_batch_size, self.mbpo_options.real_ratio
        generated, stream = self.buffers.get("generated"), self._mix_stream
        data_ratio = self.mbpo_options.data_ratio
        recorded = None if data_ratio is None else (self._num_recorded, data_ratio)
        with self.stopwatch.phase("update"):
            with self.undoing_if_stopped(self.agent, stream):
                batches, mixed = mix(self.real_buffer, generated, size, ratio, num_updates, stream, recorded)
                updates = self._update(batches)
            self.logger.collect(mixed)
            earlier, spaces = self.gradient_steps, self.collector.spaces
            check_updates(updates, earlier, batches, spaces, self._max_reward, self.agent_options)
            self.gradient_steps += len(batches)
            for metrics in updates:
                self.logger.collect(metrics)

    def _update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        mbpo = self.model_based
        if mbpo is None or mbpo.world is None or len(mbpo.buffer) == 0:
            return self.agent.update(batches)
        return cast(ImaginingAgent, self.agent).update_in_world([batch.obs for batch in batches])

    def _evaluate(self) -> None:
        with self.stopwatch.phase("evaluate"):
            self.evaluation = evaluation = self.evaluate(self.agent.act)
        if self.best_evaluation is None or evaluation.return_mean > self.best_evaluation.return_mean:
            self.best_evaluation, self.best_step = evaluation, self.env_steps
        self.logger.log({f"eval/{name}": getattr(evaluation, name) for name in EVALUATED})
        with self.stopwatch.phase("diagnose"):
            self.after_evaluation(self)

    def _log(self) -> None:
        if self.is_due(self.options.log_every_steps):
            self.logger.summarize()
            self.logger.log(
                {
                    "buffer/real_size": len(self.real_buffer),
                    "buffer/model_size": len(self.buffers.get("generated", ())),
                    "train/gradient_steps": self.gradient_steps,
                    "time/env_steps_per_second": self.env_steps / self.stopwatch.total_seconds,
                    **{f"time/{phase}_seconds": spent for phase, spent in self.stopwatch.seconds.items()},
                }
            )
        self.logger.write(self.env_steps)

    def is_due(self, every_steps: int) -> bool:
        """Return True at multiples of `every_steps`, and at the end of the training."""
        # With several environments, the step count may skip a multiple.
        passed = self.env_steps % every_steps < min(len(self.collector), every_steps)
        return passed or self.env_steps == self.options.num_env_steps or self.stop_reason is not None

    @property
    def record(self) -> TrainingRecord:
        """What criteria know of the training so far."""
        return TrainingRecord(self.env_steps, self.collector.episodes, self._last_episodes, self.evaluation)

    @property
    def buffers(self) -> dict[str, ReplayBuffer]:
        """The replay buffers, by name."""
        real = {"real": self.real_buffer}
        return real if self.model_based is None else {**real, "generated": self.model_based.buffer}

    @staticmethod
    def evaluation_of(returns: Sequence[float], lengths: Sequence[int]) -> Evaluation:
        """Return an evaluation from its stored returns and lengths."""
        return Evaluation(tuple(returns), tuple(lengths))

    def state_dict(self) -> dict[str, Any]:
        """Return all state, except for the contents of the replay buffers."""
        return trainer_state.state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore what `state_dict` returned, as `trainer_state.restore` does."""
        return trainer_state.restore(self, state)
