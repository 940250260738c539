"""Conversion of decoder output to the output type that the caller asks for."""

from __future__ import annotations

from typing import Any

import torch


def to_uint8(image: torch.Tensor) -> torch.Tensor:
    """Converts [B, 3, H, W] in [-1, 1] to uint8 RGB [B, H, W, 3], truncating as the originals do."""
    return (image + 1).div_(2).mul_(255).to(torch.uint8).permute(0, 2, 3, 1)


def to_output(image: torch.Tensor, output_type: str) -> Any:
    """Converts [B, 3, H, W] in [-1, 1] to PIL images ("pil"), or to floats in [0, 1].

    The floats are an array [B, H, W, 3] in C order ("numpy"), or a tensor [B, 3, H, W] for any other type.
    """
    if output_type == "pil":
        from PIL import Image

        return [Image.fromarray(pixels.numpy()) for pixels in to_uint8(image).cpu()]
    unit = (image + 1).div_(2)
    return unit.permute(0, 2, 3, 1).contiguous().cpu().numpy() if output_type == "numpy" else unit
