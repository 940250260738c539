"""PyTorch's own compiler: for machines without another engine, and as a yardstick.

On a CPU every graph is compiled ahead of time (AOTInductor): a package of machine code and weights, which takes a C++
compiler to build and none to run. On a GPU Infinity's blocks are built as *fused* ones instead: their weights alone, in
the layout of the runtime's own pieces (`ldp_runtime/engines/fused`), which PyTorch compiles where they are loaded; only
those can be replayed as CUDA graphs. Either runs where it was built: this PyTorch, this kind of processor or GPU.
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


#: Threads are the caller's choice at run time, not a constant of the machine code; weights are laid out for a CPU's
#: matrix products when they are compiled and not in every call: 3 to 6 % of the blocks of a pruned small picture.
_CPU_CONFIG = {"cpp.dynamic_threads": True, "freezing": True}


#: Layout of the fused blocks' file: part of what decides whether one that is there is built anew.
_FUSED_LAYOUT = 1


@dataclass(frozen=True)
class TorchBuilder:
    """Makes engines for one device of this machine; any number of rows, tokens and past runs.

    Attributes:
        fused: Infinity's blocks are compiled where they are loaded. On a CPU packages were found to be faster.
        int8: makes the decoder, which ONNX Runtime then runs; None: it is compiled like the others.
        late: from where on fused blocks compute in 8 bits; None: nowhere.
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
        """Writes the engine's file. Raises EngineBuildError when the graph cannot be traced, compiled or fused."""
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
    """The module's program with every axis of its signature dynamic."""
    with torch.no_grad():
        program = torch.export.export(module, signature.examples(device), dynamic_shapes=signature.dynamic_shapes())
    # Graphs may hold ONNX operators as such; compiled code must not depend on their Python implementations.
    return program.run_decompositions(ONNX_ATEN_DECOMP_TABLE)  # pyright: ignore[reportArgumentType]
