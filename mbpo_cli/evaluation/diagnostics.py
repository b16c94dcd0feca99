"""The quality of the model and the critics, measured on evaluation episodes, which training never sees.

Knows a model, an agent and episodes; does not know the trainer, files or plotting.

Shape suffixes in addition to those of `types`: E elites, S starts, K steps of an open-loop prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.buffers import ReplayBuffer
from mbpo_cli.evaluation.evaluate import Episode
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.nn.optimizers import Optimizer
from mbpo_cli.nn.seeding import generator
from mbpo_cli.types import Agent, Transitions

MAX_ROWS = 1_000
MAX_STARTS = 64
OPEN_LOOP_STEPS = (1, 5, 10, 20)
MAX_PREDICTION = 1e9  # bounds predictions that diverge
INTERVALS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class OneStep:
    """Predictions of the next observation, compared with real transitions.

    Attributes:
        error_MO: Root mean squared error of each member and element, in standard deviations of o' - o: 1 is
            no better than predicting the mean change.
        disagreement: Root mean square of the standard deviation between elites, in the same unit.
        score_EBO: (o' - mean) / standard deviation of Gaussian elites; None if deterministic.
        error_B: Root mean squared error of each row over elites and elements, in the same unit.
        mean_EBO: Predictions of the elites.
    """

    error_MO: Tensor
    disagreement: float
    score_EBO: Tensor | None
    error_B: Tensor
    mean_EBO: Tensor

    def coverage(self, interval: float) -> float:
        """Return the share of real values within the central interval of this probability."""
        assert self.score_EBO is not None
        limit = torch.erfinv(torch.tensor(interval)) * 2**0.5
        return float((self.score_EBO.abs() <= limit).float().mean())


@dataclass(frozen=True)
class OpenLoop:
    """Predictions over many steps from real starts, under the real actions.

    Attributes:
        error_EK: Root mean squared error after 1 to K steps, in standard deviations of the observations.
        real_SKO: Real observations, including the starts: K + 1 steps.
        predicted_ESKO: Mean predictions of the elites.
    """

    error_EK: Tensor
    real_SKO: Tensor
    predicted_ESKO: Tensor


@dataclass(frozen=True)
class Findings:
    """The results of one examination.

    Attributes:
        metrics: Scalars by tag.
        one_step: Predictions over one step; None without a fitted model.
        open_loop: Predictions over many steps; None also if the episodes are too short.
        obs_real: Real next observations, shape (N, O).
        obs_generated: Next observations in rollouts, shape (N, O); None without a fitted model.
        actions: Greedy actions of the evaluation, shape (N, A).
    """

    metrics: dict[str, float]
    one_step: OneStep | None
    open_loop: OpenLoop | None
    obs_real: Tensor
    obs_generated: Tensor | None
    actions: Tensor


@dataclass
class Diagnostics:
    """Examines an agent and its model, if there is one, with a random stream of its own; changes nothing."""

    agent: Agent
    discount_factor: float
    channels: Sequence[int]
    real_buffer: ReplayBuffer
    model: EnvironmentModel | None
    model_buffer: ReplayBuffer | None
    seed: int
    device: torch.device

    @torch.inference_mode()
    def examine(self, step: int, episodes: Sequence[Episode], model_is_fitted: bool) -> Findings:
        """Examine everything after `step` environment steps, on the episodes of an evaluation."""
        stream = generator(self.seed, "diagnostics", step, device=self.device)
        episodes = [episode.to(self.device) for episode in episodes]
        rows = joined(episodes)
        real = self.real_buffer.sample(min(MAX_ROWS, len(self.real_buffer)), stream)
        metrics = {
            **critic_metrics(self.agent, episodes, self.discount_factor),
            **gradient_norms(self.agent),
            "diagnose/q_real": float(self.agent.value(real.obs, real.action).mean()),
        }
        found_one_step = found_open_loop = obs_generated = None
        if self.model is not None and model_is_fitted:
            spread = rows[torch.linspace(0, len(rows) - 1, min(MAX_ROWS, len(rows))).long()]
            found_one_step = one_step(self.model, spread)
            found_open_loop = open_loop(self.model, episodes)
            metrics |= self._transition_metrics(found_one_step, found_open_loop)
            metrics |= outcome_metrics(self.model, rows, stream)
            assert self.model_buffer is not None
            generated = self.model_buffer.sample(min(MAX_ROWS, len(self.model_buffer)), stream)
            obs_generated = generated.next_obs
            values = self.agent.value(generated.obs, generated.action)
            metrics["diagnose/q_generated"] = float(values.mean())
            metrics["diagnose/generated_shift"] = shift(real.next_obs, obs_generated)
        return Findings(metrics, found_one_step, found_open_loop, real.next_obs, obs_generated, rows.action)

    def _transition_metrics(self, found: OneStep, far: OpenLoop | None) -> dict[str, float]:
        assert self.model is not None
        elites = self.model.transition.elites
        error_M = found.error_MO.square().mean(1).sqrt()
        metrics = {
            "diagnose/one_step_error": float(error_M[elites].mean()),
            "diagnose/disagreement": found.disagreement,
            **{f"diagnose/one_step_error_member_{m}": float(error) for m, error in enumerate(error_M)},
        }
        if len(self.channels) > 1:
            parts = torch.split(found.error_MO[elites], list(self.channels), dim=1)
            for channel, part_MO in enumerate(parts):
                error = part_MO.square().mean(1).sqrt().mean()
                metrics[f"diagnose/one_step_error_channel_{channel}"] = float(error)
        if found.score_EBO is not None:
            for interval in INTERVALS:
                metrics[f"diagnose/coverage_{100 * interval:.0f}"] = found.coverage(interval)
        if far is not None:
            for step in OPEN_LOOP_STEPS:
                if step <= far.error_EK.shape[1]:
                    metrics[f"diagnose/open_loop_error_{step}"] = float(far.error_EK[:, step - 1].mean())
        return metrics


def critic_metrics(agent: Agent, episodes: Sequence[Episode], discount_factor: float) -> dict[str, float]:
    """Return the critics' overestimation of the greedy policy's discounted returns, and the mean return.

    After a time limit the critics themselves estimate the rest of the return. SAC's critics also count
    future entropy, which appears here as a positive bias.
    """
    biases, returns = [], []
    for episode in episodes:
        value = agent.value(episode.obs[:-1], episode.action)
        last = episode.obs[-1:]
        rest = 0.0 if episode.terminated else float(agent.value(last, agent.act(last)))
        to_go = returns_to_go(episode.reward, discount_factor, rest)
        biases.append(value - to_go)
        returns.append(to_go)
    return {
        "diagnose/q_bias": float(torch.cat(biases).mean()),
        "diagnose/discounted_return": float(torch.cat(returns).mean()),
    }


def joined(episodes: Sequence[Episode]) -> Transitions:
    """Return the transitions of all episodes in a row."""
    each = [episode.transitions for episode in episodes]
    return Transitions(
        *(torch.cat([getattr(part, column.name) for part in each]) for column in fields(Transitions))
    )


def one_step(model: EnvironmentModel, rows: Transitions) -> OneStep:
    """Predict the next observation of each row with all members."""
    transition = model.transition
    mean_MBO, deviation_MBO = transition.moments(rows.obs, rows.action)
    mean_MBO = _bounded(mean_MBO)
    scale_O = deviation_of(rows.next_obs - rows.obs)
    miss_MBO = rows.next_obs - mean_MBO
    elites = transition.elites
    spread_BO = mean_MBO[elites].var(0, correction=0) / scale_O.square()
    return OneStep(
        error_MO=(miss_MBO / scale_O).square().mean(1).sqrt(),
        disagreement=float(spread_BO.mean().sqrt()),
        score_EBO=None if deviation_MBO is None else (miss_MBO / deviation_MBO)[elites],
        error_B=(miss_MBO[elites] / scale_O).square().mean((0, 2)).sqrt(),
        mean_EBO=mean_MBO[elites],
    )


def open_loop(
    model: EnvironmentModel, episodes: Sequence[Episode], longest: int = OPEN_LOOP_STEPS[-1]
) -> OpenLoop | None:
    """Predict from real starts with the real actions; None if no episode is long enough.

    The starts are evenly spaced over the episodes that have the K steps to predict.

    Args:
        model: Predicts.
        episodes: Real episodes.
        longest: The maximum of K, which is shorter if all episodes are.
    """
    num_steps = min(longest, max(len(episode) for episode in episodes))
    if num_steps < OPEN_LOOP_STEPS[1]:
        return None
    places = [(episode, start) for episode in episodes for start in range(len(episode) - num_steps + 1)]
    chosen = [places[int(i)] for i in torch.linspace(0, len(places) - 1, min(MAX_STARTS, len(places)))]
    real_SKO = torch.stack([episode.obs[start : start + num_steps + 1] for episode, start in chosen])
    action_SKA = torch.stack([episode.action[start : start + num_steps] for episode, start in chosen])
    elites = model.transition.elites
    obs_ESO = real_SKO[:, 0].expand(len(elites), -1, -1)
    predicted = [obs_ESO]
    for step in range(num_steps):
        action_ESA = action_SKA[:, step].expand(len(elites), -1, -1)
        obs_ESO = _bounded(model.transition.mean(obs_ESO, action_ESA, elites))
        predicted.append(obs_ESO)
    predicted_ESKO = torch.stack(predicted, dim=2)
    scale_O = deviation_of(torch.cat([episode.obs for episode in episodes]))
    miss_ESKO = (predicted_ESKO - real_SKO)[:, :, 1:] / scale_O
    return OpenLoop(miss_ESKO.square().mean((1, 3)).sqrt(), real_SKO, predicted_ESKO)


def _bounded(prediction: Tensor) -> Tensor:
    """Return a prediction that can be plotted and averaged."""
    return prediction.nan_to_num(nan=MAX_PREDICTION).clamp(-MAX_PREDICTION, MAX_PREDICTION)


def outcome_metrics(model: EnvironmentModel, rows: Transitions, stream: torch.Generator) -> dict[str, float]:
    """Return the reward error, and precision and recall of predicted terminations, on real transitions.

    Precision is omitted if no termination is predicted, and recall if there is no real one.
    """
    reward = model.reward.predict(rows.obs, rows.action, rows.next_obs, stream)
    error = (reward - rows.reward).square().mean().sqrt() / deviation_of(rows.reward[:, None])[0]
    metrics = {"diagnose/reward_error": float(error)}
    predicted = model.is_done.predict(rows.obs, rows.action, rows.next_obs, stream)
    hits = (predicted * rows.terminated).sum()
    for name, count in (("precision", predicted.sum()), ("recall", rows.terminated.sum())):
        if count > 0:
            metrics[f"diagnose/is_done_{name}"] = float(hits / count)
    return metrics


def shift(real_NO: Tensor, generated_NO: Tensor) -> float:
    """Return the Wasserstein-1 distance in real standard deviations, averaged over elements."""
    quantiles = torch.linspace(0, 1, 101, device=real_NO.device)
    real, generated = (torch.quantile(obs, quantiles, dim=0) for obs in (real_NO, generated_NO))
    return float(((real - generated).abs() / deviation_of(real_NO)).mean())


def returns_to_go(reward_T: Tensor, discount_factor: float, rest: float) -> Tensor:
    """Return the discounted return from each step on, shape (T,); `rest` is that after the last step."""
    to_go = []
    for reward in reversed(reward_T.tolist()):
        rest = reward + discount_factor * rest
        to_go.append(rest)
    return torch.tensor(to_go[::-1], device=reward_T.device)


def gradient_norms(agent: Any) -> dict[str, float]:
    """Return the norm of the running gradient mean of each of the agent's optimizers."""
    return {
        f"diagnose/gradient_norm_{name.removesuffix('_optimizer')}": part.gradient_norm
        for name, part in vars(agent).items()
        if isinstance(part, Optimizer)
    }


def deviation_of(values_NO: Tensor) -> Tensor:
    """Return the standard deviation of each element, or 1 if it is constant."""
    deviation = values_NO.std(0, correction=0)
    return torch.where(deviation > 1e-6 * values_NO.abs().mean(0).clamp(min=1e-6), deviation, 1.0)
