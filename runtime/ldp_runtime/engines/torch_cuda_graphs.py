"""CUDA graphs of small calls: a scale of a few tokens is hundreds of kernels that take less time than their launches.

A graph replays one call with the same shapes at the same addresses, so inputs are copied to addresses of its own: the
past of an early scale is small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
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


class CudaGraphs:
    """Captures a call per combination of input shapes, and replays it from then on."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[torch.Size, ...], _Captured] = OrderedDict()

    def run(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The call's outputs, in memory that the next call of the same shapes overwrites."""
        key = tuple(tensor.shape for tensor in inputs)
        captured = self._known.get(key)
        if captured is None:
            captured = self._known[key] = _capture(call, inputs)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        filled = [(mine, given) for mine, given in zip(captured.inputs, inputs, strict=True) if mine.numel()]
        torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            [mine for mine, _ in filled], [given for _, given in filled]
        )
        captured.graph.replay()
        return captured.outputs

    def clear(self) -> None:
        self._known.clear()


def _capture(call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> _Captured:
    own = [tensor.clone() for tensor in inputs]
    side = torch.cuda.Stream(inputs[0].device)
    side.wait_stream(torch.cuda.current_stream(inputs[0].device))
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            call(*own)
    torch.cuda.current_stream(inputs[0].device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call(*own)
    return _Captured(graph, own, (outputs,) if isinstance(outputs, torch.Tensor) else outputs)
