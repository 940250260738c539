"""Noise of an image, drawn by another thread while a GPU encodes the text and computes earlier scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import overload

import torch

from ldp_runtime.families.base import Codec
from ldp_runtime.schedule import ScaleSchedule


class NoiseAhead(Sequence[torch.Tensor]):
    """Noise of each scale, equal to that of `Codec.noise`.

    Access to a scale waits until its variates are drawn, and copies them to the GPU without waiting for the GPU.

    Args:
        drawer: executor with a single thread, so that the scales are drawn in order.
    """

    def __init__(
        self, seed: int, codec: Codec, schedule: ScaleSchedule, device: torch.device, drawer: Executor
    ) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        self._drawn = [drawer.submit(codec.draw_noise, generator, schedule, k) for k in range(len(schedule))]
        self._device = device

    def __len__(self) -> int:
        return len(self._drawn)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        noise = self._drawn[index].result()
        if self._device.type != "cuda":
            return noise
        # Pinned here and not by the drawer: while a CUDA graph is captured, no other thread may allocate such memory.
        return noise.pin_memory().to(self._device, non_blocking=True)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[i] for i in range(len(self)))
