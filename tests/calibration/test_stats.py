import numpy as np
import pytest
from ldp_calibration import stats
from ldp_calibration.fidelity import PSNR_CAP, psnr_db
from ldp_runtime.errors import InternalError

from ldp_export.bench.quality import mean_psnr_db


def test_ratio_pairs_times_of_the_same_round():
    """A machine that slows down threefold in mid-run changes no ratio."""
    slow = np.array([1.0, 1.0, 3.0, 3.0])
    other = np.array([[10.0], [20.0]]) * slow  # [prompts, repetitions]
    ratio = stats.paired_ratio(2.5 * other, other)
    assert ratio.value == pytest.approx(2.5)
    assert (ratio.low, ratio.high) == (pytest.approx(2.5), pytest.approx(2.5))


def test_ratio_is_the_geometric_mean_of_medians():
    other = np.ones((2, 3))
    base = np.array([[2.0, 2.0, 50.0], [8.0, 8.0, 0.1]])
    ratio = stats.paired_ratio(base, other)
    assert ratio.value == pytest.approx(4.0)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low <= ratio.value <= ratio.high


def test_interval_covers_the_true_ratio_and_is_seeded():
    rng = np.random.default_rng(0)
    shape = (6, 20)
    other = rng.lognormal(0.0, 0.1, shape)
    base = 1.5 * rng.lognormal(0.0, 0.1, shape)
    first, again = stats.paired_ratio(base, other, seed=3), stats.paired_ratio(base, other, seed=3)
    assert first == again
    assert first.low is not None
    assert first.high is not None
    assert 1.3 < first.low < 1.5 < first.high < 1.7


def test_one_pair_has_no_interval():
    assert stats.paired_ratio(np.array([[3.0]]), np.array([[2.0]])) == stats.Ratio(1.5, None, None)


def test_few_measurements_have_no_interval():
    assert stats.paired_ratio(np.full((4, 1), 3.0), np.full((4, 1), 2.0)) == stats.Ratio(pytest.approx(1.5), None, None)
    single = stats.unpaired_ratio({0: np.array([2.0])}, {0: np.array([3.0])})
    assert single == stats.Ratio(pytest.approx(1.5), None, None)
    with pytest.raises(InternalError, match="no common prompt"):
        stats.unpaired_ratio({0: np.ones(2)}, {1: np.ones(2)})


@pytest.mark.parametrize(("prompts", "repetitions"), [(1, 10), (4, 5), (6, 10), (12, 5), (24, 1)])
def test_intervals_of_paired_ratios_cover_the_truth(prompts: int, repetitions: int):
    """Of few prompts the truth is theirs, of many that of all prompts like them. Noise of 10 % on every time."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(300):
        own = rng.normal(0, 0.1, (prompts, 1))
        other, base = (rng.lognormal(0, 0.1, (prompts, repetitions)) for _ in range(2))
        ratio = stats.paired_ratio(1.5 * np.exp(own) * base, other)
        truth = 1.5 * np.exp(own.mean() if prompts < stats.LEAST_PROMPTS else 0.0)
        assert ratio.low is not None
        assert ratio.high is not None
        assert ratio.low <= ratio.value <= ratio.high
        covered.append(ratio.low <= truth <= ratio.high)
    assert np.mean(covered) >= 0.92


@pytest.mark.parametrize(("prompts", "with_control"), [(1, True), (4, False), (4, True), (12, False), (12, True)])
def test_intervals_of_unpaired_ratios_cover_the_truth(prompts: int, with_control: bool):
    """The second run's machine is 1.3 times slower; a control that did not change takes that out."""
    rng, covered = np.random.default_rng(2), []
    for _ in range(200):
        length, own = rng.lognormal(0, 0.3, prompts), np.exp(rng.normal(0, 0.1, prompts))

        def times(means: np.ndarray) -> stats.Times:
            return {p: mean * rng.lognormal(0, 0.1, 10) for p, mean in enumerate(means)}

        control = (times(2 * length), times(2.6 * length)) if with_control else None
        ratio = stats.unpaired_ratio(times(length), times(1.2 * 1.3 * own * length), control)
        typical = np.exp(np.log(own).mean()) if prompts < stats.LEAST_PROMPTS else 1.0
        truth = 1.2 * typical * (1.0 if with_control else 1.3)
        assert ratio.low is not None
        assert ratio.high is not None
        covered.append(ratio.low <= truth <= ratio.high)
    assert np.mean(covered) >= 0.92


def test_unpaired_times_are_refused():
    with pytest.raises(InternalError, match="one shape"):
        stats.paired_ratio(np.ones((2, 3)), np.ones((2, 2)))


def test_psnr():
    image = np.zeros((3, 4, 4), dtype=np.float32)
    assert psnr_db(image + 0.1, image) == pytest.approx(20.0, abs=1e-4)
    assert psnr_db(image, image) == PSNR_CAP
    assert psnr_db(image + 1e-6, image) == PSNR_CAP
    assert mean_psnr_db([image, image + 0.1], [image, image]) == pytest.approx(40.0, abs=1e-4)


def test_percentiles():
    assert stats.percentile([1, 2, 3, 4], 50) == 2.5
    assert stats.percentile([7], 95) == 7


def test_bounds_of_few_values_cover_the_truth():
    """Bounds of a dozen normal values lie below their mean 95 times in a hundred; intervals hold it as often."""
    rng = np.random.default_rng(5)
    samples = rng.normal(3.0, 2.0, size=(1000, 12)).tolist()
    assert np.mean([stats.bound(values).limit <= 3.0 for values in samples]) >= 0.935
    assert np.mean([stats.bound(values, upper=True).limit >= 3.0 for values in samples]) >= 0.935
    intervals = [stats.mean_interval(values) for values in samples]
    assert np.mean([low <= 3.0 <= high for _, low, high in intervals]) >= 0.935
    assert stats.mean_interval([2.0]) == (2.0, 2.0, 2.0)
