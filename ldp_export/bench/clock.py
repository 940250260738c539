"""Clocks of one call: wall time, process CPU time, and on a GPU the time between two CUDA events."""

from __future__ import annotations

import time

import torch


class Clock:
    """Runs from its making until `stop`; on a GPU it waits for queued work at both ends."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._events: list[torch.cuda.Event] = []
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._record()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> tuple[float, float, float | None]:
        """Milliseconds: wall, process CPU (all threads), and between the events."""
        between = None
        if self._cuda:
            self._record()
            torch.cuda.synchronize()
            between = self._events[0].elapsed_time(self._events[1])
        return 1e3 * (time.perf_counter() - self._wall), 1e3 * (time.process_time() - self._cpu), between

    def peak_device_mb(self) -> float | None:
        """Most memory that PyTorch held on the GPU since the clock was made, in MiB."""
        return torch.cuda.max_memory_allocated() / 2**20 if self._cuda else None

    def _record(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)
