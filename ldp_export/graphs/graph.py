"""Base class of exported graphs: a module with a calling convention and an element type for each weight."""

from __future__ import annotations

import re
from typing import ClassVar

import torch
from ldp_runtime.bundle.manifest import Precision
from torch import nn

from ldp_export.graphs.signature import GraphSignature

OPSET = 23


class Graph(nn.Module):
    """A module that takes and returns tensors in the order of its signature.

    Only the weights determine the precision: layers compute in the type of their weights (`models/layers.py`).

    Attributes:
        ISLANDS: pattern that matches the names of weights that stay float32 in every precision.
        signature: names, shapes and element types of inputs and outputs.
        precision: element type of all other weights.
    """

    ISLANDS: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")

    def __init__(self, signature: GraphSignature, precision: Precision = "float32") -> None:
        super().__init__()
        self.signature = signature
        self.precision: Precision = precision

    @property
    def opset(self) -> int:
        """ONNX opset version of the exported graph."""
        return OPSET

    def stays_float32(self, name: str) -> bool:
        return self.ISLANDS.match(name) is not None

    def uses(self, name: str) -> bool:
        """True if the exported graph includes this weight; a graph may export only a part of its module."""
        return True

    def weight_bytes(self) -> int:
        """Bytes of the weights in their file, without its header."""
        types, state = self.weight_types(), self.state_dict()
        return sum(state[name].numel() * dtype.itemsize for name, dtype in types.items() if self.uses(name))

    def weight_types(self) -> dict[str, torch.dtype]:
        """Element type, by name, in which each floating-point weight is stored and used."""
        reduced: torch.dtype = getattr(torch, self.precision)
        return {
            name: torch.float32 if self.stays_float32(name) else reduced
            for name, tensor in self.state_dict().items()
            if tensor.is_floating_point()
        }


def convert_weights(graph: Graph) -> None:
    """Converts every weight of a graph, in place, to the element type in which it is stored."""
    types = graph.weight_types()
    for name, parameter in graph.named_parameters():
        parameter.data = parameter.data.to(types[name])
