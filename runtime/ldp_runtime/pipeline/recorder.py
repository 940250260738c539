"""Recorder of a run: what happened at each scale of each image, and the clock that times it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ldp_runtime.pipeline.batch import Group, ImageState
from ldp_runtime.pipeline.trace import ScaleTrace
from ldp_runtime.pruning.policy import Selection
from ldp_runtime.pruning.sats import GuidanceGap


@dataclass(frozen=True)
class Mark:
    """A point of a run: seconds of the host's clock and, on a GPU, an event in its stream of work."""

    host: float
    event: torch.cuda.Event | None


#: Seconds from one mark to another.
Between = Callable[[Mark, Mark], float]


@dataclass(frozen=True)
class ScaleMarks:
    """Marks of one image at one scale.

    Attributes:
        started: the scale began.
        selected: its tokens were chosen.
        computed: its blocks were computed.
        image_started, ended: sampling and accumulating this image began and ended.
    """

    started: Mark
    selected: Mark
    computed: Mark
    image_started: Mark
    ended: Mark


class ScaleClock:
    """Clock that marks points of a run and turns them into the seconds of traces."""

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
        """Appends a scale's trace with the host's times; on a GPU, `settle` replaces them later."""
        traces.append(replace(trace, **_seconds(marks, _host)))
        if self._gpu is not None:
            self._open.append((traces, len(traces) - 1, marks))

    def settle(self) -> None:
        """Puts the device's times into the traces, once the run is over."""
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


class Recorder:
    """Writes the traces of a run's images.

    Args:
        device: of the engines.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = ScaleClock(device)

    def begin(self) -> ScaleLaps:
        """Laps of one step, which begins now."""
        return ScaleLaps(self._clock)

    def settle(self) -> None:
        """Puts a GPU's own times into the traces, once the run is over."""
        self._clock.settle()


class ScaleLaps:
    """Times of one step: choosing tokens, the engine call, then each image's share in turn."""

    def __init__(self, clock: ScaleClock) -> None:
        self._clock = clock
        self._started = self._selected = self._computed = self._image_started = clock.mark()

    def selected(self) -> None:
        """Notes that the tokens are chosen."""
        self._selected = self._clock.mark()

    def computed(self) -> None:
        """Notes that the engines are done."""
        self._computed = self._image_started = self._clock.mark()

    def note(
        self, image: ImageState, group: Group, selection: Selection | None, tokens: int, gap: GuidanceGap | None
    ) -> None:
        """Writes the scale into the image's trace; what it took is the time since the image before.

        Args:
            tokens: number of tokens computed.
        """
        k = group.scale
        trace = ScaleTrace(
            scale=k,
            grid=image.schedule.grids[k],
            tokens=tokens,
            tokens_full=image.schedule.tokens[k],
            rows=1 + image.unconditional,
            guided=image.unconditional and image.settings.guidance[k] != 1,
            images_in_call=len(group.images),
            gap=None if gap is None else gap.rms,
            unconditional_stopped=image.stopped and image.unconditional,
            kept=None if selection is None else selection.kept,
            score=None if selection is None else selection.score,
        )
        marks = ScaleMarks(self._started, self._selected, self._computed, self._image_started, self._clock.mark())
        self._clock.note(image.trace, trace, marks)
        self._image_started = marks.ended
