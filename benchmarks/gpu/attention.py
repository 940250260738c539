"""Which of PyTorch's attention kernels is fastest here at a model's largest call: eager and compiled both use it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from ldp_runtime.schedule import ScaleSchedule
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldp_export.models.sizes import InfinityConfig

_KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
_REST = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@torch.no_grad()
def attention_times(config: InfinityConfig, schedule: ScaleSchedule, device: torch.device) -> dict[str, float | str]:
    """Milliseconds of the last scale's self-attention, two rows; words where a kernel refuses it."""
    if device.type != "cuda":
        return {}
    tokens, total, heads, c = schedule.tokens[-1], sum(schedule.tokens), config.heads, config.head_dim
    q, k, v = (
        torch.randn(length, 2, heads, c, device=device, dtype=torch.bfloat16).permute(1, 2, 0, 3)
        for length in (tokens, total, total)
    )
    found: dict[str, float | str] = {}
    for name, backend in _KERNELS.items():
        try:
            with sdpa_kernel(backend):
                found[name] = _milliseconds(q, k, v)
            with sdpa_kernel([backend, *_REST], set_priority=True):
                _try_all(schedule, q, k, v)
        except RuntimeError as error:
            found[name] = str(error).splitlines()[0]
    return found


def _try_all(schedule: ScaleSchedule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Every scale's shape, both branches and one: a kernel that fails at any of them is not used."""
    for rows in (2, 1):
        for tokens, past in zip(schedule.tokens, schedule.offsets, strict=False):
            seen = (t[:rows, :, : past + tokens] for t in (k, v))
            F.scaled_dot_product_attention(q[:rows, :, :tokens], *seen, scale=1.0)
    torch.cuda.synchronize()


def _milliseconds(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, repeats: int = 5) -> float:
    for _ in range(2):
        F.scaled_dot_product_attention(q, k, v, scale=1.0)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        F.scaled_dot_product_attention(q, k, v, scale=1.0)
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / repeats


def fastest(times: dict[str, float | str]) -> AbstractContextManager[Any]:
    """PyTorch's attention, the fastest kernel first; others where it does not fit."""
    ranked = sorted((time, name) for name, time in times.items() if isinstance(time, float))
    if not ranked:
        return nullcontext()
    order = [_KERNELS[name] for _, name in ranked]
    return sdpa_kernel([*order, *(b for b in _KERNELS.values() if b not in order), *_REST], set_priority=True)
