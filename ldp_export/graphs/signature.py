"""Names, shapes and element types of a graph's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ldp_runtime.bundle.manifest import TensorEntry

if TYPE_CHECKING:
    import torch


class Axis(StrEnum):
    """Dimensions whose size differs from call to call.

    Height and width count latents; those of an image, which only outputs have, count pixels.
    """

    ROWS = "rows"
    TOKENS = "tokens"
    PAST = "past"
    TEXT = "text"
    IMAGES = "images"
    HEIGHT = "height"
    WIDTH = "width"
    IMAGE_HEIGHT = "image_height"
    IMAGE_WIDTH = "image_width"


Dim = Axis | int

#: Inputs of a static KV cache that all layers share, [rows] each: the first position to write, the length to attend to.
WRITTEN, LENGTHS = "written", "lengths"
#: File of an exported graph in its folder.
MODEL_FILE = "model.onnx"
#: Name of the set of quantized scales that a build makes, and prefix of the names of its engines; the name of the
#: `blocks` graph from which they are built follows.
LAST_SCALES = "last"
QUANTIZED = f"{LAST_SCALES}_"

#: Sizes used while tracing: different within a graph and never 0 or 1, lest torch.export takes a size for a constant.
_EXAMPLE = {Axis.ROWS: 2, Axis.TOKENS: 6, Axis.PAST: 10, Axis.TEXT: 7, Axis.IMAGES: 2, Axis.HEIGHT: 5, Axis.WIDTH: 9}
_LARGEST = 1 << 20


@dataclass(frozen=True)
class TensorSpec:
    name: str
    shape: tuple[Dim, ...]
    dtype: str = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype)

    def at(self, sizes: dict[Axis, int]) -> tuple[int, ...]:
        """The shape with every axis replaced by its size."""
        return tuple(sizes[dim] if isinstance(dim, Axis) else dim for dim in self.shape)


@dataclass(frozen=True)
class GraphSignature:
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def quantized(self) -> GraphSignature:
        """Signature of the 8-bit engine that is built from this graph."""
        return replace(self, name=QUANTIZED + self.name)

    @property
    def input_names(self) -> list[str]:
        return [spec.name for spec in self.inputs]

    @property
    def output_names(self) -> list[str]:
        return [spec.name for spec in self.outputs]

    @property
    def axes(self) -> frozenset[Axis]:
        return frozenset(dim for spec in self.inputs for dim in spec.shape if isinstance(dim, Axis))

    def examples(self, device: str = "cpu") -> tuple[torch.Tensor, ...]:
        """Example inputs for tracing a graph."""
        import torch

        return tuple(torch.zeros(spec.at(_EXAMPLE), dtype=spec.torch_dtype, device=device) for spec in self.inputs)

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Dynamic shapes for torch.export: every axis may have any size, and the past may be empty."""
        import torch

        dims = {
            axis: torch.export.Dim(str(axis), min=0 if axis is Axis.PAST else 1, max=_LARGEST) for axis in self.axes
        }
        shapes = tuple({i: dims[d] for i, d in enumerate(spec.shape) if isinstance(d, Axis)} for spec in self.inputs)
        # Graphs take several inputs as *tensors, which torch.export counts as one argument.
        return (shapes,) if len(shapes) > 1 else shapes


def tensor_entries(specs: tuple[TensorSpec, ...]) -> tuple[TensorEntry, ...]:
    """Entries of the manifest that describe inputs or outputs."""
    return tuple(
        TensorEntry.model_validate({"name": s.name, "shape": tuple(map(_plain, s.shape)), "dtype": s.dtype})
        for s in specs
    )


def _plain(side: Dim) -> int | str:
    return str(side) if isinstance(side, Axis) else side
