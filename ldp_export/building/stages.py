"""Stages of a build: export of each graph, its engine if the backend compiles, constants, reference runs."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldp_runtime.bundle.files import CONSTANTS, REFERENCE, TOKENIZER
from ldp_runtime.engines.torch_compiled.threads import torch_threads
from safetensors.torch import save_file

from ldp_export import __version__
from ldp_export.builders.base import Compiler, ExportedGraph, is_quantized, quantized_scales
from ldp_export.building.cache import Stage, is_complete
from ldp_export.building.plan import BuildPlan
from ldp_export.families.base import graph_kind, graph_parts, loaded_graph
from ldp_export.graphs.graph import OPSET
from ldp_export.graphs.kv_cache import STATIC_OPSET
from ldp_export.graphs.onnx import FORMAT, export_graph
from ldp_export.versions import TOOLCHAIN

#: Suffix of the stage that builds an engine, after the name of the engine.
ENGINE = ".engine"


#: Width from which the reference model's products are worth several threads. The many small products of narrower models
#: gain little from a second thread, and wait for it at each one where the cores are busy.
_WIDE = 512


class BuildStages:
    """Stages of a plan; the family opens models when the first stage that is not cached asks for them."""

    def __init__(self, plan: BuildPlan) -> None:
        self.plan, self.family = plan, plan.family
        self.sources = plan.sources.described(plan.spec)
        self.hashes = {part: source.sha256 for part, source in self.sources.items()}
        self.cache = plan.options.output / "stages"

    def stages(self) -> list[Stage]:
        """Stages in the order in which they run."""
        stages = [stage for name in self.plan.graph_names for stage in self._graph_stages(name)]
        stages.append(Stage("constants", self._inputs(), self._write_constants))
        # Ranges for a quantized decoder are measured on the recorded runs, so these come first.
        first = is_quantized(self.plan.options.builder, "decoder")
        stages.insert(0 if first else len(stages), self._reference_stage())
        return stages

    def _inputs(self) -> dict[str, Any]:
        """Inputs of stages that depend on the whole model: its sources, the toolchain and the model's specification."""
        return {"sources": self.hashes, "toolchain": toolchain(), "spec": asdict(self.plan.spec)}

    def _reference_stage(self) -> Stage:
        recorded = {
            "size": self.family.entry.size,
            "precision": self.plan.options.precision,
            "coverage": self.family.coverage,
        }
        if quantized := quantized_scales(self.plan.options.builder):
            recorded["quantized"] = quantized.precision
        return Stage(REFERENCE, self._inputs() | recorded, self._record)

    def _graph_stages(self, name: str) -> list[Stage]:
        """Stages of a graph: its export and, if the backend compiles, its engines."""
        export, builder = self._export_stage(name), self.plan.options.builder
        if not isinstance(builder, Compiler):
            return [export]
        discard, engines = self.plan.options.discard_graphs, self.plan.engine_names(name)
        stages = [
            self._engine_stage(engine, name, export, builder, discard and engine == engines[-1]) for engine in engines
        ]
        # A graph that is to be discarded is not exported again while all its engines are there.
        done = discard and all(is_complete(stage.place(self.cache)) for stage in stages)
        return stages if done else [export, *stages]

    def _engine_stage(self, engine: str, graph: str, export: Stage, builder: Compiler, discard: bool) -> Stage:
        """Stage that builds an engine from an exported graph; with `discard`, the graph is deleted afterwards."""
        precision, signature = self.plan.precision(graph), self.plan.signature(graph)
        signature, place = signature.quantized() if engine != graph else signature, export.place(self.cache)

        def compile_engine(folder: Path, say: Callable[[str], None]) -> None:
            reference = self._reference_stage().place(self.cache)
            exported = ExportedGraph(signature, place, lambda: loaded_graph(self.family, graph, precision), reference)
            builder.build(exported, folder, say)

        inputs = {"graph": export.key, **builder.key(signature)}
        if engine == "decoder" and is_quantized(builder, engine):
            inputs["reference"] = self._reference_stage().key  # the ranges of its activations are measured there
        return Stage(engine + ENGINE, inputs, compile_engine, spent=place if discard else None)

    def _export_stage(self, name: str) -> Stage:
        parts, precision = graph_parts(name), self.plan.precision(name)
        inputs = {
            "sources": {part: self.hashes[part] for part in parts if part in self.hashes},
            "architecture": asdict(self.plan.spec.vae if parts == ("vae",) else self.plan.spec.transformer),
            "opset": OPSET,
            "format": FORMAT,
            "precision": precision,
            "toolchain": toolchain(),
        }

        if graph_kind(name) == "blocks" and self.plan.cache_tokens is not None:
            inputs |= {"opset": STATIC_OPSET, "cache_tokens": self.plan.cache_tokens}
        if graph_kind(name) == "blocks" and self.plan.fused_attention:
            inputs |= {"attention": "fused"}

        def export(folder: Path, say: Callable[[str], None]) -> None:
            twin = None if precision == "float32" else self.plan.graph(name, "float32")
            export_graph(self.plan.graph(name, precision), folder, self.family.weights(name), say, twin)

        return Stage(name, inputs, export)

    def _write_constants(self, folder: Path, say: Callable[[str], None]) -> None:
        save_file(self.family.constants(), folder / CONSTANTS)
        if (tokenizer := self.family.tokenizer) is not None:
            (folder / TOKENIZER).write_bytes(tokenizer)

    def _record(self, folder: Path, say: Callable[[str], None]) -> None:
        quantized = quantized_scales(self.plan.options.builder)
        with torch_threads(1 if self.family.entry.width < _WIDE else None):
            cases = self.family.record(self.plan.options.precision, quantized and quantized.precision, say)
        cases.save(folder)


def toolchain() -> dict[str, str]:
    """Versions of the packages that an exported graph depends on."""
    versions = {name: importlib.metadata.version(name) for name in TOOLCHAIN}
    return versions | {"ldp-export": __version__, "python": platform.python_version()}
