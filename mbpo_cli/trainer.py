"""The algorithm: the hallway through which experience walks from room to room.

Knows the rooms by their contracts; does not know which agent, which model, or which device.

Source: the page, Training Algorithm.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mbpo_cli import rollouts
from mbpo_cli.agents.options import AgentOptions
from mbpo_cli.buffers import ReplayBuffer, mix
from mbpo_cli.envs.collector import Collector
from mbpo_cli.evaluate import Evaluation
from mbpo_cli.exploration import RolloutPolicy
from mbpo_cli.logger import Logger
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.fit import ModelFitter
from mbpo_cli.options import option
from mbpo_cli.rollouts import ModelRolloutOptions
from mbpo_cli.seeding import generator
from mbpo_cli.stopwatch import Stopwatch
from mbpo_cli.types import Agent, Policy


@dataclass
class TrainerOptions:
    """How long to train and when to look."""

    num_env_steps: int = option("real environment steps to train for", low=1, high=10**12)
    evaluate_every_steps: int = option("environment steps between two evaluations", low=1)
    num_eval_episodes: int = option("episodes of an evaluation", low=1, high=10_000)
    log_every_steps: int = option("environment steps over which logged metrics are averaged", low=1)


@dataclass
class MBPOOptions:
    """What turns the base agent into an MBPO agent: MATLAB's rlMBPOAgentOptions."""

    use_model: bool = option("false = the base agent alone: all experience is real, and no model is built")
    generate_every: int | Literal["episode"] = option(
        "when the model is fitted and used: 'episode' = at the start of each episode, as in MATLAB; "
        "k = every k environment steps, as in the paper",
        low=1,
    )
    num_epoch_for_training_model: int = option(
        "epochs of model training per generation point", low=1, matlab="NumEpochForTrainingModel"
    )
    mini_batch_size: int = option(
        "M, experiences in the agent's mixed mini-batch", low=1, high=1_000_000, matlab="MiniBatchSize"
    )
    real_ratio: float = option(
        "R, share of real experience in it: ceil(M R); with 1 no model is built",
        low=0,
        high=1,
        matlab=("RealRatio", "RealSampleRatio"),
    )
    model_experience_buffer_length: int = option(
        "capacity of the circular buffer of generated experience",
        low=1,
        high=1_000_000_000,
        matlab="ModelExperienceBufferLength",
    )
    model_rollout_options: ModelRolloutOptions = option(
        "how experience is generated", matlab="ModelRolloutOptions"
    )


@dataclass
class ModelBased:
    """What MBPO adds to its base agent."""

    model: EnvironmentModel
    fitter: ModelFitter
    policy: RolloutPolicy
    buffer: ReplayBuffer


class Trainer:
    """Trains a base agent, on a mix of real and generated experience if there is a model.

    Attributes:
        env_steps: Real environment steps so far.
        gradient_steps: Updates of the base agent so far.
        evaluation: The last evaluation, or None before the first.
        best_evaluation: The one with the greatest mean return.
    """

    def __init__(
        self,
        *,
        options: TrainerOptions,
        agent_options: AgentOptions,
        mbpo_options: MBPOOptions,
        seed: int,
        device: torch.device,
        collector: Collector,
        agent: Agent,
        real_buffer: ReplayBuffer,
        model_based: ModelBased | None,
        evaluate: Callable[[Policy], Evaluation],
        logger: Logger,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the rooms; `model_based` None trains the base agent alone, on real experience."""
        self.options = options
        self.agent_options = agent_options
        self.mbpo_options = mbpo_options
        self.collector = collector
        self.agent = agent
        self.real_buffer = real_buffer
        self.model_based = model_based
        self.evaluator = evaluate
        self.logger = logger
        self.should_stop = should_stop

        self._device = device
        self._warm_start_stream = generator(seed, "warm_start")
        self._exploration_stream = generator(seed, "exploration", device=device)
        self._rollout_stream = generator(seed, "rollouts", device=device)
        self._mix_stream = generator(seed, "mix", device=device)
        self._stopwatch = Stopwatch(("env", "fit", "generate", "update", "evaluate"))

        self.env_steps = 0
        self.gradient_steps = 0
        self.num_model_trainings = 0
        self.evaluation: Evaluation | None = None
        self.best_evaluation: Evaluation | None = None
        self._held_actions = torch.zeros(len(collector), collector.spaces.action_size)

    def train(self) -> bool:
        """Train for the remaining environment steps.

        Returns:
            True if all steps were taken, False if `should_stop` ended the training before.
        """
        while self.env_steps < self.options.num_env_steps:
            if self.should_stop():
                return False
            if self._generation_is_due():
                self._fit_model()
                self._generate_experience()
            num_steps = self._act_and_store()
            if self.env_steps > self.agent_options.num_warm_start_steps:
                self._update_agent(num_steps)
            if self._is_due(self.options.evaluate_every_steps):
                self._evaluate()
            self._log()
        return True

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Wall-clock seconds spent in each phase of the algorithm."""
        return dict(self._stopwatch.seconds)

    def _is_due(self, every_steps: int) -> bool:
        return self._has_passed(every_steps) or self.env_steps == self.options.num_env_steps

    def _has_passed(self, every_steps: int) -> bool:
        # With several environments a multiple may lie between two counts.
        return self.env_steps % every_steps < min(len(self.collector), every_steps)

    def _generation_is_due(self) -> bool:
        if self.model_based is None or self.env_steps < self.agent_options.num_warm_start_steps:
            return False
        every = self.mbpo_options.generate_every
        return bool(self.collector.first.any()) if every == "episode" else self._has_passed(every)

    def _fit_model(self) -> None:
        assert self.model_based is not None
        with self._stopwatch.phase("fit"):
            metrics = self.model_based.fitter.fit(
                self.model_based.model,
                self.real_buffer.contents(),
                self.mbpo_options.num_epoch_for_training_model,
            )
        self.num_model_trainings += 1
        self.logger.log(metrics)

    def _generate_experience(self) -> None:
        assert self.model_based is not None
        options = self.mbpo_options.model_rollout_options
        horizon = rollouts.horizon_at(options, self.num_model_trainings, self.env_steps)
        with self._stopwatch.phase("generate"):
            count = rollouts.generate(
                self.model_based.model,
                self.model_based.policy,
                self.real_buffer.sample(options.num_rollout, self._rollout_stream).obs,
                horizon,
                self.model_based.buffer.add,
                self._rollout_stream,
            )
        self.model_based.policy.decay()
        self.logger.log({"rollout/horizon": horizon, "rollout/num_generated": count})

    def _act_and_store(self) -> int:
        """Take a step in each environment, as far as there are steps left; return how many."""
        with self._stopwatch.phase("env"):
            actions = self._choose_actions()[: self.options.num_env_steps - self.env_steps]
            transitions, ended = self.collector.step(actions)
            self.real_buffer.add(transitions.to(self._device))
            self.env_steps += len(transitions)
        if ended:
            self.logger.log(
                {
                    "train/episode_return": statistics.fmean(episode.total_reward for episode in ended),
                    "train/episode_length": statistics.fmean(episode.length for episode in ended),
                    "train/episodes": self.collector.episodes,
                }
            )
        return len(transitions)

    def _choose_actions(self) -> Tensor:
        if self.env_steps < self.agent_options.num_warm_start_steps:
            for row, steps in enumerate(self.collector.steps):
                if steps % self.agent_options.warm_start_hold_steps == 0:
                    self._held_actions[row] = self.collector.spaces.actions.sample(self._warm_start_stream)
            return self._held_actions.clone()
        obs = self.collector.obs.to(self._device)
        return self.agent.explore(obs, self._exploration_stream, self.collector.first).cpu()

    def _update_agent(self, num_steps: int) -> None:
        generated = self.model_based.buffer if self.model_based is not None else None
        size, ratio = self.mbpo_options.mini_batch_size, self.mbpo_options.real_ratio
        num_updates = num_steps * self.agent_options.num_gradient_steps_per_update
        with self._stopwatch.phase("update"):
            batches, num_real = mix(self.real_buffer, generated, size, ratio, num_updates, self._mix_stream)
            for batch in batches:
                self.logger.collect(self.agent.update(batch))
                self.gradient_steps += 1
        self.logger.collect(
            {
                "mix/num_real": num_real,
                "mix/num_generated": size - num_real,
                "mix/real_share": num_real / size,
            }
        )

    def _evaluate(self) -> None:
        with self._stopwatch.phase("evaluate"):
            self.evaluation = evaluation = self.evaluator(self.agent.act)
        best = self.best_evaluation
        if best is None or evaluation.return_mean > best.return_mean:
            self.best_evaluation = evaluation
        self.logger.log(
            {
                "eval/return_mean": evaluation.return_mean,
                "eval/return_std": evaluation.return_std,
                "eval/length_mean": evaluation.length_mean,
            }
        )

    def _log(self) -> None:
        if self._is_due(self.options.log_every_steps):
            self.logger.summarize()
            generated = self.model_based.buffer if self.model_based is not None else ()
            seconds = self._stopwatch.seconds
            self.logger.log(
                {
                    "buffer/real_size": len(self.real_buffer),
                    "buffer/model_size": len(generated),
                    "train/gradient_steps": self.gradient_steps,
                    "time/env_steps_per_second": self.env_steps / self._stopwatch.total_seconds,
                    **{f"time/{phase}_seconds": spent for phase, spent in seconds.items()},
                }
            )
        self.logger.write(self.env_steps)
