"""Inputs of the networks: each scorer's own resizing, padding and normalising of a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ldp_calibration.evaluation.networks.resize import linear_resize

#: Mean and standard deviation of CLIP's pixels in [0, 1], and of the detector's in [0, 255].
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_DETECTOR = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
#: Longest and shortest side of the detector's input, divisor of its sides, and the byte that fills it up.
_LONG, _SHORT, _STRIDE, _FILL = 1333, 800, 32, 128


def detector_size(width: int, height: int) -> tuple[int, int]:
    """Width and height to which the detector's input is resized."""
    scale = min(_LONG / max(width, height), _SHORT / min(width, height))
    return int(width * scale + 0.5), int(height * scale + 0.5)


def detector_input(image: np.ndarray) -> Tensor:
    """Input [3, H, W] of the detector for a picture [H, W, 3] uint8: resized as bytes, filled up, normalised."""
    width, height = detector_size(image.shape[1], image.shape[0])
    resized = linear_resize(image, width, height)
    padding = [(0, -side % _STRIDE) for side in (height, width)] + [(0, 0)]
    filled = np.pad(resized, padding, constant_values=_FILL).astype(np.float32)
    return _normalised(torch.from_numpy(filled).permute(2, 0, 1), _DETECTOR)


def clip_input(image: Any, side: int = 224) -> Tensor:
    """Input [3, side, side] of CLIP and BLIP for a PIL image: shortest side resized (bicubic), centre cut out."""
    from PIL import Image

    width, height = image.size
    short, long = min(width, height), max(width, height)
    resized_long = int(side * long / short)
    size = (side, resized_long) if width <= height else (resized_long, side)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in image.size)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)).convert("RGB"))
    return _normalised(_unit(pixels), _CLIP)


def padded_input(image: np.ndarray, side: int = 224, antialias: bool = True) -> Tensor:
    """Input [3, side, side] of HPSv2 for a picture [H, W, 3]: longest side resized (bicubic), zeros around it.

    Args:
        antialias: True as torchvision 0.17 and later resize a tensor, False as earlier ones did.
    """
    pixels = _unit(image)
    height, width = image.shape[:2]
    scale = side / float(max(height, width))
    if scale != 1.0:
        height, width = round(height * scale), round(width * scale)
        size = (height, width)
        pixels = functional.interpolate(pixels[None], size, mode="bicubic", align_corners=False, antialias=antialias)[0]
    left, top = (side - width) // 2, (side - height) // 2
    padded = functional.pad(pixels, (left, side - width - left, top, side - height - top))
    return _normalised(padded, _CLIP)


def _unit(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def _normalised(pixels: Tensor, numbers: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, scale = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in numbers)
    return (pixels - mean) / scale
