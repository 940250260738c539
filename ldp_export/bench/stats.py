"""Percentiles, paired ratios with intervals, and mean PSNR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ldp_calibration.fidelity import psnr_db
from ldp_runtime.errors import ConfigError

#: What the speed-ups are, in words, for the report.
RATIO = "geometric mean over prompts of the median over repetitions of the paired ratio (same prompts, same repetition)"
INTERVAL = (
    "95 % percentile bootstrap, seeded, {resamples} resamples: prompts are drawn anew, then repetitions within each"
)
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """A ratio of times and its 95 % interval; no interval where there is only one pair."""

    value: float
    low: float | None
    high: float | None


def percentile(values: Sequence[float], q: float) -> float:
    """Percentile q in [0, 100], linear between neighbours."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), q))


def paired_ratio(base: np.ndarray, other: np.ndarray, seed: int = 0) -> Ratio:
    """How many times faster `other` is than `base`: base / other, pair by pair.

    Args:
        base, other: times [prompts, repetitions]; entries of the same place were measured in the same round.
        seed: of the bootstrap.
    """
    if base.shape != other.shape or base.ndim != 2 or not base.size:
        raise ConfigError(f"paired times must have one shape [prompts, repetitions], got {base.shape}, {other.shape}")
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
    """[..., prompts, repetitions] -> [...]: a slow outlier moves a median little; prompts count alike."""
    return np.exp(np.log(np.median(ratios, axis=-1)).mean(axis=-1))


def mean_psnr_db(images: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """Mean of the images' PSNR values."""
    pairs = zip(images, references, strict=True)
    return float(np.mean([psnr_db(image, reference) for image, reference in pairs]))
