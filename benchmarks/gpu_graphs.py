"""CUDA graphs of small calls: a scale of a few tokens is hundreds of kernels that take less time than their launches.

A graph replays one call with the same shapes at the same addresses. Inputs are copied to addresses of the graph's own;
what stays where it is from image to image, such as a cache, is *resident*: it is not copied, and its address belongs to
what tells graphs apart.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: Shapes that keep their graph; the least recently used goes first.
_KEPT = 32
#: Calls outside a graph before one is captured, as CUDA's libraries want it.
_WARM_UP = 2


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    outputs: Sequence[torch.Tensor]
    resident: Sequence[torch.Tensor]  # held, so that their addresses go to nobody else


class CudaGraphs:
    """Captures a call per combination of input shapes and resident addresses, and replays it from then on.

    Attributes:
        captured, seconds: how many graphs were captured so far, and how long that took.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._pool: Any = None
        self.captured, self.seconds = 0, 0.0

    def run(
        self, call: Callable[..., Any], inputs: Sequence[torch.Tensor], resident: Sequence[torch.Tensor] = ()
    ) -> Sequence[torch.Tensor]:
        """The call's outputs, in memory that the next call overwrites: all graphs work in one pool of memory.

        Args:
            call: takes copies of the inputs; reads and writes `resident` where they are.
        """
        places = tuple((tensor.data_ptr(), tensor.shape) for tensor in resident)
        key = (tuple(tensor.shape for tensor in inputs), places)
        captured = self._known.get(key)
        if captured is None:
            captured = self._known[key] = self._capture(call, inputs, resident)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        _copy_all(captured.inputs, inputs)
        captured.graph.replay()
        return captured.outputs

    def clear(self) -> None:
        self._known.clear()
        self._pool = None

    def _capture(
        self, call: Callable[..., Any], inputs: Sequence[torch.Tensor], resident: Sequence[torch.Tensor]
    ) -> _Captured:
        started = time.perf_counter()
        own = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream(inputs[0].device)
        side.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                call(*own)
        torch.cuda.current_stream(inputs[0].device).wait_stream(side)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the GPU meanwhile is their own affair: it does not break the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = call(*own)
        self.captured += 1
        self.seconds += time.perf_counter() - started
        return _Captured(graph, own, (outputs,) if isinstance(outputs, torch.Tensor) else outputs, resident)


def _copy_all(places: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> None:
    """One launch an element type: tensors of mixed types would be copied one by one."""
    for dtype in {place.dtype for place in places}:
        pairs = [(p, g) for p, g in zip(places, given, strict=True) if p.dtype == dtype and p.numel()]
        if pairs:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                [place for place, _ in pairs], [tensor for _, tensor in pairs]
            )
