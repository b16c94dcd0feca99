"""What the model and the critics are worth, measured on evaluation episodes, which training never sees.

Knows a model, an agent and episodes; does not know the trainer, files or how pictures are drawn.

Shape suffixes beside those of `types`: E elites, S starts, K steps of an open-loop prediction.
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
from mbpo_cli.nn.optimizers import Optimizer
from mbpo_cli.seeding import generator
from mbpo_cli.types import Agent, Transitions

COLUMNS = ("obs", "action", "reward", "next_obs", "terminated")
MAX_ROWS = 1_000
MAX_STARTS = 64
OPEN_LOOP_STEPS = (1, 5, 10, 20)
FAR_OUT = 1e9  # what a prediction that has run away counts as
INTERVALS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class OneStep:
    """Predictions of the next observation from real ones.

    Attributes:
        error_MO: Root mean squared error of each member and element, in deviations of o' - o: 1 is no better
            than to predict the mean change.
        disagreement: Deviation between elites in the same unit, root mean square.
        score_EBO: (o' - mean) / deviation of Gaussian elites; None if deterministic.
        error_B: Root mean squared error of each row, over elites and elements, in the same unit.
        mean_EBO: What the elites predict.
    """

    error_MO: Tensor
    disagreement: float
    score_EBO: Tensor | None
    error_B: Tensor
    mean_EBO: Tensor

    def coverage(self, interval: float) -> float:
        """Return the share of truths within the central interval of so much probability."""
        assert self.score_EBO is not None
        limit = torch.erfinv(torch.tensor(interval)) * 2**0.5
        return float((self.score_EBO.abs() <= limit).float().mean())


@dataclass(frozen=True)
class OpenLoop:
    """Predictions over many steps from a real start, under the real actions.

    Attributes:
        error_EK: Root mean squared error after 1 to K steps, in deviations of the observations.
        real_SKO: What happened, starts included: K + 1 steps.
        predicted_ESKO: What the elites' means say.
    """

    error_EK: Tensor
    real_SKO: Tensor
    predicted_ESKO: Tensor


@dataclass(frozen=True)
class Findings:
    """What a look at a run has found.

    Attributes:
        metrics: Scalars by tag.
        one_step: Predictions over one step; None without a fitted model, as the two below.
        open_loop: Predictions over many steps; None also where episodes are too short.
        obs_real: Observations in reality, shape (N, O).
        obs_generated: Observations in rollouts, shape (N, O); None without a model.
        actions: Greedy actions of the evaluation, shape (N, A).
    """

    metrics: dict[str, float]
    one_step: OneStep | None
    open_loop: OpenLoop | None
    obs_real: Tensor
    obs_generated: Tensor | None
    actions: Tensor


class Diagnostics:
    """Looks at a model and an agent; draws from a random stream of its own, and changes nothing."""

    def __init__(
        self,
        agent: Agent,
        discount_factor: float,
        channels: Sequence[int],
        real_buffer: ReplayBuffer,
        model: EnvironmentModel | None,
        model_buffer: ReplayBuffer | None,
        seed: int,
        device: torch.device,
    ) -> None:
        """Take what there is to look at; there may be no model."""
        self._agent = agent
        self._discount_factor = discount_factor
        self._channels = list(channels)
        self._real_buffer = real_buffer
        self._model = model
        self._model_buffer = model_buffer
        self._seed = seed
        self._device = device

    @torch.inference_mode()
    def __call__(self, step: int, episodes: Sequence[Episode], model_is_fitted: bool) -> Findings:
        """Return what is found after so many real environment steps, on the episodes of an evaluation."""
        stream = generator(self._seed, "diagnostics", step, device=self._device)
        episodes = [episode.to(self._device) for episode in episodes]
        rows = joined(episodes)
        real = self._real_buffer.sample(min(MAX_ROWS, len(self._real_buffer)), stream)
        metrics = {**self._of_critics(episodes), **gradient_norms(self._agent)}
        metrics["diagnose/q_real"] = float(self._agent.value(real.obs, real.action).mean())
        found_one_step = found_open_loop = obs_generated = None
        if self._model is not None and model_is_fitted:
            spread = rows[torch.linspace(0, len(rows) - 1, min(MAX_ROWS, len(rows))).long()]
            found_one_step = one_step(self._model, spread)
            found_open_loop = open_loop(self._model, episodes)
            metrics |= self._of_transitions(found_one_step, found_open_loop)
            metrics |= of_outcomes(self._model, rows, stream)
            assert self._model_buffer is not None
            generated = self._model_buffer.sample(min(MAX_ROWS, len(self._model_buffer)), stream)
            obs_generated = generated.next_obs
            values = self._agent.value(generated.obs, generated.action)
            metrics["diagnose/q_generated"] = float(values.mean())
            metrics["diagnose/generated_shift"] = shift(real.next_obs, obs_generated)
        return Findings(metrics, found_one_step, found_open_loop, real.next_obs, obs_generated, rows.action)

    def _of_critics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Return by how much the critics overrate the greedy policy, and a typical size of its returns.

        Where a time limit cut an episode off, the critics themselves say what would have followed. Those of
        SAC also count the entropy to come, which shows here as a bias upwards.
        """
        gaps, returns = [], []
        for episode in episodes:
            value = self._agent.value(episode.obs[:-1], episode.action)
            last = episode.obs[-1:]
            rest = 0.0 if episode.terminated else float(self._agent.value(last, self._agent.act(last)))
            to_go = returns_to_go(episode.reward, self._discount_factor, rest)
            gaps.append(value - to_go)
            returns.append(to_go)
        return {
            "diagnose/q_bias": float(torch.cat(gaps).mean()),
            "diagnose/discounted_return": float(torch.cat(returns).mean()),
        }

    def _of_transitions(self, found: OneStep, far: OpenLoop | None) -> dict[str, float]:
        assert self._model is not None
        elites = self._model.transition.elites
        error_M = found.error_MO.square().mean(1).sqrt()
        metrics = {
            "diagnose/one_step_error": float(error_M[elites].mean()),
            "diagnose/disagreement": found.disagreement,
            **{f"diagnose/one_step_error_member_{m}": float(error) for m, error in enumerate(error_M)},
        }
        if len(self._channels) > 1:
            parts = torch.split(found.error_MO[elites], self._channels, dim=1)
            for channel, part_MO in enumerate(parts):
                error = part_MO.square().mean(1).sqrt().mean()
                metrics[f"diagnose/one_step_error_channel_{channel}"] = float(error)
        if found.score_EBO is not None:
            for interval in INTERVALS:
                metrics[f"diagnose/coverage_{100 * interval:.0f}"] = found.coverage(interval)
        if far is not None:
            for step in (step for step in OPEN_LOOP_STEPS if step <= far.error_EK.shape[1]):
                metrics[f"diagnose/open_loop_error_{step}"] = float(far.error_EK[:, step - 1].mean())
        return metrics


def joined(episodes: Sequence[Episode]) -> Transitions:
    """Return the transitions of all episodes, one after the other."""
    each = [episode.transitions for episode in episodes]
    return Transitions(*(torch.cat([getattr(part, name) for part in each]) for name in COLUMNS))


def one_step(model: EnvironmentModel, rows: Transitions) -> OneStep:
    """Predict each row's next observation by all members."""
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
    """Predict from real starts with the real actions; None where no episode is long enough to start in.

    Starts lie evenly over the episodes that are as long as the longest prediction, or as the longest of them.

    Args:
        model: Predicts.
        episodes: What really happened.
        longest: K, steps that are predicted ahead where episodes are long enough.
    """
    num_steps = min(longest, max(len(episode) for episode in episodes))
    places = [
        (episode, start)
        for episode in episodes
        if len(episode) >= num_steps
        for start in range(0, len(episode) - num_steps + 1)
    ]
    if not places or num_steps < OPEN_LOOP_STEPS[1]:
        return None
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
    """Return a prediction without what cannot be drawn or averaged."""
    return prediction.nan_to_num(nan=FAR_OUT).clamp(-FAR_OUT, FAR_OUT)


def of_outcomes(model: EnvironmentModel, rows: Transitions, stream: torch.Generator) -> dict[str, float]:
    """Return how well rewards and ends are predicted on real transitions.

    Precision: the share of predicted ends that are real; recall: that of real ends which are predicted.
    Either is left out where there is nothing to share.
    """
    reward = model.reward.predict(rows.obs, rows.action, rows.next_obs, stream)
    error = (reward - rows.reward).square().mean().sqrt() / deviation_of(rows.reward[:, None])[0]
    metrics = {"diagnose/reward_error": float(error)}
    predicted = model.is_done.predict(rows.obs, rows.action, rows.next_obs, stream)
    both = (predicted * rows.terminated).sum()
    for name, all_of_them in (("precision", predicted.sum()), ("recall", rows.terminated.sum())):
        if all_of_them > 0:
            metrics[f"diagnose/is_done_{name}"] = float(both / all_of_them)
    return metrics


def shift(real_NO: Tensor, generated_NO: Tensor) -> float:
    """Return the Wasserstein-1 distance of generated observations, in real deviations, mean over elements."""
    quantiles = torch.linspace(0, 1, 101, device=real_NO.device)
    real, generated = (torch.quantile(obs, quantiles, dim=0) for obs in (real_NO, generated_NO))
    return float(((real - generated).abs() / deviation_of(real_NO)).mean())


def returns_to_go(reward_T: Tensor, discount_factor: float, rest: float) -> Tensor:
    """Return the discounted return from each step on, shape (T,), where `rest` follows the last one."""
    to_go = []
    for reward in reversed(reward_T.tolist()):
        rest = reward + discount_factor * rest
        to_go.append(rest)
    return torch.tensor(to_go[::-1], device=reward_T.device)


def gradient_norms(agent: Any) -> dict[str, float]:
    """Return the norm of each optimizer's running mean of gradients."""
    return {
        f"diagnose/gradient_norm_{name.removesuffix('_optimizer')}": part.gradient_norm
        for name, part in vars(agent).items()
        if isinstance(part, Optimizer)
    }


def deviation_of(values_NO: Tensor) -> Tensor:
    """Return the standard deviation of each element, 1 for what never varies."""
    deviation = values_NO.std(0, correction=0)
    return torch.where(deviation > 1e-6 * values_NO.abs().mean(0).clamp(min=1e-6), deviation, 1.0)
