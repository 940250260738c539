"""Measures the machine's own peak: a share of a data sheet's number says little on a shared or throttled machine."""

from __future__ import annotations

import time

import torch

_SIDE, _REPEATS = 1024, 12


def measured_peak(threads: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of the best of a few products of two large square matrices."""
    side = _SIDE if device == "cpu" else 8 * _SIDE
    torch.set_num_threads(threads)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best = min(_seconds(a, b, out) for _ in range(_REPEATS))
    return 2 * side**3 / best


def _seconds(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
    _wait(a)
    started = time.perf_counter()
    torch.mm(a, b, out=out)
    _wait(a)
    return time.perf_counter() - started


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
