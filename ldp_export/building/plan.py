"""What a build will do: checked before work begins, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ldp_runtime.bundle.files import VERSIONS
from ldp_runtime.bundle.manifest import InfinityEntry, KvCacheKind, Precision
from ldp_runtime.disk import SCRATCH, existing_parent
from ldp_runtime.errors import ConfigError

from ldp_export.builders.base import Builder, is_quantized, quantized_scales
from ldp_export.builders.onnxruntime import OnnxRuntimeBuilder
from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import Family, graph_kind
from ldp_export.families.choose import choose_family
from ldp_export.graphs.graph import Graph
from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.graphs.key_values import static_signature
from ldp_export.graphs.signature import QUANTIZED, GraphSignature
from ldp_export.models.registry import NamedModel

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        output: path of the bundle.
        size: scale schedule, or None for the model's own.
        chunk: blocks per `blocks` graph, or None for all in one.
        force: build every stage anew.
        builder: the backend.
        precision: of the graphs.
        kv_cache: how `blocks` graphs remember keys and values; see `graphs/key_values.py`.
        discard_graphs: delete an exported graph once its engine is built: half the disk, and another export next time.
    """

    output: Path
    size: str | None = None
    chunk: int | None = None
    force: bool = False
    builder: Builder = field(default_factory=OnnxRuntimeBuilder)
    precision: Precision = "float32"
    discard_graphs: bool = False
    kv_cache: KvCacheKind = "dynamic"


@dataclass(frozen=True)
class BuildPlan:
    """A checked build: what it will do. Making one reads headers, not weights."""

    spec: NamedModel
    sources: Sources
    options: BuildOptions

    @cached_property
    def family(self) -> Family:
        return choose_family(self.spec, self.sources, self.options.size)

    @cached_property
    def graph_names(self) -> list[str]:
        return self.family.graph_names(self.options.chunk)

    def engine_names(self, graph: str) -> list[str]:
        """Of what is made of a graph: its engine and, where late scales compute in 8 bits, that of its blocks."""
        quantized = graph_kind(graph) == "blocks" and quantized_scales(self.options.builder) is not None
        return [graph, QUANTIZED + graph] if quantized else [graph]

    @cached_property
    def cache_tokens(self) -> int | None:
        """Positions of a cache that is written in place: all tokens of the largest image. None for the other form."""
        if self.options.kv_cache == "dynamic":
            return None
        model = self.family.entry
        return max(model.schedule(ratio).total_tokens for ratio in model.aspect_ratios)

    def precision(self, name: str) -> Precision:
        """Of a graph's export: a decoder that is quantized afterwards is quantized from float32."""
        return "float32" if is_quantized(self.options.builder, name) else self.options.precision

    def signature(self, name: str) -> GraphSignature:
        """Inputs and outputs of a graph, in the form and precision that are built."""
        signature = self.family.signature(name, self.precision(name))
        return signature if self.cache_tokens is None else static_signature(signature, self.cache_tokens)

    def graph(self, name: str, precision: Precision) -> Graph:
        """The graph to export, in the form that is built; see `Recipe.graph`."""
        graph = self.family.graph(name, precision)
        if self.cache_tokens is None or not isinstance(graph, InfinityBlocksGraph):
            return graph
        return graph.with_static_cache(self.cache_tokens)

    def to_json(self) -> dict[str, object]:
        quantized = quantized_scales(self.options.builder)
        return {
            "model": self.spec.name,
            "size": self.family.entry.size,
            "sources": {part: str(path) for part, path in self.sources.items()},
            "output": str(self.options.output),
            "graphs": self.graph_names,
            "backend": self.options.builder.backend,
            "precision": self.options.precision,
            "kv_cache": self.options.kv_cache,
            "reference": self.family.coverage,
            **(
                {}
                if quantized is None
                else {"late": f"{quantized.precision}, the last {quantized.share:.0%} of the tokens"}
            ),
        }


def plan_build(spec: NamedModel, sources: Sources, options: BuildOptions) -> BuildPlan:
    """Checks everything that can be checked before work begins.

    Raises:
        ConfigError: unknown size, impossible chunk, an output path that is no bundle, or a precision or form of the
            cache that the backend or the model does not have.
        CheckpointError: files whose keys and shapes are not those of the architecture.
    """
    plan = BuildPlan(spec, sources, options)
    check_options(plan)
    plan.family.check_files()
    return plan


def check_options(plan: BuildPlan) -> None:
    """Checks what needs no file of the model: its sources may not be there yet. Raises ConfigError as `plan_build`."""
    options, family = plan.options, plan.family  # a recipe refuses a size that its model does not draw
    if options.chunk is not None and options.chunk < 1:
        raise ConfigError(f"a chunk needs at least one block, got {options.chunk}")
    if options.precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {options.precision!r}", hint=f"one of {', '.join(PRECISIONS)}")
    if options.builder.backend == "onnxruntime" and options.precision == "bfloat16":
        raise ConfigError(
            "ONNX Runtime has no bfloat16 matrix products on the CPU, where a build verifies its engines",
            hint="build with --precision float32 or float16, or with --backend tensorrt-rtx",
        )
    _check_kv_cache(options, family)
    check_output(options.output)


def _check_kv_cache(options: BuildOptions, family: Family) -> None:
    if options.kv_cache == "dynamic":
        return
    if not isinstance(family.entry, InfinityEntry):
        raise ConfigError("class-conditional models have no static cache", hint="leave --kv-form out")
    if options.builder.backend == "torch":
        raise ConfigError("the torch backend has no static cache", hint="leave --kv-form out")


def check_output(output: Path) -> None:
    """Raises ConfigError when a bundle cannot be built there."""
    parent = existing_parent(output)
    if not parent.is_dir():
        raise ConfigError(f"{parent} is a file", hint="name a folder as the output")
    known = {VERSIONS, "stages", "reports", "profiles", "CURRENT", ".lock"}
    names = [path.name for path in output.iterdir()] if output.exists() else []
    foreign = [name for name in names if name not in known and not name.startswith(SCRATCH)]
    if foreign:
        raise ConfigError(
            f"the output {output} holds other things: {', '.join(sorted(foreign)[:5])}",
            hint="name an empty folder, a new one, or the bundle to rebuild",
        )
