"""What a backend is to the build: facts for the manifest and, where it compiles, how to make an engine of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ldp_runtime.bundle.manifest import Backend, QuantizedScales, TargetEntry
from ldp_runtime.bundle.optimization_profiles import OptimizationProfile
from torch import nn

from ldp_export.graphs.signature import GraphSignature


@dataclass(frozen=True)
class ExportedGraph:
    """A graph as the export stage left it.

    Attributes:
        signature: names, shapes and element types of its inputs and outputs.
        folder: holds `model.onnx` and the weights it refers to; read only.
        module: gives the graph's PyTorch module with its weights, for compilers that do not read ONNX.
        reference: folder of the recorded reference runs, for compilers that measure ranges.
    """

    signature: GraphSignature
    folder: Path
    module: Callable[[], nn.Module]
    reference: Path


class Builder(Protocol):
    """One backend. A builder that is no `Compiler` ships the exported graphs as they are."""

    @property
    def backend(self) -> Backend:
        """Its name in the manifest."""
        ...

    def engine_file(self, signature: GraphSignature) -> str:
        """The file that the runtime opens, in the graph's folder."""
        ...

    @property
    def verified_on(self) -> str | None:
        """Device of this machine that runs what it makes, for the verification that ends a build; None: none does."""
        ...

    @property
    def max_rows(self) -> int:
        """Most rows (branches of images) of one call."""
        ...

    def target(self) -> TargetEntry | None:
        """What compiled engines depend on beside the graph; None where the graph is the engine."""
        ...

    def profiles(self, signature: GraphSignature) -> tuple[OptimizationProfile, ...]:
        """Sizes that the graph's engine is built for; empty where it takes any."""
        ...


@runtime_checkable
class Compiler(Builder, Protocol):
    """A builder that makes engine files; each graph's engine is a stage of its own."""

    def key(self, signature: GraphSignature) -> Mapping[str, Any]:
        """Everything but the graph itself that the engine depends on, as plain JSON: part of the stage's cache key."""
        ...

    def build(self, graph: ExportedGraph, folder: Path, say: Callable[[str], None]) -> None:
        """Writes the engine into `folder`; `say` is told in words how far it is.

        Raises:
            EngineBuildError: the library refuses the graph. Whatever is in `folder` then is thrown away.
            KeyboardInterrupt: the user stopped the build; the library's threads have ended.
        """
        ...


@runtime_checkable
class Quantizer(Compiler, Protocol):
    """A compiler that can make engines that compute in 8 bits, where it is asked for them."""

    @property
    def quantized(self) -> QuantizedScales | None:
        """Scales for which a second engine is made of each `blocks` graph; None: of none."""
        ...

    def quantizes(self, name: str) -> bool:
        """Whether the engine of this name computes in 8 bits."""
        ...


def is_quantized(builder: Builder, name: str) -> bool:
    return isinstance(builder, Quantizer) and builder.quantizes(name)


def quantized_scales(builder: Builder) -> QuantizedScales | None:
    return builder.quantized if isinstance(builder, Quantizer) else None


STAGE_FILE = "stage.json"
