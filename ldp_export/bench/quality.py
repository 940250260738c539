"""Loss of pruning in pixels, against the image that the same engines draw unpruned."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ldp_calibration.fidelity import psnr_db, ssim


@dataclass(frozen=True)
class Loss:
    """Means over images; None where a measure does not apply, or its library is not installed."""

    psnr_db: float | None
    ssim: float | None
    psnr_objects_db: float | None


NO_LOSS = Loss(None, None, None)


def loss(images: Sequence[np.ndarray], references: Sequence[np.ndarray], has_objects: bool) -> Loss:
    """Loss of images [3, H, W] in [0, 1], pair by pair; `has_objects` is True if they show the shapes world."""
    pairs = [
        (image.transpose(1, 2, 0), reference.transpose(1, 2, 0))
        for image, reference in zip(images, references, strict=True)
    ]
    return Loss(
        psnr_db=float(np.mean([psnr_db(image, reference) for image, reference in pairs])),
        ssim=float(np.mean([ssim(image, reference) for image, reference in pairs])) if _has("torchmetrics") else None,
        psnr_objects_db=_over_objects(pairs) if has_objects and _has("scipy") else None,
    )


def _over_objects(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """PSNR over the pixels of the reference's shapes alone: a plain background raises the whole image's PSNR."""
    from ldp_calibration.shapes.evaluator import object_mask

    masks = [object_mask((255 * reference).round().astype(np.uint8)) for _, reference in pairs]
    values = [psnr_db(*pair, mask) for pair, mask in zip(pairs, masks, strict=True) if mask.any()]
    return float(np.mean(values)) if values else None


def _has(package: str) -> bool:
    """True if an optional package is installed; the report goes on without it."""
    return importlib.util.find_spec(package) is not None


def mean_psnr_db(images: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """Mean of the images' PSNR values."""
    pairs = zip(images, references, strict=True)
    return float(np.mean([psnr_db(image, reference) for image, reference in pairs]))
