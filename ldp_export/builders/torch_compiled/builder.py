"""Builder for PyTorch's own compiler: for machines without another engine, and as a yardstick.

On a CPU every graph is compiled ahead of time (AOTInductor) to a package of machine code and weights. Building it takes
a C++ compiler; running it takes none. On a GPU Infinity's blocks are built as *fused* ones instead. Their file holds
the weights alone, in the layout of the runtime's own pieces (`ldp_runtime/engines/torch_compiled/fused`). PyTorch
compiles the pieces where they are loaded; only they can be replayed as CUDA graphs. Either kind of engine runs where it
was built: with this PyTorch, on this kind of processor or GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from ldp_runtime.bundle.manifest import FUSED_WEIGHTS, Backend, QuantizedPrecision, QuantizedScales, TargetEntry
from ldp_runtime.bundle.optimization_profiles import OptimizationProfile
from ldp_runtime.engines.torch_compiled.target import local_target
from ldp_runtime.errors import EngineBuildError
from torch import nn
from torch.onnx.ops._impl import ONNX_ATEN_DECOMP_TABLE

from ldp_export.builders.base import ExportedGraph
from ldp_export.builders.onnxruntime import Int8Builder
from ldp_export.builders.torch_compiled.fused import is_fusible, write_fused
from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.graphs.signature import QUANTIZED, GraphSignature

ENGINE_FILE = "engine.pt2"


#: The number of threads is the caller's choice at run time, not a constant of the machine code. Freezing lays weights
#: out for a CPU's matrix products once, at compilation, not in every call: that saves 3 to 6 % of the blocks' time on a
#: small pruned image.
_CPU_CONFIG = {"cpp.dynamic_threads": True, "freezing": True}


#: Version of the layout of the fused blocks' file: part of the stage's cache key, so that a new layout is built anew.
_FUSED_LAYOUT = 1


@dataclass(frozen=True)
class TorchBuilder:
    """Makes engines for one device of this machine; they run any number of rows and tokens, and any past.

    Attributes:
        fused: compiles Infinity's blocks where they are loaded. On a CPU, packages were measured to be faster.
        int8: builder of the decoder, which ONNX Runtime then runs; None: the decoder is compiled like other graphs.
        quantized: last scales at which fused blocks compute in 8 bits; None for none.
    """

    device: str = "cpu"
    fused: bool = False
    int8: Int8Builder | None = None
    quantized: QuantizedScales | None = None
    backend: Backend = "torch"
    max_rows: int = 64

    @property
    def verified_on(self) -> str | None:
        return self.device

    def quantizes(self, name: str) -> bool:
        return name.startswith(QUANTIZED) or (self.int8 is not None and self.int8.quantizes(name))

    def engine_file(self, signature: GraphSignature) -> str:
        if self.int8 is not None and self.int8.quantizes(signature.name):
            return self.int8.engine_file(signature)
        return FUSED_WEIGHTS if self._fuses(signature) else ENGINE_FILE

    def target(self) -> TargetEntry | None:
        return local_target(torch.device(self.device))

    def profiles(self, signature: GraphSignature) -> tuple[OptimizationProfile, ...]:
        return ()

    def key(self, signature: GraphSignature) -> Mapping[str, Any]:
        if self.int8 is not None and self.int8.quantizes(signature.name):
            return self.int8.key(signature)
        if self._fuses(signature):
            return {"fused": _FUSED_LAYOUT, "bits": self._late_precision(signature)}
        return {"target": local_target(torch.device(self.device)).model_dump(mode="json"), "config": self._config}

    def build(self, graph: ExportedGraph, folder: Path, say: Callable[[str], None]) -> None:
        """Writes the engine's file. Raises EngineBuildError if the graph cannot be traced, compiled or fused."""
        if self.int8 is not None and self.int8.quantizes(graph.signature.name):
            self.int8.build(graph, folder, say)
            return
        if self._fuses(graph.signature):
            say("writing weights")
            write_fused(cast(InfinityBlocksGraph, graph.module()), folder, self._late_precision(graph.signature))
            return
        from torch._inductor import aoti_compile_and_package

        name = graph.signature.name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                say("tracing")
                program = trace_program(graph.module().eval().to(self.device), graph.signature, self.device)
                say("compiling")
                aoti_compile_and_package(program, package_path=str(folder / ENGINE_FILE), inductor_configs=self._config)
        except Exception as error:  # torch.export and the compilers raise many types
            raise EngineBuildError(
                f"PyTorch could not compile the graph {name!r}: {error}", hint="build with --backend onnxruntime"
            ) from error

    @property
    def _config(self) -> dict[str, Any]:
        return _CPU_CONFIG if self.device == "cpu" else {}

    def _late_precision(self, signature: GraphSignature) -> QuantizedPrecision | None:
        return self.quantized.precision if self.quantized is not None and signature.name.startswith(QUANTIZED) else None

    def _fuses(self, signature: GraphSignature) -> bool:
        return self.fused and is_fusible(signature)


def trace_program(module: nn.Module, signature: GraphSignature, device: str = "cpu") -> torch.export.ExportedProgram:
    """Traced program of the module, with every axis of its signature dynamic."""
    with torch.no_grad():
        program = torch.export.export(module, signature.examples(device), dynamic_shapes=signature.dynamic_shapes())
    # Graphs may contain ONNX operators; compiled code must not depend on their Python implementations.
    return program.run_decompositions(ONNX_ATEN_DECOMP_TABLE)  # pyright: ignore[reportArgumentType]
