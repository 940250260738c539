"""Names, shapes and element types of a graph's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch


class Axis(StrEnum):
    """Dimensions whose size differs from call to call."""

    ROWS = "rows"
    TOKENS = "tokens"
    PAST = "past"
    TEXT = "text"
    IMAGES = "images"
    HEIGHT = "height"
    WIDTH = "width"


Dim = Axis | int


@dataclass(frozen=True)
class TensorSpec:
    name: str
    shape: tuple[Dim, ...]
    dtype: str = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def at(self, sizes: dict[Axis, int]) -> tuple[int, ...]:
        """The shape with every axis replaced by its size."""
        return tuple(sizes[dim] if isinstance(dim, Axis) else dim for dim in self.shape)


@dataclass(frozen=True)
class GraphSignature:
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def input_names(self) -> list[str]:
        return [spec.name for spec in self.inputs]

    @property
    def output_names(self) -> list[str]:
        return [spec.name for spec in self.outputs]

    @property
    def axes(self) -> frozenset[Axis]:
        return frozenset(dim for spec in self.inputs for dim in spec.shape if isinstance(dim, Axis))
