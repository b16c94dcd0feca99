"""Estimates from a few seeds, with intervals that show how certain they are.

Knows numbers, and leaves all formulas to scipy; does not know runs, agents or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MAX_POINTS = 300  # of a curve; more than a picture can show

Array = NDArray[np.float64]

_trimmed = partial(stats.trim_mean, proportiontocut=0.25)


@dataclass(frozen=True)
class Estimate:
    """A value and the limits of its 95 % interval, which are None if a sample has only one seed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """The mean over seeds at each step and the limits of its interval, which are NaN for a single seed."""

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
    """Return the difference of two interquartile means; each group is resampled by itself."""
    return _estimate(lambda x, y, axis: _trimmed(x, axis=axis) - _trimmed(y, axis=axis), [ours, theirs])


def probability_of_improvement(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Estimate:
    """Return the probability that a run of the first group beats one of the second; ties count half.

    Each pair has the returns of both groups on an environment; the result is the mean over environments.

    Source: Agarwal et al. 2021, section 4.3: the mean over tasks of the Mann-Whitney statistic. Each group
    on each task is resampled by itself, which is their stratified bootstrap.
    """

    def statistic(*samples: Array, axis: int) -> Any:
        shares = []
        for x, y in zip(samples[::2], samples[1::2], strict=True):
            wins = stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic
            shares.append(wins / (x.shape[axis] * y.shape[axis]))
        return np.mean(shares, axis=0)

    return _estimate(statistic, [returns for pair in pairs for returns in pair])


def median_steps(curves: Sequence[Mapping[int, float]], threshold: float) -> tuple[float, int]:
    """Return the median over seeds of the first step at or above a threshold, and the number that got there.

    Seeds that did not get there count as later than all others, so that the median can be infinite.
    """
    firsts = [
        min((step for step, value in curve.items() if value >= threshold), default=np.inf) for curve in curves
    ]
    return float(np.median(firsts)) if firsts else np.inf, int(np.isfinite(firsts).sum())


def mean_curve(curves: Sequence[Mapping[int, float]]) -> Curve:
    """Return the mean over seeds at each step, with those that got that far; linear between evaluations."""
    steps = np.unique([step for curve in curves for step in curve]).astype(np.float64)
    if len(steps) > MAX_POINTS:
        steps = steps[np.linspace(0, len(steps) - 1, MAX_POINTS).astype(int)]
    values = np.full((len(curves), len(steps)), np.nan)
    for seed, curve in enumerate(curves):
        if curve:
            values[seed] = np.interp(steps, list(curve), list(curve.values()), left=np.nan, right=np.nan)
    is_there = np.isfinite(values)
    mean, low, high = np.full((3, len(steps)), np.nan)
    for seeds in np.unique(is_there, axis=1).T:  # steps that the same seeds reached are resampled together
        where = (is_there == seeds[:, None]).all(0)
        sample = values[seeds][:, where]
        if len(sample):
            mean[where] = sample.mean(0)
        if len(sample) > 1:
            low[where], high[where] = _interval(np.mean, [sample])
    return Curve(steps, mean, low, high)


def _estimate(statistic: Any, samples: Sequence[Sequence[float]]) -> Estimate:
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    value = float(statistic(*arrays, axis=0))
    if min(map(len, arrays)) < 2:
        return Estimate(value)
    return Estimate(value, *map(float, _interval(statistic, arrays)))


def _interval(statistic: Any, samples: Sequence[Array]) -> Any:
    """Return the limits of the percentile bootstrap, which resamples each sample by itself."""
    return stats.bootstrap(
        samples,
        statistic,
        n_resamples=2_000,
        batch=100 if samples[0].ndim > 1 else None,  # bounds the memory
        vectorized=True,
        axis=0,
        confidence_level=0.95,
        method="percentile",
        rng=0,
    ).confidence_interval
