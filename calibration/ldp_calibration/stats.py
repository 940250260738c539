"""Statistics: means and paired ratios with bootstrap intervals, and the front of speed against quality.

Every bootstrap is seeded: equal values give equal intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from ldp_runtime.errors import InternalError

RESAMPLES = 2000
#: A mean (or a ratio) with its 95 % interval.
Interval = tuple[float, float, float]
#: Centre of values along an axis.
Centre = Callable[..., Any]


@dataclass(frozen=True)
class Bound:
    """A mean, its 95 % bound (one-sided, bootstrap; lower, or upper), and the fifth percentile of the single values."""

    mean: float
    limit: float
    fifth_percentile: float
    count: int


@dataclass(frozen=True)
class Ratio:
    """A ratio of times and its 95 % interval; no interval where too few were measured."""

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
    values: np.ndarray,
    share: float,
    seed: int = 0,
    resamples: int = RESAMPLES,
    strata: np.ndarray | None = None,
    centre: Centre = np.mean,
) -> tuple[float, float]:
    """Interval of a mean that leaves out `share` on each side, by the bootstrap, widened for few values.

    At least one value more than strata.

    Args:
        strata: group of each value, or None; see `resampled_means`.
        centre: of each group, see `resampled_means`.
    """
    freedom = len(values) - (1 if strata is None else len(np.unique(strata)))
    return expanded_interval(resampled_means(values, seed, resamples, strata, centre), share, len(values), freedom)


def expanded_interval(draws: np.ndarray, share: float, count: int, freedom: int) -> tuple[float, float]:
    """Interval of what was resampled, which leaves out `share` on each side.

    Expanded percentiles (Hesterberg 2015). Resampled means spread too little, by n - 1 over n in each stratum; few
    values know little of their spread.

    Args:
        count, freedom: number of values, and the same less the number of strata.
    """
    from scipy.stats import norm, t

    expanded = float(norm.cdf(sqrt(count / freedom) * t.ppf(share, freedom)))
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
    values: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    strata: np.ndarray | None = None,
    centre: Centre = np.mean,
) -> np.ndarray:
    """Means of values that are drawn anew [resamples]: the one bootstrap of everything that has an interval.

    Args:
        strata: group of each value. Values are then drawn anew within each group, and the groups' means count alike.
        centre: taken of each group [resamples, values] along its last axis, in the place of a mean.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    groups = [values] if strata is None else [values[strata == group] for group in np.unique(strata)]
    for group in groups:
        total += centre(group[rng.integers(len(group), size=(resamples, len(group)))], axis=1)
    return total / len(groups)


def geometric_mean(ratios: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """Geometric mean of ratios with its 95 % interval."""
    mean, low, high = mean_interval(np.log(ratios).tolist(), seed)
    return float(np.exp(mean)), float(np.exp(low)), float(np.exp(high))


#: Fewest prompts whose spread gives a 95 % interval. Of five values, all lie on one side of their centre in one case of
#: sixteen, and what is drawn anew of them never reaches beyond the outermost.
LEAST_PROMPTS = 6
#: Times of each prompt group.
Times = Mapping[int, np.ndarray]


def paired_ratio(base: np.ndarray, other: np.ndarray, seed: int = 0) -> Ratio:
    """Speed-up of `other` over `base`: base / other, pair by pair.

    The geometric mean over prompts of the median over repetitions: a slow outlier moves a median little, and prompts
    count alike. Intervals: see `ratio_of_times`.

    Args:
        base, other: times [prompts, repetitions]; entries of the same index were measured in the same round.
        seed: seed of the bootstrap.
    """
    if base.shape != other.shape or base.ndim != 2 or not base.size:
        raise InternalError(f"paired times must have one shape [prompts, repetitions], got {base.shape}, {other.shape}")
    return ratio_of_times([dict(enumerate(base / other))], [], seed)


def unpaired_ratio(before: Times, after: Times, control: tuple[Times, Times] | None = None, seed: int = 0) -> Ratio:
    """Ratio after / before of two runs, of which only the prompts are the same. Intervals: see `ratio_of_times`.

    Args:
        control: times of something that did not change, before and after; its own ratio is divided out.
    """
    was, now = ([], []) if control is None else ([control[0]], [control[1]])
    return ratio_of_times([after, *was], [before, *now], seed)


def ratio_of_times(above: Sequence[Times], below: Sequence[Times], seed: int = 0) -> Ratio:
    """Product of times over a product of others: geometric mean over prompts of the medians over repetitions.

    Its 95 % interval speaks of all prompts like these, which are drawn anew. With fewer than `LEAST_PROMPTS` it speaks
    of these alone, and repetitions are drawn anew within each; a single repetition then has none.
    """
    parts = [*above, *below]
    prompts = sorted(set[int].intersection(*(set(times) for times in parts)))
    if not prompts:
        raise InternalError("times of no common prompt")
    signs = [1] * len(above) + [-1] * len(below)
    logs = [sign * np.array([_log_median(times[p]) for p in prompts]) for sign, times in zip(signs, parts, strict=True)]
    per_prompt = np.sum(logs, axis=0)
    value = float(np.exp(per_prompt.mean()))
    if len(prompts) >= LEAST_PROMPTS:
        limits = resampled_interval(per_prompt, 0.025, seed)
    else:
        flat = [np.concatenate([times[p] for p in prompts]) for times in parts]
        if (fewest := min(map(len, flat))) <= len(prompts):
            return Ratio(value, None, None)
        strata = [np.repeat(range(len(prompts)), [len(times[p]) for p in prompts]) for times in parts]
        draws = np.zeros(RESAMPLES)
        for i, (sign, times, group) in enumerate(zip(signs, flat, strata, strict=True)):
            draws += sign * resampled_means(times, seed + i, RESAMPLES, group, _log_median)
        limits = expanded_interval(draws, 0.025, fewest, fewest - len(prompts))
    return Ratio(value, float(np.exp(limits[0])), float(np.exp(limits[1])))


def _log_median(times: np.ndarray, axis: int = -1) -> Any:
    return np.log(np.median(times, axis=axis))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of (speed, quality) points that no other one beats in both, slowest first."""
    indices: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):
        if not indices or points[i][1] > points[indices[-1]][1]:
            indices.append(i)
    return indices[::-1]
