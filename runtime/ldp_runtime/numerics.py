"""Numbers: values checked for NaN without waiting for a GPU, exact scalars, exact convolutions."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ldp_runtime.errors import NonFiniteError

if TYPE_CHECKING:
    pass


@lru_cache(maxsize=256)
def scalar(number: float) -> torch.Tensor:
    """A number as a 0-dimensional float32 tensor; nobody may write to it.

    PyTorch wraps a Python number anew in every operation, which costs more than the operation on a small map. The
    tensor stays on the CPU: kernels of other devices take it by value, without a copy.
    """
    return torch.tensor(number, dtype=torch.float32, device="cpu")


def all_finite(*tensors: torch.Tensor) -> bool:
    """True where no value of real tensors is NaN or infinite; an empty one holds none.

    Reads least and greatest in one pass (NaN passes through both): ten times as fast on a CPU as a mask of all values.
    A GPU is waited for once, however many tensors there are.
    """
    extremes = _extremes(tensors)
    if extremes and extremes[0].is_cuda:
        return bool(torch.stack(extremes).isfinite().all())
    return all(math.isfinite(float(extreme)) for extreme in extremes)


def _extremes(tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [extreme.double() for tensor in tensors if tensor.numel() for extreme in torch.aminmax(tensor)]


class FiniteWatch:
    """Asks whether the outputs of a run are finite: on a CPU at once, on a GPU at the end.

    The answer of a GPU makes the host wait for all that it has asked for so far, and the GPU then for the host: after
    every scale that would cost a millisecond each time.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[str, str, torch.Tensor]] = []

    def see(self, tensor: torch.Tensor, problem: str, hint: str) -> None:
        """Raises NonFiniteError with these words now, or lets `check` raise it."""
        if tensor.is_cuda:
            self._asked.append((problem, hint, torch.stack(_extremes((tensor,))).isfinite().all()))
        elif not all_finite(tensor):
            raise NonFiniteError(problem, hint=hint)

    def check(self) -> None:
        """Raises NonFiniteError for the first output that was not finite."""
        asked, self._asked = self._asked, []
        if not asked:
            return
        for (problem, hint, _), finite in zip(asked, torch.stack([found for *_, found in asked]).tolist(), strict=True):
            if not finite:
                raise NonFiniteError(problem, hint=hint)


def check_finite(graph: str, *outputs: torch.Tensor) -> None:
    """Raises NonFiniteError that names the graph when one of its outputs holds NaN or infinity."""
    if not all_finite(*outputs):
        raise NonFiniteError(f"the graph {graph!r} gave NaN or infinity", hint="verify the bundle")


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
