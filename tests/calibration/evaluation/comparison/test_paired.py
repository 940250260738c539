"""Paired statistics against known answers: coverage, level and power by simulation; tests by definition."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from ldp_calibration.evaluation.comparison import paired
from ldp_calibration.evaluation.comparison.paired import Sample, Signs
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm

RESAMPLES = 1000
TAGS = np.repeat([0, 1, 2], [20, 40, 60])


def verdicts(rng: np.random.Generator, better: float, worse: float, count: int) -> np.ndarray:
    """Paired differences of verdicts: 1 and -1 with these chances."""
    return rng.choice([1.0, -1.0, 0.0], size=count, p=[better, worse, 1 - better - worse])


def share_covered(draw, truth: float, is_verdict: bool, runs: int = 400) -> float:
    inside = 0
    for seed in range(runs):
        found = paired.difference(draw(np.random.default_rng(seed)), is_verdict, seed, RESAMPLES)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    return inside / runs


@pytest.mark.parametrize("count", [8, 30, 120])
def test_intervals_of_numbers_cover_the_truth(count: int) -> None:
    covered = share_covered(lambda rng: Sample(rng.normal(0.3, 1.0, count)), 0.3, False)
    assert 0.92 < covered < 0.985  # 0.95, and three standard errors of 400 runs


def test_intervals_by_tag_cover_the_mean_of_the_tags() -> None:
    means = np.array([0.5, -0.2, 0.1])
    covered = share_covered(lambda rng: tagged(rng, means), float(means.mean()), False)
    assert 0.92 < covered < 0.985


def tagged(rng: np.random.Generator, means: np.ndarray) -> Sample:
    return Sample(rng.normal(means[TAGS], np.array([0.5, 1.0, 2.0])[TAGS]), TAGS)


@pytest.mark.parametrize(("better", "worse", "count"), [(0.1, 0.15, 120), (0.02, 0.05, 200), (0.0, 0.02, 100)])
def test_intervals_of_verdicts_cover_the_truth(better: float, worse: float, count: int) -> None:
    """Also where few verdicts differ, of which a bootstrap alone sees too little."""
    covered = share_covered(lambda rng: Sample(verdicts(rng, better, worse, count)), better - worse, True)
    assert covered > 0.925


def test_verdicts_that_never_differ_still_have_an_interval() -> None:
    found = paired.difference(Sample(np.zeros(10)), True, 0)
    assert found.value == 0
    assert found.low == pytest.approx(-(1.96**2) / (10 + 1.96**2), abs=1e-3)
    assert found.high == pytest.approx(-found.low)
    assert paired.mean(Sample(np.ones(10)), True, 0).low == pytest.approx(0.7225, abs=1e-3)  # Wilson's


@pytest.mark.parametrize(("better", "worse", "count"), [(0.03, 0.08, 200), (0.0, 0.05, 150), (0.1, 0.15, 300)])
def test_non_inferiority_holds_its_level(better: float, worse: float, count: int) -> None:
    """Of policies that lose exactly the margin at most 2.5 % pass."""
    runs = 800
    passed = sum(
        paired.loss_test(
            Sample(verdicts(np.random.default_rng(seed), better, worse, count)), worse - better, True, seed, RESAMPLES
        )
        < paired.ALPHA
        for seed in range(runs)
    )
    assert passed <= binom.ppf(0.999, runs, paired.ALPHA)


def test_non_inferiority_holds_its_level_for_numbers_by_tag() -> None:
    runs, means = 600, np.array([-0.4, -0.2, 0.0])
    passed = sum(
        paired.loss_test(tagged(np.random.default_rng(seed), means), 0.2, False, seed, RESAMPLES) < paired.ALPHA
        for seed in range(runs)
    )
    assert passed <= binom.ppf(0.999, runs, paired.ALPHA)


def test_the_test_and_the_interval_agree() -> None:
    for seed in range(60):
        sample = Sample(verdicts(np.random.default_rng(seed), 0.05, 0.07, 120), TAGS)
        low = paired.difference(sample, True, seed).low
        assert low is not None
        for margin in (-low + 0.004, -low - 0.004):
            shown = paired.loss_test(sample, margin, True, seed) < paired.ALPHA
            assert shown == (low > -margin)


def test_the_stated_number_of_prompts_has_the_stated_power() -> None:
    pilot = Sample(verdicts(np.random.default_rng(5), 0.05, 0.05, 4000))
    needed = paired.prompts_needed(pilot, 0.05, True)
    assert needed is not None
    runs = 300
    passed = sum(
        paired.loss_test(Sample(verdicts(np.random.default_rng(seed), 0.05, 0.05, needed)), 0.05, True, seed, RESAMPLES)
        < paired.ALPHA
        for seed in range(runs)
    )
    assert 0.7 < passed / runs < 0.9


def test_a_planted_difference_is_found_and_none_is_not() -> None:
    found, claimed = 0, 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        planted, none = verdicts(rng, 0.02, 0.12, 200), verdicts(rng, 0.05, 0.05, 200)
        found += paired.mcnemar(paired.signs(planted)) < 0.05
        claimed += paired.mcnemar(paired.signs(none)) < 0.05
    assert found > 90
    assert claimed <= 10
    numbers = np.random.default_rng(0).normal(0.0, 1.0, 200)
    assert paired.sign_flip_test(Sample(numbers - numbers.mean() + 0.3), 0) < 0.001
    assert paired.sign_flip_test(Sample(numbers - numbers.mean()), 0) > 0.9


def test_sign_flips_hold_their_level() -> None:
    p = [paired.sign_flip_test(tagged(np.random.default_rng(s), np.zeros(3)), s, RESAMPLES) for s in range(300)]
    assert np.mean(np.array(p) < 0.05) < 0.09


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (3, 9), (10, 10), (0, 1)])
def test_mcnemar_is_the_binomial_test(better: int, worse: int) -> None:
    n = better + worse
    tail = sum(comb(n, k) for k in range(min(better, worse) + 1)) / 2**n
    assert paired.mcnemar(Signs(better, worse, 7)) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(("better", "worse", "equal"), [(3, 9, 30), (0, 1, 43), (12, 2, 100)])
@pytest.mark.parametrize("true", [-0.2, -0.05, 0.04])
def test_the_score_statistic_by_definition(better: int, worse: int, equal: int, true: float) -> None:
    """The likeliest shares that differ by the given difference, found by trying them."""
    found, n = Signs(better, worse, equal), better + worse + equal

    def unlikely(q: float) -> float:
        shares = np.array([q + true, q, 1 - 2 * q - true])
        counts = np.array([better, worse, equal])
        return -float(counts @ np.log(np.maximum(shares, 1e-300)))

    q = minimize_scalar(
        unlikely, bounds=(max(0.0, -true), (1 - true) / 2), method="bounded", options={"xatol": 1e-10}
    ).x
    expected = (better - worse - n * true) / np.sqrt(n * (2 * q + true - true**2))
    assert paired.verdict_statistic(found, true) == pytest.approx(expected, rel=1e-3)
    low, high = paired.verdict_interval(found)
    assert paired.verdict_statistic(found, low) == pytest.approx(norm.ppf(0.975), abs=1e-6)
    assert paired.verdict_statistic(found, high) == pytest.approx(-norm.ppf(0.975), abs=1e-6)


def test_one_sided_extremes_have_intervals() -> None:
    assert paired.verdict_interval(Signs(9, 0, 0))[1] == pytest.approx(1.0)
    assert paired.verdict_interval(Signs(0, 9, 0))[0] == pytest.approx(-1.0)


def test_holm() -> None:
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([0.6, 0.7]) == [1.0, 1.0]
    assert paired.holm([]) == []


def test_tags_with_one_prompt_are_joined() -> None:
    assert paired.tag_numbers(["a", "b", "b"]) is None
    assert paired.tag_numbers([None, None]) is None
    numbers = paired.tag_numbers(["b", "a", "b", "a"])
    assert numbers is not None
    assert numbers.tolist() == [1, 0, 1, 0]


def test_one_prompt_says_nothing_of_its_spread() -> None:
    one = Sample(np.array([0.5]))
    assert paired.difference(one, True, 0) == paired.Estimate(0.5, None, None)
    assert paired.loss_test(one, 0.1, True, 0) == 1.0
    assert paired.prompts_needed(one, 0.1, True) is None


def test_results_are_the_same_each_time() -> None:
    sample = Sample(np.random.default_rng(0).normal(size=120), TAGS)
    assert paired.difference(sample, False, 3) == paired.difference(sample, False, 3)
    assert paired.sign_flip_test(sample, 3) == paired.sign_flip_test(sample, 3)
