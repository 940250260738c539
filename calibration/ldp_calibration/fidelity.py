"""How near a pruned image is to the image that the full model draws from the same prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ldp_runtime.errors import ConfigError

#: Decibels reported for images that are (nearly) equal: a mean must not hang on a few perfect images.
PSNR_CAP = 60.0


def psnr_db(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of images of one shape with values in [0, 1], at most `PSNR_CAP`."""
    error = float(np.square(image.astype(np.float64) - reference.astype(np.float64)).mean())
    return PSNR_CAP if error == 0 else min(PSNR_CAP, -10 * float(np.log10(error)))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of two images [H, W, 3] in [0, 1]; needs torchmetrics."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ConfigError("SSIM needs torchmetrics", hint="pip install 'ldp-export[eval]'") from error
    import torch

    a, b = (torch.from_numpy(np.asarray(x, dtype=np.float32)).permute(2, 0, 1)[None] for x in (image, reference))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Bound:
    """A mean, its lower 95 % bound (one-sided, bootstrap), and the fifth percentile of the single values."""

    mean: float
    lower: float
    fifth_percentile: float
    count: int


def bound(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> Bound:
    """Mean with its lower bound; the bootstrap is seeded, so equal values give equal bounds."""
    if not values:
        raise ConfigError("no values to take a mean of")
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    means = array[draws].mean(axis=1)
    return Bound(float(array.mean()), float(np.percentile(means, 5)), float(np.percentile(array, 5)), len(array))
