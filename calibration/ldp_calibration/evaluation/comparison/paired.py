"""Paired statistics by prompt: means and differences with intervals, exact tests, and what it takes to show no loss.

The unit is the prompt: pictures of a prompt are averaged first. Where prompts have tags, each tag counts alike and
prompts are drawn anew within their tag (GenEval's overall score is such a mean). Everything is seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np

from ldp_calibration.shapes.evaluator import Score
from ldp_calibration.stats import resampled_interval, resampled_means

RESAMPLES = 10_000
#: Chance of an error on each side: intervals hold 95 %.
ALPHA = 0.025
#: Power that the number of prompts is stated for, and the normal quantile of it.
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; None on both sides where too few prompts say nothing of their spread."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Sample:
    """One number for each prompt.

    Attributes:
        values: [prompts].
        tags: tag of each prompt as a number [prompts], or None: all prompts count alike.
    """

    values: np.ndarray
    tags: np.ndarray | None = None

    @property
    def freedom(self) -> int:
        """Number of prompts less the number of means taken of them."""
        return len(self.values) - (1 if self.tags is None else len(np.unique(self.tags)))

    @property
    def mean(self) -> float:
        if self.tags is None:
            return float(self.values.mean())
        return float(np.mean([self.values[self.tags == tag].mean() for tag in np.unique(self.tags)]))

    @property
    def variance(self) -> float:
        """Variance of the mean."""
        groups = [self.values] if self.tags is None else [self.values[self.tags == t] for t in np.unique(self.tags)]
        return sum(float(group.var(ddof=1)) / len(group) for group in groups) / len(groups) ** 2


def tag_numbers(tags: Sequence[str | None]) -> np.ndarray | None:
    """Tags as numbers [prompts]; None without tags, and where a tag has a single prompt, which has no spread."""
    names = sorted({str(tag) for tag in tags})
    numbers = np.array([names.index(str(tag)) for tag in tags])
    return None if len(names) < 2 or np.bincount(numbers).min() < 2 else numbers


def estimate(sample: Sample, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean with the interval of its bootstrap, widened for few prompts (Hesterberg's expanded percentiles)."""
    if sample.freedom < 1:
        return Estimate(sample.mean, None, None)
    return Estimate(sample.mean, *resampled_interval(sample.values, ALPHA, seed, resamples, sample.tags))


def mean(sample: Sample, is_verdict: bool, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean with its interval; of verdicts at least as wide as Wilson's, which knows that 10 of 10 may be luck."""
    found = estimate(sample, seed, resamples)
    if not is_verdict:
        return found
    passed = Score(round(float(sample.values.sum())), len(sample.values))
    return _at_least(found, passed.rate, *passed.interval)


def _at_least(found: Estimate, centre: float, low: float, high: float) -> Estimate:
    """An estimate whose interval reaches as far to both sides as another one does from its own centre."""
    if found.low is None or found.high is None:
        return found
    value = found.value
    return Estimate(value, min(found.low, value - (centre - low)), max(found.high, value + (high - centre)))


@dataclass(frozen=True)
class Signs:
    """Numbers of prompts on which one policy did better, worse, or as well as another."""

    better: int
    worse: int
    equal: int

    @property
    def count(self) -> int:
        return self.better + self.worse + self.equal

    @property
    def centre(self) -> float:
        """Share of prompts that are better, less that of those that are worse."""
        return (self.better - self.worse) / self.count


def signs(differences: np.ndarray) -> Signs:
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return Signs(better, worse, len(differences) - better - worse)


def mcnemar(found: Signs) -> float:
    """Exact two-sided p-value of McNemar's test: prompts that differ are as likely better as worse."""
    from scipy.stats import binomtest

    differing = found.better + found.worse
    return 1.0 if not differing else float(binomtest(found.better, differing).pvalue)


def sign_flip_test(sample: Sample, seed: int, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of a mean difference of zero: signs of the prompts' differences are drawn anew."""
    weights = np.full(len(sample.values), 1 / len(sample.values))
    if sample.tags is not None:
        counts = np.bincount(sample.tags)
        weights = 1 / (counts[sample.tags] * np.count_nonzero(counts))
    terms, rng, beyond = weights * sample.values, np.random.default_rng(seed), 0
    limit = abs(terms.sum()) - 1e-12
    for _ in range(10):  # in parts: a matrix of all would be large
        flips = rng.integers(2, size=(resamples // 10, len(terms))) * 2 - 1
        beyond += int((np.abs(flips @ terms) >= limit).sum())
    return (1 + beyond) / (1 + resamples // 10 * 10)


def verdict_statistic(found: Signs, difference: float) -> float:
    """Score statistic of a true difference in shares of pairs (Tango 1998), normal if that is the difference.

    Unlike a bootstrap it stays honest where few verdicts differ, or none.
    """
    n, b, c, d = found.count, found.better, found.worse, difference
    linear = -b - c + (2 * n - b + c) * d
    q = (sqrt(max(0.0, linear**2 + 8 * n * c * d * (1 - d))) - linear) / (4 * n)
    variance = n * (2 * q + d * (1 - d))
    gap = b - c - n * d
    return gap / sqrt(variance) if variance > 0 else 0.0 if abs(gap) < 1e-9 else float(np.copysign(np.inf, gap))


def verdict_interval(found: Signs) -> tuple[float, float]:
    """Interval of the difference in shares of pairs: all differences that the score statistic does not reject."""
    from scipy.stats import norm

    z, centre = float(norm.ppf(1 - ALPHA)), found.centre

    def reached(end: float, target: float) -> float:
        return _crossing(lambda d: verdict_statistic(found, d) - target, centre, end)

    return reached(-1.0, z), reached(1.0, -z)


def _crossing(function: Callable[[float], float], start: float, end: float) -> float:
    """Place between two points where a monotonous function changes its sign; the end where it does not."""
    sign = np.sign(function(start))
    for _ in range(60):
        middle = (start + end) / 2
        start, end = (middle, end) if np.sign(function(middle)) == sign else (start, middle)
    return end


def difference(sample: Sample, is_verdict: bool, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean paired difference with its interval; of verdicts at least as wide as the score interval."""
    found, differing = estimate(sample, seed, resamples), signs(sample.values)
    return _at_least(found, differing.centre, *verdict_interval(differing)) if is_verdict else found


def loss_test(sample: Sample, margin: float, is_verdict: bool, seed: int, resamples: int = RESAMPLES) -> float:
    """One-sided p-value of a loss of `margin` or more: below `ALPHA`, non-inferiority is shown.

    The larger of the p-values that belong to the two intervals of `difference`.
    """
    from scipy.stats import norm, t

    if sample.freedom < 1:
        return 1.0
    draws = resampled_means(sample.values, seed, resamples, sample.tags)
    share = min(1 - 0.5 / resamples, (0.5 + float((draws <= -margin).sum())) / resamples)
    spread = sqrt(len(sample.values) / sample.freedom)
    p = float(t.cdf(norm.ppf(share) / spread, sample.freedom))
    if not is_verdict:
        return p
    differing = signs(sample.values)
    limit = differing.centre - sample.mean - margin  # the margin as far below this centre as below the mean
    return max(p, float(norm.sf(verdict_statistic(differing, max(-1.0, limit)))))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm): each may be compared with the level of a single test."""
    count, adjusted, largest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def prompts_needed(sample: Sample, margin: float, is_verdict: bool) -> int | None:
    """Number of prompts that would show a loss of less than `margin` in four of five runs, if nothing is lost in truth.

    Prompts are taken to differ as these do. None where too few say nothing of that.
    """
    from scipy.stats import norm

    if sample.freedom < 1:
        return None
    z: Any = norm.ppf(1 - ALPHA)
    needed = len(sample.values) * sample.variance * ((z + norm.ppf(POWER)) / margin) ** 2
    least = z**2 * (1 - margin) / margin if is_verdict else 2.0  # where no verdict differs at all
    return ceil(max(needed, least))
