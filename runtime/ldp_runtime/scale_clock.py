"""The clock of the scale loop: the host's on a CPU; on a GPU the device's, which is read when the run is over.

A GPU works behind the host. Waiting for it at every scale to read a clock would cost what is to be measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ldp_runtime.trace import ScaleTrace


@dataclass(frozen=True)
class Mark:
    """A point of a run: seconds of the host's clock and, on a GPU, an event between what it was asked for."""

    host: float
    event: torch.cuda.Event | None


#: Seconds from one mark to another.
Between = Callable[[Mark, Mark], float]


@dataclass(frozen=True)
class ScaleMarks:
    """Of one image at one scale: it began, tokens were chosen, blocks computed; this image's share began and ended."""

    started: Mark
    selected: Mark
    computed: Mark
    image_started: Mark
    ended: Mark


class ScaleClock:
    """Marks points and turns them into the seconds of traces."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device if device.type == "cuda" else None
        self._open: list[tuple[list[ScaleTrace], int, ScaleMarks]] = []

    def mark(self) -> Mark:
        event = None
        if self._gpu is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._gpu))
        return Mark(time.perf_counter(), event)

    def note(self, traces: list[ScaleTrace], trace: ScaleTrace, marks: ScaleMarks) -> None:
        """Appends a scale's trace with the host's times, on a GPU to be replaced by `settle`."""
        traces.append(replace(trace, **_seconds(marks, _host)))
        if self._gpu is not None:
            self._open.append((traces, len(traces) - 1, marks))

    def settle(self) -> None:
        """Puts the device's times into the traces; the run is over."""
        if self._open:
            torch.cuda.synchronize(self._gpu)
        for traces, index, marks in self._open:
            traces[index] = replace(traces[index], **_seconds(marks, _device))
        self._open.clear()


def _seconds(marks: ScaleMarks, between: Between) -> dict[str, float]:
    return {
        "select_s": between(marks.started, marks.selected),
        "blocks_s": between(marks.selected, marks.computed),
        "residual_s": between(marks.image_started, marks.ended),
    }


def _host(start: Mark, end: Mark) -> float:
    return end.host - start.host


def _device(start: Mark, end: Mark) -> float:
    assert start.event is not None
    assert end.event is not None
    return start.event.elapsed_time(end.event) / 1e3
