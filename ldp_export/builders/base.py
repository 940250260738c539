"""Interface of a backend to the build: facts for the manifest and, if it compiles, engines made from graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ldp_runtime.bundle.manifest import Backend, QuantizedScales, TargetEntry
from ldp_runtime.bundle.optimization_profiles import OptimizationProfile

from ldp_export.graphs.signature import GraphSignature

if TYPE_CHECKING:
    from torch import nn

    from ldp_export.quantization.formats import Format


@dataclass(frozen=True)
class ExportedGraph:
    """Graph as the export stage wrote it.

    Attributes:
        signature: names, shapes and element types of its inputs and outputs.
        folder: folder of `model.onnx` and of the weights that it refers to; read only.
        module: returns the graph's PyTorch module with its weights, for compilers that do not read ONNX.
        reference: folder of the recorded reference runs, for compilers that measure ranges of activations.
        ranges: folder of the ranges that were measured beforehand; None unless the builder's are static.
        first: index of its first block in the model.
    """

    signature: GraphSignature
    folder: Path
    module: Callable[[], nn.Module]
    reference: Path
    ranges: Path | None = None
    first: int = 0


class Builder(Protocol):
    """One backend. A builder that is not also a `Compiler` ships the exported graphs as they are."""

    @property
    def backend(self) -> Backend:
        """Name of the backend in the manifest."""
        ...

    def engine_file(self, signature: GraphSignature) -> str:
        """Name of the file in the graph's folder that the runtime opens."""
        ...

    @property
    def verified_on(self) -> str | None:
        """Device of this machine that verifies the engines at the end of a build; None if none here can run them."""
        ...

    @property
    def max_rows(self) -> int:
        """Largest number of rows (guidance branches of images) in one call."""
        ...

    def target(self) -> TargetEntry | None:
        """Library and hardware that compiled engines depend on besides the graph; None if the graph is the engine."""
        ...

    def profiles(self, signature: GraphSignature) -> tuple[OptimizationProfile, ...]:
        """Ranges of sizes that the graph's engine is built for; empty if it takes any size."""
        ...


@runtime_checkable
class Compiler(Builder, Protocol):
    """Builder that makes engine files; each graph's engine is a stage of its own."""

    def key(self, signature: GraphSignature) -> Mapping[str, Any]:
        """Dependencies of the engine besides the graph itself, as plain JSON: part of the stage's cache key."""
        ...

    def build(self, graph: ExportedGraph, folder: Path, say: Callable[[str], None]) -> None:
        """Writes the engine into `folder`, and reports progress in words to `say`.

        Raises:
            EngineBuildError: the library refuses the graph. Files left in `folder` are thrown away.
            KeyboardInterrupt: the user stopped the build; the library's threads have ended.
        """
        ...


@runtime_checkable
class Quantizer(Compiler, Protocol):
    """Compiler that can make engines that compute in 8 bits, if it is asked for them."""

    @property
    def quantized(self) -> QuantizedScales | None:
        """Scales for which a second, quantized engine is made from each `blocks` graph; None if there are none."""
        ...

    def quantizes(self, name: str) -> bool:
        """True if the engine of this name computes in 8 bits."""
        ...


@runtime_checkable
class StaticQuantizer(Quantizer, Protocol):
    """Quantizer whose engines can hold 8-bit weights, and the ranges of the quantized inputs."""

    @property
    def weights_in_8_bits(self) -> bool:
        """True if the weights of all blocks are stored in 8 bits, while products are in the graphs' precision."""
        ...

    def form(self) -> Format:
        """Format of the blocks' numbers in 8 bits, if their ranges are static or only weights are rounded."""
        ...


def is_quantized(builder: Builder, name: str) -> bool:
    return isinstance(builder, Quantizer) and builder.quantizes(name)


def static_form(builder: Builder) -> Format | None:
    """Format of the products whose inputs have static ranges; None if a builder makes none."""
    return builder.form() if isinstance(builder, StaticQuantizer) and has_static_ranges(builder) else None


def has_static_ranges(builder: Builder) -> bool:
    """True if quantized engines hold ranges that the build measures beforehand."""
    quantized = quantized_scales(builder)
    return quantized is not None and quantized.ranges == "static"


def weight_form(builder: Builder) -> Format | None:
    """Format of the blocks' weights if these alone are in 8 bits; None if they are as the graphs' precision says."""
    return builder.form() if isinstance(builder, StaticQuantizer) and builder.weights_in_8_bits else None


def has_8_bit_weights(builder: Builder, name: str) -> bool:
    """True if the engine of this name stores 8-bit weights for products in the graphs' precision."""
    return name.startswith("blocks") and isinstance(builder, StaticQuantizer) and builder.weights_in_8_bits


def quantized_scales(builder: Builder) -> QuantizedScales | None:
    return builder.quantized if isinstance(builder, Quantizer) else None


def insert_8_bits(graph: ExportedGraph, folder: Path, form: Format, say: Callable[[str], None]) -> int:
    """Writes a `blocks` graph with 8-bit products into `folder`; see `insert_products`."""
    from ldp_export.quantization.insert import insert_products
    from ldp_export.quantization.ranges import Ranges

    ranges = None if graph.ranges is None else Ranges.load(graph.ranges)
    return insert_products(graph.folder, folder, ranges, graph.first, form, say)


STAGE_FILE = "stage.json"
