"""ONNX Runtime: the exported files are the engine, and any size runs."""

from __future__ import annotations

from dataclasses import dataclass

from ldp_runtime.bundle import Backend, TargetEntry
from ldp_runtime.optimization_profiles import OptimizationProfile

from ldp_export.graphs.onnx_export import MODEL_FILE
from ldp_export.graphs.signature import GraphSignature


@dataclass(frozen=True)
class OnnxRuntimeBuilder:
    """Ships the graphs as they are. Rows are dynamic: `max_rows` bounds the capacity check and the manifest."""

    backend: Backend = "onnxruntime"
    verified_on: str | None = "cpu"
    max_rows: int = 64

    def engine_file(self, signature: GraphSignature) -> str:
        return MODEL_FILE

    def target(self) -> TargetEntry | None:
        return None

    def profiles(self, signature: GraphSignature) -> tuple[OptimizationProfile, ...]:
        return ()
