"""PyTorch's own ahead-of-time compiler (AOTInductor): for machines without another engine, and as a yardstick.

The package holds machine code and the weights. It runs where it was compiled: this PyTorch, this kind of processor
or GPU. It takes a C++ compiler to build one, and none to run it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.bundle import Backend, TargetEntry
from ldp_runtime.engines.torch_target import local_target
from ldp_runtime.errors import EngineBuildError
from ldp_runtime.optimization_profiles import OptimizationProfile
from torch import nn
from torch.onnx.ops._impl import ONNX_ATEN_DECOMP_TABLE

from ldp_export.builders.base import ExportedGraph
from ldp_export.graphs.signature import GraphSignature

ENGINE_FILE = "engine.pt2"
#: Threads are the caller's choice at run time, not a constant of the machine code.
_CONFIG = {"cpp.dynamic_threads": True}


@dataclass(frozen=True)
class TorchBuilder:
    """Compiles graph modules for one device of this machine; any number of rows, tokens and past runs."""

    device: str = "cpu"
    backend: Backend = "torch"
    engine_file: str = ENGINE_FILE
    max_rows: int = 64

    @property
    def verified_on(self) -> str | None:
        return self.device

    def target(self) -> TargetEntry | None:
        return local_target(torch.device(self.device))

    def profiles(self, signature: GraphSignature) -> tuple[OptimizationProfile, ...]:
        return ()

    def key(self, signature: GraphSignature) -> Mapping[str, Any]:
        return {"target": local_target(torch.device(self.device)).model_dump(mode="json"), "config": _CONFIG}

    def build(self, graph: ExportedGraph, folder: Path, say: Callable[[str], None]) -> None:
        """Writes `engine.pt2`. Raises EngineBuildError when the graph cannot be traced or compiled."""
        from torch._inductor import aoti_compile_and_package

        name = graph.signature.name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                say("tracing")
                program = trace_program(graph.module().eval().to(self.device), graph.signature, self.device)
                say("compiling")
                aoti_compile_and_package(program, package_path=str(folder / ENGINE_FILE), inductor_configs=_CONFIG)
        except Exception as error:  # torch.export and the compilers raise many types
            raise EngineBuildError(
                f"PyTorch could not compile the graph {name!r}: {error}", hint="build with --backend onnxruntime"
            ) from error


def trace_program(module: nn.Module, signature: GraphSignature, device: str = "cpu") -> torch.export.ExportedProgram:
    """The module's program with every axis of its signature dynamic."""
    with torch.no_grad():
        program = torch.export.export(module, signature.examples(device), dynamic_shapes=signature.dynamic_shapes())
    # Graphs may hold ONNX operators as such; compiled code must not depend on their Python implementations.
    return program.run_decompositions(ONNX_ATEN_DECOMP_TABLE)  # pyright: ignore[reportArgumentType]


def check_compiler() -> None:
    """Raises EngineBuildError where PyTorch finds no C++ compiler, which every package takes."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # of PyTorch's own types
        raise EngineBuildError(
            "PyTorch finds no C++ compiler, which compiling graphs takes",
            hint="install one (g++ or clang++, or name one in CXX), or build with --backend onnxruntime",
        ) from error
