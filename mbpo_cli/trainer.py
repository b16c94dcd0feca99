"""The algorithm: the hallway through which experience walks from room to room.

Knows the rooms by their contracts; does not know which agent, which model, or which device.

Source: the page, Training Algorithm.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mbpo_cli import rollouts
from mbpo_cli.agents.options import AgentOptions
from mbpo_cli.buffers import ReplayBuffer, mix
from mbpo_cli.envs.collector import Collector
from mbpo_cli.evaluation.evaluate import Evaluation
from mbpo_cli.exploration import RolloutPolicy
from mbpo_cli.failures import Diverged
from mbpo_cli.logs.logger import Logger
from mbpo_cli.logs.stopwatch import Stopwatch
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.fit import ModelFitter, Stopped
from mbpo_cli.options import option
from mbpo_cli.rollouts import ModelRolloutOptions
from mbpo_cli.seeding import generator
from mbpo_cli.types import Agent, Metrics, Policy


@dataclass
class TrainerOptions:
    """How long to train and when to look."""

    num_env_steps: int = option("real environment steps to train for", low=1, high=10**12)
    evaluate_every_steps: int = option("environment steps between two evaluations", low=1)
    num_eval_episodes: int = option("episodes of an evaluation", low=1, high=10_000)
    num_score_evaluations: int = option(
        "last evaluations whose mean return is the score of a run, which searches and reports compare", low=1
    )
    log_every_steps: int = option("environment steps over which logged metrics are averaged", low=1)
    diagnostics: bool = option(
        "whether model and critics are examined after each evaluation, on its episodes, with some pictures"
    )
    max_hours: float | None = option(
        "hours after which the run stops, with its state kept; null = no limit", above=0, high=10**5
    )
    events_required: bool = option(
        "whether the run fails where TensorBoard's file cannot be written; false = it goes on, and says so"
    )


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
    retained_generations: int | None = option(
        "generated experience older than so many generations is forgotten; null = the buffer's length alone "
        "decides",
        low=1,
    )
    model_rollout_options: ModelRolloutOptions = option(
        "how experience is generated", matlab="ModelRolloutOptions"
    )


COUNTERS = (
    "env_steps",
    "gradient_steps",
    "num_model_trainings",
    "best_step",
    "_max_reward",
    "_generation_sizes",
)
PHASES = ("env", "fit", "generate", "update", "evaluate", "diagnose", "checkpoint")
# A critic that has Q-values so many times beyond what can be earned will not come back.
DIVERGENCE = 100.0
STREAMS = ("_warm_start_stream", "_exploration_stream", "_rollout_stream", "_mix_stream")


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
        best_step: Environment steps at that time.
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
        at_boundary: Callable[[Trainer], None] = lambda trainer: None,
        after_evaluation: Callable[[Trainer], None] = lambda trainer: None,
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
        self.at_boundary = at_boundary
        self.after_evaluation = after_evaluation

        self._device = device
        self._warm_start_stream = generator(seed, "warm_start")
        self._exploration_stream = generator(seed, "exploration", device=device)
        self._rollout_stream = generator(seed, "rollouts", device=device)
        self._mix_stream = generator(seed, "mix", device=device)
        self._stopwatch = Stopwatch(PHASES)

        self.env_steps = 0
        self.gradient_steps = 0
        self.num_model_trainings = 0
        self.evaluation: Evaluation | None = None
        self.best_evaluation: Evaluation | None = None
        self.best_step: int | None = None
        self._max_reward = 0.0
        self._generation_sizes: list[int] = []
        self._held_actions = torch.zeros(len(collector), collector.spaces.action_size)

    def train(self) -> bool:
        """Train for the remaining environment steps.

        Returns:
            True if all steps were taken, False if `should_stop` ended the training before.
        """
        while self.env_steps < self.options.num_env_steps:
            with self._stopwatch.phase("checkpoint"):
                self.at_boundary(self)
            if self.should_stop():
                return False
            if self._generation_is_due():
                try:
                    self._fit_model()
                except Stopped:
                    return False
                self._generate_experience()
            num_steps = self._act_and_store()
            if self.env_steps > self.agent_options.num_warm_start_steps:
                self._update_agent(num_steps)
            if self._is_due(self.options.evaluate_every_steps):
                self._evaluate()
            self._log()
        return True

    @property
    def buffers(self) -> dict[str, ReplayBuffer]:
        """The experience, by name."""
        real = {"real": self.real_buffer}
        return real if self.model_based is None else {**real, "generated": self.model_based.buffer}

    def state_dict(self) -> dict[str, Any]:
        """Return everything but experience that determines the rest of the training, between two steps."""
        return {
            **{name: getattr(self, name) for name in COUNTERS},
            **{name: getattr(self, name).get_state() for name in STREAMS},
            **{name: part.state_dict() for name, part in self._parts.items()},
            "collector": self.collector.state_dict(),
            "held_actions": self._held_actions,
            "evaluation": _as_dict(self.evaluation),
            "best_evaluation": _as_dict(self.best_evaluation),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore what `state_dict` returned.

        Returns:
            Whether the environments are exactly where they were.
        """
        for name in COUNTERS:
            setattr(self, name, state[name])
        for name in STREAMS:
            getattr(self, name).set_state(state[name])
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._held_actions = state["held_actions"].clone()
        self.evaluation = _evaluation(state["evaluation"])
        self.best_evaluation = _evaluation(state["best_evaluation"])
        return self.collector.load_state_dict(state["collector"])

    @property
    def _parts(self) -> dict[str, Any]:
        parts = {
            "agent": self.agent,
            "logger": self.logger,
            "stopwatch": self._stopwatch,
        }
        if self.model_based is None:
            return parts
        model_based = self.model_based
        return {
            **parts,
            "model": model_based.model,
            "fitter": model_based.fitter,
            "policy": model_based.policy,
        }

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
                self.should_stop,
            )
        self.num_model_trainings += 1
        self.logger.log(metrics)

    def _generate_experience(self) -> None:
        assert self.model_based is not None
        model, options = self.model_based.model, self.mbpo_options.model_rollout_options
        horizon = rollouts.horizon_at(options, self.num_model_trainings, self.env_steps)
        with self._stopwatch.phase("generate"):
            plausible = None
            if options.max_departure is not None:
                plausible = rollouts.PlausibleRange(
                    self.real_buffer.contents(), options.max_departure, model.knows_reward
                )
            generated = rollouts.generate(
                model,
                self.model_based.policy,
                self.real_buffer.sample(options.num_rollout, self._rollout_stream).obs,
                horizon,
                self.model_based.buffer.add,
                self._rollout_stream,
                plausible,
            )
        self.model_based.policy.decay()
        retained = self.mbpo_options.retained_generations
        if retained is not None:
            self._generation_sizes = [*self._generation_sizes, generated.num_transitions][-retained:]
            self.model_based.buffer.forget_all_but(sum(self._generation_sizes))
        self.logger.log(
            {
                "rollout/horizon": horizon,
                "rollout/num_generated": generated.num_transitions,
                "rollout/num_implausible": generated.num_implausible,
            }
        )

    def _act_and_store(self) -> int:
        """Take a step in each environment, as far as there are steps left; return how many."""
        with self._stopwatch.phase("env"):
            actions = self._choose_actions()[: self.options.num_env_steps - self.env_steps]
            transitions, ended = self.collector.step(actions)
            self._max_reward = max(self._max_reward, float(transitions.reward.abs().max()))
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
            updates = self.agent.update(batches)
            self._check(updates)
            self.gradient_steps += num_updates
            for metrics in updates:
                self.logger.collect(metrics)
        self.logger.collect(
            {
                "mix/num_real": num_real,
                "mix/num_generated": size - num_real,
                "mix/real_share": num_real / size,
            }
        )

    def _check(self, updates: Sequence[Metrics]) -> None:
        """Check what the updates of a step returned, all at once, so that a GPU is waited for only once.

        Raises:
            Diverged: A number is not finite, or a Q-value many times what rewards and discount allow.
        """
        named = [
            (number, tag, torch.as_tensor(value, dtype=torch.float32, device=self._device))
            for number, metrics in enumerate(updates, self.gradient_steps + 1)
            for tag, value in metrics.items()
        ]
        limit = self._q_value_limit
        values = torch.stack([value for _, _, value in named]).tolist() if named else []
        for (number, tag, _), value in zip(named, values, strict=True):
            if not math.isfinite(value):
                raise Diverged(f"{tag} is {value} in update {number:,}")
            if tag == "agent/q_value" and abs(value) > limit:
                raise Diverged(
                    f"agent/q_value is {value:.3g} in update {number:,}, "
                    f"and rewards of up to {self._max_reward:.3g} cannot add up to that"
                )

    @property
    def _q_value_limit(self) -> float:
        gap = 1 - self.agent_options.discount_factor
        return DIVERGENCE * max(self._max_reward, 1.0) / gap if gap > 0 else math.inf

    def _evaluate(self) -> None:
        with self._stopwatch.phase("evaluate"):
            self.evaluation = evaluation = self.evaluator(self.agent.act)
        best = self.best_evaluation
        if best is None or evaluation.return_mean > best.return_mean:
            self.best_evaluation, self.best_step = evaluation, self.env_steps
        self.logger.log(
            {
                "eval/return_mean": evaluation.return_mean,
                "eval/return_std": evaluation.return_std,
                "eval/length_mean": evaluation.length_mean,
            }
        )
        with self._stopwatch.phase("diagnose"):
            self.after_evaluation(self)

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


def _as_dict(evaluation: Evaluation | None) -> dict[str, Any] | None:
    return None if evaluation is None else asdict(evaluation)


def _evaluation(stored: dict[str, Any] | None) -> Evaluation | None:
    return None if stored is None else Evaluation(tuple(stored["returns"]), tuple(stored["lengths"]))
