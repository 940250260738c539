"""Shadows: the unpruned twins of some pictures, drawn when the engine is free, to measure quality in production."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ldp_runtime.pipeline.trace import Trace
from ldp_runtime.pruning.policy import Policy

from ldp_serving.errors import Refused
from ldp_serving.events import Drawn, Event, Times
from ldp_serving.metrics import Metrics, ModelMetrics
from ldp_serving.waiting import Picture

if TYPE_CHECKING:
    from ldp_serving.scheduler import Scheduler

#: Priority of twins: every client goes first, until a twin has waited for very long.
_PRIORITY = -1000


class ShadowMetrics(ModelMetrics):
    """Metrics of a model that also draws the twins of a share of its pictures."""

    def __init__(self, metrics: Metrics, name: str, rate: float, seed: int | None = None) -> None:
        super().__init__(metrics, name)
        self._rate, self._generator = rate, random.Random(seed)
        self.scheduler: Scheduler | None = None

    def finished(self, picture: Picture, image: Any, trace: Trace, times: Times) -> None:
        if picture.ticket.shadow:
            return
        super().finished(picture, image, trace, times)
        if picture.request.policy != Policy() and self._generator.random() < self._rate:
            self._draw_twin(picture, image)

    def _draw_twin(self, picture: Picture, image: Any) -> None:
        if self.scheduler is None or self.scheduler.waiting:
            return  # clients wait
        pixels = np.asarray(image)

        def compare(event: Event) -> None:
            if isinstance(event, Drawn):
                self.compared(psnr(pixels, np.asarray(event.image)))

        try:
            self.scheduler.submit([replace(picture.request, policy=Policy())], compare, priority=_PRIORITY, shadow=True)
        except Refused:
            return


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures; 100 if they are equal."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 100.0 if error == 0 else 10 * math.log10(255**2 / error)
