"""The interface that every backend implements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch


class Engine(Protocol):
    """Engine of a compiled (or eager) graph.

    The caller owns all memory: inputs and outputs are contiguous tensors on `device`, outputs preallocated. An engine
    computes only the outputs that it is given a tensor for.
    """

    name: str
    device: torch.device

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        """Computes `outputs` in place from `inputs`; both map the graph's tensor names to tensors."""
        ...

    def close(self) -> None:
        """Releases the engine's memory; it cannot be run afterwards."""
        ...
