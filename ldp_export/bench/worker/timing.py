"""Clocks of one call, and stopwatches on the methods of an original loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from ldp_calibration.cost import full_flops
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.schedule import ScaleSchedule


class Clock:
    """Clock of one call, from its creation until `stop`; on a GPU it waits for queued work at both ends."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._events: list[torch.cuda.Event] = []
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._record()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> tuple[float, float, float | None]:
        """Milliseconds: wall, process CPU (all threads), and between the CUDA events (None on a CPU)."""
        between = None
        if self._cuda:
            self._record()
            torch.cuda.synchronize()
            between = self._events[0].elapsed_time(self._events[1])
        return 1e3 * (time.perf_counter() - self._wall), 1e3 * (time.process_time() - self._cpu), between

    def peak_device_mb(self) -> float | None:
        """Most memory that PyTorch held on the GPU since the clock was created, in MiB."""
        return torch.cuda.max_memory_allocated() / 2**20 if self._cuda else None

    def _record(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)


Result = TypeVar("Result")


@dataclass(frozen=True)
class Drawing:
    """Images [B, 3, H, W] in [0, 1], seconds of the phases that can be told apart, and tokens per image.

    `scales` holds an entry per scale: seconds of the blocks, seconds of the loop, mean tokens and rows of an image.
    """

    images: torch.Tensor
    text_s: float
    blocks_s: float
    decode_s: float
    tokens: tuple[int, ...]
    row_tokens: tuple[int, ...]
    tokens_full: int
    scales: tuple[tuple[float, float, float, float], ...]
    flops: float


class Stopwatch:
    """Notes when the methods it is put on begin and end.

    On a GPU the times are events in its stream: PyTorch returns long before the GPU is done. Waiting for the GPU would
    slow down the loop that is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans: list[tuple[str, Any, Any]] = []

    def now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two such times; on a GPU both must have passed."""
        return start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start

    def timed(self, phase: str, function: Callable[..., Result]) -> Callable[..., Result]:
        def run(*args: object, **options: object) -> Result:
            started = self.now()
            try:
                return function(*args, **options)
            finally:
                self.spans.append((phase, started, self.now()))

        return run

    def put_on(self, owner: object, phase: str, *methods: str) -> None:
        for name in methods:
            setattr(owner, name, self.timed(phase, getattr(owner, name)))

    def start(self) -> Laps:
        """Starts the laps of one call."""
        self.spans.clear()
        return Laps(self)


@dataclass(frozen=True)
class Laps:
    """Laps of an original loop: when its start and each scale ended, and how many spans had been noted by then."""

    watch: Stopwatch
    ends: list[tuple[int, Any]] = field(default_factory=list)

    def end_scale(self, k: int) -> None:
        self.ends.append((len(self.watch.spans), self.watch.now()))

    def drawing(self, images: torch.Tensor, manifest: Manifest, schedule: ScaleSchedule, rows: int) -> Drawing:
        """Drawing of images [B, 3, H, W], with every token computed in `rows` branches, or in one without guidance."""
        if self.watch.device.type == "cuda":
            torch.cuda.synchronize(self.watch.device)
        count, tokens, guided = len(images), schedule.total_tokens, manifest.model.guided_scales
        branches = [rows if k < guided else 1 for k in range(len(schedule))]
        return Drawing(
            images=images,
            text_s=self._spent("text"),
            blocks_s=self._spent("blocks"),
            decode_s=self._spent("decode"),
            tokens=(tokens,) * count,
            row_tokens=(sum(n * r for n, r in zip(schedule.tokens, branches, strict=True)),) * count,
            tokens_full=tokens,
            scales=tuple(self._scales(schedule, branches)),
            flops=count * full_flops(manifest.model, schedule, rows == 2),
        )

    def _spent(self, phase: str, first: int = 0, end: int | None = None) -> float:
        return sum(self.watch.seconds(a, b) for name, a, b in self.watch.spans[first:end] if name == phase)

    def _scales(self, schedule: ScaleSchedule, rows: Sequence[int]) -> Iterator[tuple[float, float, float, float]]:
        for (first, start), (end, stop), own, branches in zip(
            self.ends, self.ends[1:], schedule.tokens, rows, strict=False
        ):
            blocks = self._spent("blocks", first, end)
            yield blocks, max(0.0, self.watch.seconds(start, stop) - blocks), float(own), float(branches)
