"""Estimates from a few seeds, with intervals that say how sure they are.

Knows numbers, and leaves all formulas to scipy; does not know runs, agents or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 2_000
MAX_POINTS = 300

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with the limits of its 95 % interval, which are None where there is but one seed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """The mean over seeds at each step, with the limits of its interval: NaN where one seed is all."""

    steps: Array
    mean: Array
    low: Array
    high: Array


@cache
def interquartile_mean(returns: tuple[float, ...]) -> Estimate:
    """Return the mean of the middle half of the returns of several seeds.

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS
    2021, section 4.3; the interval is that of the percentile bootstrap over seeds (their section 4.1).
    """
    return _estimate(_trimmed, [returns])


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return by how much one interquartile mean is above another; each group is resampled by itself."""

    def statistic(x: Array, y: Array, axis: int) -> Array:
        return np.asarray(_trimmed(x, axis) - _trimmed(y, axis))

    return _estimate(statistic, [ours, theirs])


def probability_of_improvement(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Estimate:
    """Return how likely a run of the first group is better than one of the second, ties counting half.

    Args:
        pairs: Returns of both groups on each environment, over which the mean is taken.

    Source: Agarwal et al. 2021, section 4.3: the mean over tasks of the Mann-Whitney statistic. Each group
    on each task is resampled by itself, which is their stratified bootstrap.
    """

    def statistic(*samples: Array, axis: int) -> Array:
        each = [
            stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic
            / (x.shape[axis] * y.shape[axis])
            for x, y in zip(samples[::2], samples[1::2], strict=True)
        ]
        return np.asarray(np.mean(each, axis=0))

    return _estimate(statistic, [returns for pair in pairs for returns in pair])


def median_steps(curves: Sequence[Mapping[int, float]], threshold: float) -> tuple[float, int]:
    """Return the median over seeds of the first step at or above a threshold, and how many got there.

    Seeds that did not count as later than all others; the median is infinite where it is one of them.
    """
    firsts = [
        min((step for step, value in curve.items() if value >= threshold), default=np.inf) for curve in curves
    ]
    return float(np.median(firsts)) if firsts else np.inf, int(np.isfinite(firsts).sum())


def mean_curve(curves: Sequence[Mapping[int, float]]) -> Curve:
    """Return the mean of several seeds at each step, over those that got so far.

    Between two evaluations of a seed lies the straight line.
    """
    steps = np.unique([step for curve in curves for step in curve]).astype(np.float64)
    if len(steps) > MAX_POINTS:  # more than a picture can show
        steps = steps[np.linspace(0, len(steps) - 1, MAX_POINTS).astype(int)]
    values = np.full((len(curves), len(steps)), np.nan)
    for seed, curve in enumerate(curves):
        if curve:
            values[seed] = np.interp(steps, list(curve), list(curve.values()), left=np.nan, right=np.nan)
    is_there = np.isfinite(values)
    mean, low, high = (np.full(len(steps), np.nan) for _ in range(3))
    for pattern in np.unique(
        is_there, axis=1
    ).T:  # one resampling for all steps that the same seeds have reached
        where = (is_there == pattern[:, None]).all(0)
        sample = values[pattern][:, where]
        if len(sample):
            mean[where] = sample.mean(0)
        if len(sample) > 1:
            low[where], high[where] = _interval(np.mean, [sample])
    return Curve(steps, mean, low, high)


def _trimmed(sample: Array, axis: int) -> Array:
    return np.asarray(stats.trim_mean(sample, 0.25, axis=axis))


def _estimate(statistic: Any, samples: Sequence[Sequence[float]]) -> Estimate:
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    value = float(statistic(*arrays, axis=0))
    if min(map(len, arrays)) < 2:
        return Estimate(value)
    low, high = _interval(statistic, arrays)
    return Estimate(value, float(low), float(high))


def _interval(statistic: Any, samples: Sequence[Array]) -> tuple[Any, Any]:
    """Return the limits of the percentile bootstrap, in which each sample is resampled by itself."""
    interval = stats.bootstrap(
        samples,
        statistic,
        n_resamples=NUM_RESAMPLES,
        batch=100 if samples[0].ndim > 1 else None,  # bounds the memory
        vectorized=True,
        axis=0,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=0,
    ).confidence_interval
    return interval.low, interval.high
