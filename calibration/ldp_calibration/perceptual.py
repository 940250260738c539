"""LPIPS: distance of two images by the features of a VGG-16, without torchvision.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.system.installation import install
from torch.nn import functional

#: torchvision's file of the network, and how its hash begins, as its name says.
VGG_WEIGHTS, VGG_HASH = "vgg16-397923af.pth", "397923af"
#: Hash of the layers' weights, which torchmetrics brings.
_HEADS_HASH = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
#: Numbers of the convolutions among VGG's features, by block; each block but the first begins with pooling.
_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_MEAN, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-8


class PerceptualDistance:
    """Distance of images [B, 3, H, W] in [0, 1]; lower is nearer.

    Args:
        vgg: weights by torchvision's names, as `features.0.weight`.
        heads: weight of each channel [1, C, 1, 1], for the last layer of each block.
    """

    def __init__(self, vgg: Mapping[str, torch.Tensor], heads: tuple[torch.Tensor, ...]) -> None:
        self._vgg, self._heads = vgg, heads

    @torch.no_grad()
    def __call__(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Distance of each pair [B]."""
        total = torch.zeros(len(image), dtype=torch.float32, device=image.device)
        x, y = _normalised(image), _normalised(reference)
        for number, (block, head) in enumerate(zip(_BLOCKS, self._heads, strict=True)):
            x, y = (self._block(z if number == 0 else functional.max_pool2d(z, 2), block) for z in (x, y))
            difference = (_unit(x) - _unit(y)).square()  # [B, C, h, w]
            total += functional.conv2d(difference, head).mean(dim=(1, 2, 3))
        return total

    def _block(self, x: torch.Tensor, numbers: tuple[int, ...]) -> torch.Tensor:
        for number in numbers:
            weight, bias = (self._vgg[f"features.{number}.{kind}"] for kind in ("weight", "bias"))
            x = functional.conv2d(x, weight, bias, padding=1).relu()
        return x


def _normalised(image: torch.Tensor) -> torch.Tensor:
    mean, scale = (
        torch.tensor(v, dtype=torch.float32, device=image.device)[None, :, None, None] for v in (_MEAN, _SCALE)
    )
    return (2 * image - 1 - mean) / scale


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / (_EPSILON + x.square().sum(dim=1, keepdim=True)).sqrt()


@lru_cache(maxsize=2)
def load_distance(weights: Path) -> PerceptualDistance:
    """Distance with the weights of a file. Nothing is downloaded.

    Raises:
        ConfigError: the file, or torchmetrics, is not there.
        IntegrityError: the file is another one.
    """
    if not weights.is_file():
        raise ConfigError(
            f"the weights of LPIPS's network are not there: {weights}",
            hint="copy torchvision's VGG-16 weights to that path, or choose psnr or ssim",
        )
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if not found.startswith(VGG_HASH):
        raise IntegrityError(
            f"{weights} is not torchvision's {VGG_WEIGHTS}: its sha256 begins with {found[:8]}, expected {VGG_HASH}",
            hint="copy the file anew",
        )
    return PerceptualDistance(torch.load(weights, map_location="cpu", weights_only=True), load_heads())


def load_heads() -> tuple[torch.Tensor, ...]:
    """Weights of LPIPS's own layers, version 0.1, for the five blocks.

    Raises:
        ConfigError: torchmetrics, which brings them, is not installed.
        IntegrityError: its file is another one.
    """
    try:
        import torchmetrics
    except ImportError as error:
        raise ConfigError("LPIPS needs torchmetrics", hint=install("eval")) from error
    path = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth"
    if hashlib.sha256(path.read_bytes()).hexdigest() != _HEADS_HASH:
        raise IntegrityError(f"{path} is not LPIPS's version 0.1", hint="install torchmetrics anew")
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    return tuple(state[f"lin{i}.model.1.weight"] for i in range(len(_BLOCKS)))
