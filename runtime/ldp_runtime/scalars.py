"""Numbers as tensors, made once."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache(maxsize=256)
def scalar(number: float) -> torch.Tensor:
    """A number as a 0-dimensional float32 tensor; nobody may write to it.

    PyTorch wraps a Python number anew in every operation, which costs more than the operation on a small map. The
    tensor stays on the CPU: kernels of other devices take it by value, without a copy.
    """
    return torch.tensor(number, dtype=torch.float32, device="cpu")
