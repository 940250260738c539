"""Float32 convolutions on a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def exact_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """For the duration, float32 is float32: unless it is told not to, cuDNN rounds the factors to ten bits.

    (Of matrix products PyTorch does so only where the user asks for it.)
    """
    cudnn = torch.backends.cudnn
    if device.type != "cuda":
        return nullcontext()
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )
