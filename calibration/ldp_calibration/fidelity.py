"""Distance of a pruned image from the full model's image of the same prompt and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError
from ldp_runtime.system.installation import install

#: Decibels reported for images that are (nearly) equal: a mean must not depend on a few perfect images.
PSNR_CAP = 60.0


def psnr_db(image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio of images of one shape with values in [0, 1], at most `PSNR_CAP`.

    Args:
        mask: the pixels that count, bool [H, W]; None: all of [H, W, 3] (or of any other shape).
    """
    squares = np.square(image.astype(np.float64) - reference.astype(np.float64))
    error = float((squares if mask is None else squares[mask]).mean())
    return PSNR_CAP if error == 0 else min(PSNR_CAP, -10 * float(np.log10(error)))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of two images [H, W, 3] in [0, 1]; needs torchmetrics."""
    return float(ssim_map(image, reference).mean())


def ssim_map(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity pixel by pixel [H, W, 3] of two images [H, W, 3] in [0, 1]; needs torchmetrics."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ConfigError("SSIM needs torchmetrics", hint=install("eval")) from error
    result: Any = structural_similarity_index_measure(  # pyright: ignore
        as_tensor(image), as_tensor(reference), data_range=1.0, return_full_image=True
    )
    return result[1][0].permute(1, 2, 0).numpy()


def lpips(image: np.ndarray, reference: np.ndarray, weights: Path | None = None) -> float:
    """Learned perceptual distance (VGG) of two images [H, W, 3] in [0, 1]; lower is nearer.

    Args:
        weights: torchvision's file of the network's weights; None: where torchvision itself would put it.

    Raises:
        ConfigError: the library or the weights of the network are not on this machine. Nothing is downloaded.
        IntegrityError: the weights are others.
    """
    import torch

    from ldp_calibration.perceptual import VGG_WEIGHTS, load_distance

    distance = load_distance(weights or Path(torch.hub.get_dir()) / "checkpoints" / VGG_WEIGHTS)
    return float(distance(as_tensor(image), as_tensor(reference)))


def as_tensor(image: np.ndarray) -> Any:
    """An image [H, W, 3] as a tensor [1, 3, H, W]."""
    import torch

    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None]
