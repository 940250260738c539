"""When CUDA graphs are captured and what is copied before a replay; the graphs themselves are stood in for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from gpu_graphs import CudaGraphs


class FakeStream:
    def wait_stream(self, other: FakeStream) -> None:
        pass


class FakeGraph:
    """Replays by calling again, into the outputs of the capture."""

    replays = 0

    def replay(self) -> None:
        FakeGraph.replays += 1


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pools that were captured into."""
    used: list[Any] = []

    @contextmanager
    def graph(_: FakeGraph, pool: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        used.append(pool)
        yield

    for name, fake in {
        "Stream": lambda _: FakeStream(),
        "current_stream": lambda _: FakeStream(),
        "stream": nullcontext,
        "CUDAGraph": FakeGraph,
        "graph": graph,
        "graph_pool_handle": object,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return used


def test_one_graph_a_shape_and_address(pools: list[Any]) -> None:
    graphs, cache = CudaGraphs(), torch.zeros(2, 3)
    double = lambda x: 2 * x  # noqa: E731
    for _ in range(2):
        graphs.run(double, [torch.ones(4)], [cache[0]])
    assert graphs.captured == 1
    graphs.run(double, [torch.ones(5)], [cache[0]])
    graphs.run(double, [torch.ones(5)], [cache[1]])
    assert graphs.captured == 3
    assert len({id(pool) for pool in pools}) == 1
    assert graphs.seconds > 0


def test_inputs_of_mixed_types_are_copied(pools: list[Any]) -> None:
    graphs, seen = CudaGraphs(), []
    inputs = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16), torch.empty(0), torch.ones(2, dtype=torch.bool)]

    def call(*own: torch.Tensor) -> torch.Tensor:
        seen.extend(own)
        return own[0]

    graphs.run(call, inputs)
    given = [5 * torch.ones(3), torch.zeros(2, dtype=torch.bfloat16), torch.empty(0), torch.zeros(2, dtype=torch.bool)]
    graphs.run(call, given)
    for mine, theirs in zip(seen[-4:], given, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_resident_tensors_are_not_copied(pools: list[Any]) -> None:
    graphs, cache = CudaGraphs(), torch.zeros(2)

    def call(x: torch.Tensor) -> torch.Tensor:
        cache.add_(x)
        return x

    graphs.run(call, [torch.ones(2)], [cache])
    assert cache[0] > 0  # the capture's calls wrote where it is


def test_cleared_graphs_are_captured_again(pools: list[Any]) -> None:
    graphs = CudaGraphs()
    for _ in range(2):
        graphs.run(torch.neg, [torch.ones(1)])
        graphs.clear()
    assert graphs.captured == 2
    assert len({id(pool) for pool in pools}) == 2
