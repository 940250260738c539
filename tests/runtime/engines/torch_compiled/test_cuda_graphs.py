"""When CUDA graphs are captured and what is copied before a replay; the graphs themselves are stood in for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ldp_runtime.engines.graph_cache import GraphCounters
from ldp_runtime.engines.torch_compiled.cuda_graphs import CudaGraphs


class FakeStream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: FakeStream) -> None:
        pass


class FakeGraph:
    """Replays by calling again, into the outputs of the capture."""

    replays = 0

    def replay(self) -> None:
        FakeGraph.replays += 1


class Captures(list[Any]):
    """The pools that were captured into; beside them the streams, and where other work ran."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[FakeStream] = []
        self.others: list[FakeStream] = []
        self.devices: list[torch.device] = []


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Captures:
    used = Captures()

    @contextmanager
    def graph(_: FakeGraph, pool: Any, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        used.append(pool)
        used.streams.append(stream)
        yield

    @contextmanager
    def other(stream: FakeStream) -> Iterator[None]:
        used.others.append(stream)
        yield

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        used.devices.append(device)
        yield

    for name, fake in {
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "stream": other,
        "device": current,
        "CUDAGraph": FakeGraph,
        "graph": graph,
        "graph_pool_handle": object,
        "synchronize": lambda _: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return used


def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_a_call_is_captured_when_it_comes_back(pools: Captures) -> None:
    graphs, before = CudaGraphs(), FakeGraph.replays
    assert graphs.run(twice, [torch.ones(4)], "here").tolist() == [2.0] * 4
    assert (graphs.counters.captures, FakeGraph.replays) == (0, before)
    graphs.run(twice, [torch.ones(4)], "here")
    graphs.run(twice, [torch.ones(4)], "here")
    assert (graphs.counters.captures, FakeGraph.replays) == (1, before + 1)
    assert graphs.seconds > 0


def test_a_call_that_spoils_what_it_reads_is_answered_by_its_first_run(pools: Captures) -> None:
    """As the last scale's, whose keys and values run over the past of layers that are done."""
    graphs, past = CudaGraphs(), torch.zeros(1)

    def call(x: torch.Tensor) -> torch.Tensor:
        result = x + past
        past.fill_(100)
        return result

    for _ in range(2):
        past.zero_()
        assert graphs.run(call, [torch.ones(1)]).item() == 1
    assert graphs.counters.captures == 1


def test_one_graph_a_shape_and_address(pools: Captures) -> None:
    graphs = CudaGraphs()
    for _ in range(2):
        for size, place in ((4, "here"), (5, "here"), (5, "there")):
            graphs.run(twice, [torch.ones(size)], place)
    assert graphs.counters.captures == 3
    assert len({id(pool) for pool in pools}) == 1


def test_calls_that_seldom_come_back_are_not_captured(pools: Captures) -> None:
    """Which only say that much where no schedule tells full scales from pruned ones."""
    graphs = CudaGraphs()
    for _ in range(2):
        for size in range(1, 100):
            graphs.run(twice, [torch.ones(size)])
    assert graphs.counters.captures == 0


def test_inputs_of_mixed_types_are_copied(pools: Captures) -> None:
    graphs, seen = CudaGraphs(), []
    inputs = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16), torch.empty(0), torch.ones(2, dtype=torch.bool)]

    def call(*own: torch.Tensor) -> torch.Tensor:
        seen.extend(own)
        return own[0]

    for _ in range(2):
        graphs.run(call, inputs)
    given = [5 * torch.ones(3), torch.zeros(2, dtype=torch.bfloat16), torch.empty(0), torch.zeros(2, dtype=torch.bool)]
    graphs.run(call, given)
    for mine, theirs in zip(seen[-4:], given, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_cleared_graphs_are_captured_again(pools: Captures) -> None:
    graphs = CudaGraphs()
    for _ in range(2):
        for _ in range(2):
            graphs.run(torch.neg, [torch.ones(1)])
        graphs.clear()
    assert graphs.counters.captures == 2
    assert len({id(pool) for pool in pools}) == 2


def test_engines_of_a_model_count_together(pools: Captures) -> None:
    counters = GraphCounters()
    for graphs in (CudaGraphs(counters), CudaGraphs(counters)):
        for _ in range(3):
            graphs.run(torch.neg, [torch.ones(1)])
    assert (counters.captures, counters.replays, counters.plain) == (2, 2, 4)


def test_streams_are_of_these_graphs_alone_and_on_their_gpu(pools: Captures) -> None:
    """PyTorch's own capture stream is on whichever GPU came first, and shares memory of CUDA's libraries with all."""
    here = torch.device("cpu")
    for graphs in (CudaGraphs(), CudaGraphs()):
        for shape in (1, 1, 2, 2):
            graphs.run(torch.neg, [torch.ones(shape)])
    first, again, second, once_more = pools.streams
    assert first is again
    assert second is once_more
    assert first is not second
    assert not {id(stream) for stream in pools.streams} & {id(stream) for stream in pools.others}
    assert len({id(stream) for stream in pools.others}) == 2
    assert {stream.device for stream in pools.streams} == {*pools.devices} == {here}
