"""CUDA graphs of small PyTorch calls: hundreds of kernels that take less time than their launches.

A graph replays one call with the same shapes at the same addresses. Inputs are copied to addresses of the graph's own.
Tensors that stay at one address from call to call, such as a cache, are not copied; their addresses help to identify
the graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ldp_runtime.engines.graph_cache import GraphCache, GraphCounters

#: Number of graphs that are kept; see `GraphCache` for what is dropped.
_KEPT = 64


#: Number of calls after which one that has not come back is forgotten: a capture takes a fraction of a second.
_SEEN = 64


#: Calls outside a graph before a capture, as CUDA's libraries require.
_WARM_UP = 2


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    output: Any


class _Streams(NamedTuple):
    """Streams that are kept and used for these graphs alone.

    CUDA's libraries hold memory for every stream that they have worked on. For a stream used for captures, this memory
    goes with the first of the captured graphs.
    """

    warm_up: torch.cuda.Stream
    capture: torch.cuda.Stream


class CudaGraphs:
    """Captures a call per combination of input shapes and addresses when it comes back, and replays it from then on.

    Args:
        counters: counters to update; engines of one model share them.

    Attributes:
        seconds: time that capturing has taken so far.
    """

    def __init__(self, counters: GraphCounters | None = None) -> None:
        self._graphs: GraphCache[_Captured] = GraphCache(_KEPT, _SEEN, counters)
        self._pool: Any = None
        self._streams: _Streams | None = None
        self.seconds = 0.0

    @property
    def counters(self) -> GraphCounters:
        return self._graphs.counters

    def run(
        self,
        call: Callable[..., Any],
        inputs: Sequence[torch.Tensor],
        places: Hashable = (),
    ) -> Any:
        """The call's output, in memory that the next call overwrites: all graphs work in one pool of memory.

        Args:
            call: function of the inputs, or of copies of them. For a capture it runs several times, and the first run
                gives the answer. It may therefore overwrite what its next run would read.
            places: addresses and sizes of everything else that it reads and writes.
        """
        key = (tuple(tensor.shape for tensor in inputs), places)
        captured = self._graphs.find(key)
        if captured is None:
            if not self._graphs.is_worth_capturing(key):
                return call(*inputs)
            captured, answer = self._capture(call, inputs)
            dropped = self._graphs.keep(key, captured, 1)
            if dropped:
                torch.cuda.synchronize(inputs[0].device)  # a dropped graph may still be replaying
            return answer
        _copy_all(captured.inputs, inputs)
        captured.graph.replay()
        return captured.output

    def clear(self) -> None:
        self._graphs.clear()
        self._pool = self._streams = None

    def _capture(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> tuple[_Captured, Any]:
        """Captures the graph for the next calls; also returns the answer of this call."""
        started = time.perf_counter()
        own = [tensor.clone() for tensor in inputs]
        device = inputs[0].device
        with torch.cuda.device(device):  # PyTorch captures on the calling thread's GPU, whichever the tensors are on
            if self._streams is None:
                self._streams = _Streams(torch.cuda.Stream(device), torch.cuda.Stream(device))
            warm_up, capture = self._streams
            warm_up.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(warm_up):
                answer = call(*own)
                for _ in range(_WARM_UP - 1):
                    call(*own)
            torch.cuda.current_stream(device).wait_stream(warm_up)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile, but not allocate pinned memory: see `NoiseAhead`.
            with torch.cuda.graph(graph, pool=self._pool, stream=capture, capture_error_mode="thread_local"):
                output = call(*own)
        self.seconds += time.perf_counter() - started
        return _Captured(graph, own, output), answer


def _copy_all(places: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> None:
    """Copies with one launch per element type: tensors of mixed types would be copied one by one."""
    for dtype in {place.dtype for place in places}:
        pairs = [(p, g) for p, g in zip(places, given, strict=True) if p.dtype == dtype and p.numel()]
        if pairs:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                [place for place, _ in pairs], [tensor for _, tensor in pairs]
            )
