"""Distance of a pruned image from the full model's image of the same prompt and seed."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError
from ldp_runtime.installation import install

#: Decibels reported for images that are (nearly) equal: a mean must not depend on a few perfect images.
PSNR_CAP = 60.0
#: torchvision's file of the network whose features LPIPS compares.
LPIPS_WEIGHTS = "vgg16-397923af.pth"


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
    import torch

    a, b = (torch.from_numpy(np.asarray(x, dtype=np.float32)).permute(2, 0, 1)[None] for x in (image, reference))
    result: Any = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)  # pyright: ignore
    return result[1][0].permute(1, 2, 0).numpy()


def lpips(image: np.ndarray, reference: np.ndarray) -> float:
    """Learned perceptual distance (VGG) of two images [H, W, 3] in [0, 1]; lower is nearer.

    Raises:
        ConfigError: the library or the weights of the network are not on this machine. Nothing is downloaded.
    """
    import torch

    a, b = (torch.from_numpy(np.asarray(x, dtype=np.float32)).permute(2, 0, 1)[None] for x in (image, reference))
    with torch.no_grad():
        return float(_lpips_network()(a, b))


@lru_cache(maxsize=1)
def _lpips_network() -> Any:
    try:
        import torch
        import torchvision  # noqa: F401  # pyright: ignore
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as error:
        raise ConfigError(
            f"LPIPS needs torchmetrics and torchvision: {error}", hint="pip install torchmetrics torchvision"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
    if not weights.is_file():
        raise ConfigError(
            f"the weights of LPIPS's network are not there: {weights}",
            hint="copy torchvision's VGG-16 weights to that path, or choose psnr or ssim",
        )
    return LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True)
