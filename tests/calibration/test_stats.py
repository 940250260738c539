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
