"""The quality of the model and the critics, measured on evaluation episodes, which training never sees.

Knows a model, an agent and episodes; does not know the trainer, files or plotting.

Shape suffixes in addition to those of `types`: E elites, S starts, K steps of an open-loop prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.buffers import ReplayBuffer
from mbpo_cli.evaluation.evaluate import Episode
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.is_done import precision_and_recall
from mbpo_cli.nn.optimizers import Optimizer
from mbpo_cli.types import Agent, Transitions

MAX_ROWS = 1_000
OPEN_LOOP_STEPS = (1, 5, 10, 20)
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
    """The results of one examination; without a fitted model, predictions are None.

    Attributes:
        metrics: Scalars by tag.
        one_step: Predictions over one step.
        open_loop: Predictions over many steps; None also if the episodes are too short.
        obs_real: Real next observations, shape (N, O).
        obs_generated: Next observations in rollouts, shape (N, O).
        actions: Greedy actions of the evaluation, shape (N, A).
    """

    metrics: dict[str, float]
    one_step: OneStep | None
    open_loop: OpenLoop | None
    obs_real: Tensor
    obs_generated: Tensor | None
    actions: Tensor


@torch.inference_mode()
def examined(
    agent: Agent,
    discount_factor: float,
    channels: Sequence[int],
    episodes: Sequence[Episode],
    real_buffer: ReplayBuffer,
    fitted: tuple[EnvironmentModel, ReplayBuffer] | None,
    stream: torch.Generator,
) -> Findings:
    """Examine an agent and its model on the episodes of an evaluation, without changing either.

    `fitted` is the model with the buffer of its rollouts, or None if there is no fitted model; `stream` is
    on the agent's device.
    """
    episodes = [episode.to(stream.device) for episode in episodes]
    rows = joined(episodes)
    real = real_buffer.sample(min(MAX_ROWS, len(real_buffer)), stream)
    metrics = {
        **critic_metrics(agent, episodes, discount_factor),
        **gradient_norms(agent),
        "diagnose/q_real": float(agent.value(real.obs, real.action).mean()),
    }
    if fitted is None:
        return Findings(metrics, None, None, real.next_obs, None, rows.action)
    model, model_buffer = fitted
    near = one_step(model, rows[torch.linspace(0, len(rows) - 1, min(MAX_ROWS, len(rows))).long()])
    far = open_loop(model, episodes)
    metrics |= transition_metrics(model.transition.elites, channels, near, far)
    metrics |= outcome_metrics(model, rows, stream)
    if hasattr(agent, "world"):
        metrics |= world_metrics(agent, episodes, discount_factor, stream)
    if len(model_buffer) == 0:  # while the model is held back
        return Findings(metrics, near, far, real.next_obs, None, rows.action)
    generated = model_buffer.sample(min(MAX_ROWS, len(model_buffer)), stream)
    metrics["diagnose/q_generated"] = float(agent.value(generated.obs, generated.action).mean())
    metrics["diagnose/generated_shift"] = shift(real.next_obs, generated.next_obs)
    return Findings(metrics, near, far, real.next_obs, generated.next_obs, rows.action)


def transition_metrics(
    elites: Tensor, channels: Sequence[int], near: OneStep, far: OpenLoop | None
) -> dict[str, float]:
    """Return the errors of the model's predictions over one step and over many."""
    error_M = near.error_MO.square().mean(1).sqrt()
    metrics = {
        "diagnose/one_step_error": float(error_M[elites].mean()),
        "diagnose/disagreement": near.disagreement,
        **{f"diagnose/one_step_error_member_{m}": float(error) for m, error in enumerate(error_M)},
    }
    if len(channels) > 1:
        for channel, part_MO in enumerate(torch.split(near.error_MO[elites], list(channels), dim=1)):
            error = part_MO.square().mean(1).sqrt().mean()
            metrics[f"diagnose/one_step_error_channel_{channel}"] = float(error)
    if near.score_EBO is not None:
        for interval in INTERVALS:
            metrics[f"diagnose/coverage_{100 * interval:.0f}"] = near.coverage(interval)
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
    value = torch.cat([agent.value(episode.obs[:-1], episode.action) for episode in episodes])
    returns = greedy_returns(agent, episodes, discount_factor)
    return {
        "diagnose/q_bias": float((value - returns).mean()),
        "diagnose/discounted_return": float(returns.mean()),
    }


def greedy_returns(agent: Agent, episodes: Sequence[Episode], discount_factor: float) -> Tensor:
    """Return the discounted return from each observation of the episodes but the last ones, shape (N,)."""
    found = []
    for episode in episodes:
        last = episode.obs[-1:]
        rest = 0.0 if episode.terminated else float(agent.value(last, agent.act(last)))
        found.append(returns_to_go(episode.reward, discount_factor, rest))
    return torch.cat(found)


def world_metrics(
    agent: Any, episodes: Sequence[Episode], discount_factor: float, stream: torch.Generator
) -> dict[str, float]:
    """Return what an agent that learns in the model sees of these episodes there."""
    returns = greedy_returns(agent, episodes, discount_factor)
    obs = torch.cat([episode.obs[:-1] for episode in episodes])
    rows = torch.linspace(0, len(obs) - 1, min(MAX_ROWS, len(obs))).long()
    with torch.inference_mode(False):  # there are gradients
        found: dict[str, float] = agent.examine_in_world(obs[rows].clone(), returns[rows].clone(), stream)
    return found


def joined(episodes: Sequence[Episode]) -> Transitions:
    """Return the transitions of all episodes in a row."""
    columns = zip(*(vars(episode.transitions).values() for episode in episodes), strict=True)
    return Transitions(*map(torch.cat, columns))


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

    The starts are evenly spaced over the episodes that have the K steps to predict: `longest`, or fewer if
    all episodes are shorter.
    """
    num_steps = min(longest, max(len(episode) for episode in episodes))
    if num_steps < OPEN_LOOP_STEPS[1]:
        return None
    places = [(episode, start) for episode in episodes for start in range(len(episode) - num_steps + 1)]
    chosen = [places[int(i)] for i in torch.linspace(0, len(places) - 1, min(64, len(places)))]
    real_SKO = torch.stack([episode.obs[start : start + num_steps + 1] for episode, start in chosen])
    action_SKA = torch.stack([episode.action[start : start + num_steps] for episode, start in chosen])
    elites = model.transition.elites
    obs_ESO = real_SKO[:, 0].expand(len(elites), -1, -1)
    predicted = [obs_ESO]
    for step in range(num_steps):
        action_ESA = action_SKA[:, step].expand(len(elites), -1, -1)
        mean_ESO, _ = model.transition.moments_of_groups(obs_ESO, action_ESA, elites)
        obs_ESO = _bounded(mean_ESO)
        predicted.append(obs_ESO)
    predicted_ESKO = torch.stack(predicted, dim=2)
    scale_O = deviation_of(torch.cat([episode.obs for episode in episodes]))
    miss_ESKO = (predicted_ESKO - real_SKO)[:, :, 1:] / scale_O
    return OpenLoop(miss_ESKO.square().mean((1, 3)).sqrt(), real_SKO, predicted_ESKO)


def _bounded(prediction: Tensor) -> Tensor:
    """Return a prediction that can be plotted and averaged, even where it diverges."""
    return prediction.nan_to_num(nan=1e9).clamp(-1e9, 1e9)


def outcome_metrics(model: EnvironmentModel, rows: Transitions, stream: torch.Generator) -> dict[str, float]:
    """Return the reward error, and precision and recall of predicted terminations, on real transitions.

    Precision is omitted if no termination is predicted, and recall if there is no real one.
    """
    reward = model.reward.predict(rows.obs, rows.action, rows.next_obs, stream)
    error = (reward - rows.reward).square().mean().sqrt() / deviation_of(rows.reward[:, None])[0]
    metrics = {"diagnose/reward_error": float(error)}
    predicted = model.is_done.predict(rows.obs, rows.action, rows.next_obs, stream)
    found = precision_and_recall(predicted, rows.terminated)
    return metrics | {f"diagnose/is_done_{name}": float(value) for name, value in found.items()}


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
    return torch.where(deviation > 1e-6 * values_NO.abs().mean(0), deviation, 1.0)
