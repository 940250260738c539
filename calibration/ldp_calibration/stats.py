"""Statistics: means and paired ratios with bootstrap intervals, and the front of speed against quality.

Every bootstrap is seeded: equal values give equal intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from ldp_runtime.errors import InternalError

RESAMPLES = 2000
#: A mean (or a ratio) with its 95 % interval.
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Bound:
    """A mean, its 95 % bound (one-sided, bootstrap; lower, or upper), and the fifth percentile of the single values."""

    mean: float
    limit: float
    fifth_percentile: float
    count: int


@dataclass(frozen=True)
class Ratio:
    """A ratio of times and its 95 % interval; no interval where there is only one pair."""

    value: float
    low: float | None
    high: float | None


def percentile(values: Sequence[float], q: float) -> float:
    """Percentile q in [0, 100], linear between neighbours."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), q))


def mean_interval(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of values (of paired differences, say) with its two-sided 95 % bootstrap interval; of one value, itself."""
    array = np.asarray(values, dtype=np.float64)
    low, high = resampled_interval(array, 0.025, seed, resamples) if len(array) > 1 else (array[0], array[0])
    return float(array.mean()), float(low), float(high)


def resampled_interval(
    values: np.ndarray, share: float, seed: int = 0, resamples: int = RESAMPLES, strata: np.ndarray | None = None
) -> tuple[float, float]:
    """Interval of a mean that leaves out `share` on each side, by the bootstrap, widened for few values.

    Expanded percentiles (Hesterberg 2015). Resampled means spread too little, by n - 1 over n in each stratum; few
    values know little of their spread. At least one value more than strata.

    Args:
        strata: group of each value, or None; see `resampled_means`.
    """
    from scipy.stats import norm, t

    freedom = len(values) - (1 if strata is None else len(np.unique(strata)))
    expanded = float(norm.cdf(sqrt(len(values) / freedom) * t.ppf(share, freedom)))
    draws = resampled_means(values, seed, resamples, strata)
    low, high = np.percentile(draws, [100 * expanded, 100 * (1 - expanded)])
    return float(low), float(high)


def bound(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES, upper: bool = False) -> Bound:
    """Mean with its lower (or upper) 95 % bound.

    Raises:
        InternalError: no values.
    """
    if not values:
        raise InternalError("no values to take a mean of")
    array = np.asarray(values, dtype=np.float64)
    limits = resampled_interval(array, 0.05, seed, resamples) if len(array) > 1 else (array[0], array[0])
    return Bound(float(array.mean()), float(limits[upper]), float(np.percentile(array, 5)), len(array))


def resampled_means(
    values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES, strata: np.ndarray | None = None
) -> np.ndarray:
    """Means of values that are drawn anew [resamples].

    Args:
        strata: group of each value. Values are then drawn anew within each group, and the groups' means count alike.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    groups = [values] if strata is None else [values[strata == group] for group in np.unique(strata)]
    for group in groups:
        total += group[rng.integers(len(group), size=(resamples, len(group)))].mean(axis=1)
    return total / len(groups)


def geometric_mean(ratios: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """Geometric mean of ratios with its 95 % interval."""
    mean, low, high = mean_interval(np.log(ratios).tolist(), seed)
    return float(np.exp(mean)), float(np.exp(low)), float(np.exp(high))


def paired_ratio(base: np.ndarray, other: np.ndarray, seed: int = 0) -> Ratio:
    """Speed-up of `other` over `base`: base / other, pair by pair.

    The bootstrap draws prompts anew, then repetitions within each.

    Args:
        base, other: times [prompts, repetitions]; entries of the same index were measured in the same round.
        seed: seed of the bootstrap.
    """
    if base.shape != other.shape or base.ndim != 2 or not base.size:
        raise InternalError(f"paired times must have one shape [prompts, repetitions], got {base.shape}, {other.shape}")
    ratios = base / other
    value = float(_centre(ratios))
    if ratios.size < 2:
        return Ratio(value, None, None)
    P, R = ratios.shape
    rng = np.random.default_rng(seed)
    prompts = rng.integers(P, size=(RESAMPLES, P, 1))
    repetitions = rng.integers(R, size=(RESAMPLES, P, R))
    low, high = np.percentile(_centre(ratios[prompts, repetitions]), [2.5, 97.5])
    return Ratio(value, float(low), float(high))


def _centre(ratios: np.ndarray) -> np.ndarray:
    """Geometric mean over prompts of the median over repetitions: [..., prompts, repetitions] -> [...].

    A slow outlier moves a median little, and prompts count alike.
    """
    return np.exp(np.log(np.median(ratios, axis=-1)).mean(axis=-1))


#: Times of each prompt group.
Times = Mapping[int, np.ndarray]


def unpaired_ratio(before: Times, after: Times, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Bootstrap draws [resamples] and the value of after / before: geometric mean over prompts of medians' ratios.

    Prompts are drawn anew for both runs together, repetitions within each run.
    """
    groups = sorted(set(before) & set(after))
    logs = np.stack([np.log(_medians(after[g], rng)) - np.log(_medians(before[g], rng)) for g in groups])  # [G, N]
    resampled = rng.integers(len(groups), size=(len(groups), RESAMPLES))
    draws = np.exp(np.take_along_axis(logs, resampled, axis=0).mean(axis=0))
    value = np.mean([np.log(np.median(after[g]) / np.median(before[g])) for g in groups])
    return draws, float(np.exp(value))


def _medians(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.median(times[rng.integers(len(times), size=(RESAMPLES, len(times)))], axis=1)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of (speed, quality) points that no other one beats in both, slowest first."""
    indices: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):
        if not indices or points[i][1] > points[indices[-1]][1]:
            indices.append(i)
    return indices[::-1]
