"""The loop's clock on a GPU, whose events are stood in for: read at the end, and not before."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from ldp_runtime.pipeline.recorder import ScaleClock, ScaleMarks
from ldp_runtime.pipeline.trace import ScaleTrace


class FakeEvent:
    """Lies at the next of the device's milliseconds."""

    ticks = count()
    waited = False

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1

    def record(self, stream: object) -> None:
        self.at = next(FakeEvent.ticks)

    def elapsed_time(self, other: FakeEvent) -> float:
        assert FakeEvent.waited, "asked for before the device is done"
        return float(other.at - self.at)


def trace(scale: int) -> ScaleTrace:
    return ScaleTrace(
        scale, (1, 1), 1, 1, rows=1, guided=False, images_in_call=1, gap=None, unconditional_stopped=False
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    def synchronize(device: torch.device) -> None:
        FakeEvent.waited = True

    FakeEvent.waited, FakeEvent.ticks = False, count()
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return torch.device("cuda", 0)


def test_device_times_replace_the_hosts(gpu: torch.device) -> None:
    clock, traces = ScaleClock(gpu), list[ScaleTrace]()
    for k in range(2):
        started, selected, computed = clock.mark(), clock.mark(), clock.mark()
        clock.mark()  # another image's
        own = clock.mark()
        clock.note(traces, trace(k), ScaleMarks(started, selected, computed, own, clock.mark()))
    assert all(0 <= t.blocks_s < 1e-3 for t in traces)
    clock.settle()
    assert [(t.scale, t.select_s, t.blocks_s, t.residual_s) for t in traces] == [(k, 1e-3, 1e-3, 1e-3) for k in (0, 1)]


def test_a_run_without_a_scale_waits_for_nothing(gpu: torch.device) -> None:
    ScaleClock(gpu).settle()
    assert not FakeEvent.waited


def test_on_a_cpu_the_hosts_clock_is_all_there_is() -> None:
    clock, traces = ScaleClock(torch.device("cpu")), list[ScaleTrace]()
    marks = [clock.mark() for _ in range(5)]
    clock.note(traces, trace(0), ScaleMarks(*marks))
    clock.settle()
    assert traces[0].blocks_s == marks[2].host - marks[1].host
    assert marks[0].event is None
