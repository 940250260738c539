"""Float32 convolutions on a GPU."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_convolutions(device: torch.device) -> Generator[None]:
    """For the duration, float32 is float32: unless it is told not to, cuDNN rounds the factors to ten bits.

    (Of matrix products PyTorch does so only where the user asks for it.)
    """
    if device.type != "cuda":
        yield
        return
    # Not by the older `allow_tf32`, which cannot be read where a service has set its precision by this newer switch.
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before
