"""Stages of a build: export of each graph, its engine if the backend compiles, constants, reference runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_runtime.bundle.files import CONSTANTS, REFERENCE, TOKENIZER
from ldp_runtime.engines.torch_compiled.threads import torch_threads
from safetensors.torch import save_file

from ldp_export import __version__
from ldp_export.builders.base import (
    Compiler,
    ExportedGraph,
    has_static_ranges,
    is_quantized,
    quantized_scales,
    static_form,
    weight_form,
)
from ldp_export.building.cache import Stage, is_complete
from ldp_export.building.plan import BuildPlan
from ldp_export.families.base import MeasuresRanges, graph_blocks, graph_kind, graph_parts, loaded_graph
from ldp_export.graphs.graph import OPSET
from ldp_export.graphs.kv_cache import STATIC_OPSET
from ldp_export.graphs.onnx import FORMAT, export_graph
from ldp_export.versions import TOOLCHAIN

if TYPE_CHECKING:
    from ldp_export.reference.quantized import EightBits

#: Stage of the static ranges of quantized products, prefix of the stages that measure them on one prompt each, and file
#: that says how they were measured.
RANGES, RANGES_OF_PROMPT, RECIPE_FILE = "ranges", "ranges_of_prompt_", "recipe.json"


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
        stages = [*self._ranges_stages, *stages]
        # Ranges for a quantized decoder are measured on the recorded runs, so these come first.
        first = is_quantized(self.plan.options.builder, "decoder")
        stages.insert(len(self._ranges_stages) if first else len(stages), self._reference_stage())
        return stages

    @cached_property
    def _prompts(self) -> tuple[str, ...]:
        """Prompts on which static ranges are measured."""
        from ldp_export.quantization.prompts import GENERAL, SHAPES

        return self.plan.options.quantize_prompts or (SHAPES if self.plan.spec.embedded else GENERAL)

    @cached_property
    def _ranges_stages(self) -> list[Stage]:
        """Stages that measure the static ranges of quantized products: one a prompt, so that a killed build goes on."""
        if not has_static_ranges(self.plan.options.builder):
            return []
        family = self.plan.family
        assert isinstance(family, MeasuresRanges)
        recorded = self._inputs() | {"size": family.entry.size}

        def measure(number: int, prompt: str) -> Stage:
            def run(folder: Path, say: Callable[[str], None]) -> None:
                say(prompt)
                with self._reference_threads():
                    family.ranges(prompt, number).save(folder)

            return Stage(f"{RANGES_OF_PROMPT}{number}", recorded | {"prompt": prompt, "number": number}, run)

        parts = [measure(number, prompt) for number, prompt in enumerate(self._prompts)]

        def merge(folder: Path, say: Callable[[str], None]) -> None:
            from ldp_export.quantization.ranges import Ranges

            Ranges.merged(Ranges.load(part.place(self.cache)) for part in parts).save(folder)
            (folder / RECIPE_FILE).write_text(json.dumps(self._recipe(), indent=1))

        return [*parts, Stage(RANGES, {"parts": [part.key for part in parts], **self._recipe()}, merge)]

    def _recipe(self) -> dict[str, Any]:
        """Recipe of static ranges, for whoever asks the bundle."""
        from ldp_export.quantization.formats import SMOOTHING

        prompts = "\n".join(self._prompts)
        return {
            "prompts": list(self._prompts),
            "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
            "ranges": "largest magnitude by channel, over all scales and prompts",
            "smoothing": SMOOTHING,
        }

    def _reference_threads(self) -> AbstractContextManager[None]:
        return torch_threads(1 if self.family.entry.width < _WIDE else None)

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
        if ranges := self._ranges_stages:
            recorded["ranges"] = ranges[-1].key
        if (form := weight_form(self.plan.options.builder)) is not None:
            recorded["weights"] = repr(form)
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
            ranges = self._ranges_stages
            exported = ExportedGraph(
                signature,
                place,
                lambda: loaded_graph(self.family, graph, precision),
                reference,
                ranges[-1].place(self.cache) if ranges else None,
                graph_blocks(graph, self.family.entry.depth)[0],
            )
            builder.build(exported, folder, say)

        inputs = {"graph": export.key, **builder.key(signature)}
        if engine == "decoder" and is_quantized(builder, engine):
            inputs["reference"] = self._reference_stage().key  # the ranges of its activations are measured there
        if engine != graph and (ranges := self._ranges_stages):
            inputs["ranges"] = ranges[-1].key
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
        with self._reference_threads():
            cases = self.family.record(self.plan.options.precision, self._in_8_bits(), say)
        cases.save(folder)

    def _in_8_bits(self) -> EightBits | None:
        """Numbers in 8 bits of the blocks, which the reference model imitates; None if there are none."""
        from ldp_export.reference.quantized import RoundedWeights

        builder = self.plan.options.builder
        if (form := weight_form(builder)) is not None:
            return RoundedWeights(form)
        if (form := static_form(builder)) is None:
            quantized = quantized_scales(builder)
            return quantized and quantized.precision
        from ldp_export.quantization.ranges import Ranges
        from ldp_export.reference.quantized import StaticProducts

        return StaticProducts(form, Ranges.load(self._ranges_stages[-1].place(self.cache)))


def toolchain() -> dict[str, str]:
    """Versions of the packages that an exported graph depends on."""
    versions = {name: importlib.metadata.version(name) for name in TOOLCHAIN}
    return versions | {"ldp-export": __version__, "python": platform.python_version()}
