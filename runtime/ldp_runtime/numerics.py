"""Numerics: checks for NaN that do not wait for a GPU, exact scalars, exact convolutions."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from ldp_runtime.errors import NonFiniteError


@lru_cache(maxsize=256)
def scalar(number: float) -> torch.Tensor:
    """A number as a 0-dimensional float32 tensor on the CPU; it is cached, so callers must not write to it.

    PyTorch wraps a Python number anew in every operation, which costs more than the operation on a small map.
    The tensor stays on the CPU because kernels of other devices take it by value, without a copy.
    """
    return torch.tensor(number, dtype=torch.float32, device="cpu")


def all_finite(*tensors: torch.Tensor) -> bool:
    """True if no value of these real tensors is NaN or infinite; empty tensors pass.

    Takes minimum and maximum in one pass, through which NaN propagates. On a CPU this is ten times as fast as a mask of
    all values. Waits for a GPU once, however many tensors there are.
    """
    extremes = _extremes(tensors)
    if extremes and extremes[0].is_cuda:
        return bool(torch.stack(extremes).isfinite().all())
    return all(math.isfinite(float(extreme)) for extreme in extremes)


def _extremes(tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [extreme.double() for tensor in tensors if tensor.numel() for extreme in torch.aminmax(tensor)]


class FiniteWatch:
    """Checks that the outputs of a run are finite: on a CPU at once, on a GPU at the end of the run.

    Reading a GPU's answer makes the host wait for all work queued so far, and then the GPU for the host. After every
    scale, that would cost a millisecond each time.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[str, str, torch.Tensor]] = []

    def see(self, tensor: torch.Tensor, problem: str, hint: str) -> None:
        """Checks an output: raises NonFiniteError with this message and hint now, or leaves it to `check` on a GPU."""
        if tensor.is_cuda:
            self._asked.append((problem, hint, torch.stack(_extremes((tensor,))).isfinite().all()))
        elif not all_finite(tensor):
            raise NonFiniteError(problem, hint=hint)

    def check(self) -> None:
        """Raises NonFiniteError for the first output seen that was not finite."""
        asked, self._asked = self._asked, []
        if not asked:
            return
        for (problem, hint, _), finite in zip(asked, torch.stack([flag for *_, flag in asked]).tolist(), strict=True):
            if not finite:
                raise NonFiniteError(problem, hint=hint)


def check_finite(graph: str, *outputs: torch.Tensor) -> None:
    """Raises a NonFiniteError that names the graph if one of its outputs holds NaN or infinity."""
    if not all_finite(*outputs):
        raise NonFiniteError(f"the graph {graph!r} gave NaN or infinity", hint="verify the bundle")


@contextmanager
def exact_convolutions(device: torch.device) -> Generator[None]:
    """Keeps convolutions in full float32 within this context: by default cuDNN rounds their factors to ten bits.

    Matrix products need no such context: PyTorch rounds theirs only if the user asks for it.
    """
    if device.type != "cuda":
        yield
        return
    # The older switch `allow_tf32` cannot be read once a service has set its precision by this newer one.
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before
