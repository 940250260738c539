"""Plan of a build, checked before work begins from the headers of files alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ldp_runtime.bundle.files import CURRENT, PREVIOUS, REPORTS, SAVED, VERSION_NAME, VERSIONS
from ldp_runtime.bundle.manifest import KvCacheKind, NoiseMode, Precision
from ldp_runtime.errors import ConfigError
from ldp_runtime.pipeline.activations import score_bytes
from ldp_runtime.system.disk import existing_parent, is_scratch

from ldp_export.builders.base import Builder, is_quantized, quantized_scales
from ldp_export.builders.onnxruntime import OnnxRuntimeBuilder
from ldp_export.building.cache import STAGE_NAME
from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import Family, graph_kind
from ldp_export.families.choose import choose_family
from ldp_export.graphs.signature import QUANTIZED, GraphSignature
from ldp_export.models.registry import NamedModel

if TYPE_CHECKING:
    from ldp_export.graphs.graph import Graph

#: Folder beside a bundle of random weights that holds their checkpoint.
CHECKPOINT = "checkpoint"
#: File in it, written last: what stands in for a policy's choices.
SHARES = "shares.json"
#: Bytes of a guided image's attention scores from which attention is fused; of fewer, plain attention is as fast.
_MOST_SCORES = 512 * 2**20
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        output: path of the bundle.
        size: name of the scale schedule, or None for the model's own.
        chunk: blocks per `blocks` graph, or None for all in one graph.
        force: runs every stage anew.
        builder: builder of the engines.
        precision: precision of the graphs.
        discard_graphs: deletes an exported graph once its engine is built: half the disk, but another export next time.
        kv_cache: kind of KV cache of the `blocks` graphs; see `graphs/kv_cache.py`.
        noise: kind of the sampling noise that the bundle's pipelines draw.
        quantize_prompts: prompts on which static ranges are measured; none: those of `quantization/prompts.py`.
    """

    output: Path
    size: str | None = None
    chunk: int | None = None
    force: bool = False
    builder: Builder = field(default_factory=OnnxRuntimeBuilder)
    precision: Precision = "float32"
    discard_graphs: bool = False
    kv_cache: KvCacheKind = "dynamic"
    noise: NoiseMode = "generator"
    quantize_prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildPlan:
    """Checked plan of a build. Making one reads the headers of files, not their weights."""

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
        """Names of the engines built from a graph: one, or two for blocks whose last scales are quantized."""
        quantized = graph_kind(graph) == "blocks" and quantized_scales(self.options.builder) is not None
        return [graph, QUANTIZED + graph] if quantized else [graph]

    @cached_property
    def cache_tokens(self) -> int | None:
        """Number of positions of a static KV cache: all tokens of the largest image. None for a dynamic cache."""
        if self.options.kv_cache == "dynamic":
            return None
        model = self.family.entry
        return max(model.schedule(ratio).total_tokens for ratio in model.aspect_ratios)

    @cached_property
    def fused_attention(self) -> bool:
        """True if self-attention keeps no scores, which ONNX Runtime's CPU provider would hold in memory at once."""
        builder, options = self.options.builder, self.options
        if builder.backend != "onnxruntime" or options.precision != "float32" or self.cache_tokens is not None:
            return False
        model = self.family.entry
        schedules = [model.schedule(ratio) for ratio in model.aspect_ratios]
        return self.family.fuses_attention and score_bytes(model, schedules, rows=2) > _MOST_SCORES

    def precision(self, name: str) -> Precision:
        """Precision in which a graph is exported: float32 for a decoder that is quantized afterwards."""
        return "float32" if is_quantized(self.options.builder, name) else self.options.precision

    def signature(self, name: str) -> GraphSignature:
        """Inputs and outputs of a graph, with the precision and the kind of KV cache of this build."""
        signature = self.family.signature(name, self.precision(name))
        if self.cache_tokens is None:
            return signature
        from ldp_export.graphs.kv_cache import static_signature

        return static_signature(signature, self.cache_tokens)

    def graph(self, name: str, precision: Precision) -> Graph:
        """Graph to export, with the kind of KV cache of this build; see `Family.graph`."""
        from ldp_export.graphs.infinity import InfinityBlocksGraph

        graph = self.family.graph(name, precision)
        if not isinstance(graph, InfinityBlocksGraph):
            return graph
        if self.cache_tokens is not None:
            return graph.with_static_cache(self.cache_tokens)
        return graph.with_fused_attention() if self.fused_attention else graph

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
            "noise": self.options.noise,
            "reference": self.family.coverage,
            **(
                {}
                if quantized is None
                else {"quantized": f"{quantized.precision}, the last {quantized.share:.0%} of the tokens"}
            ),
        }


def plan_build(spec: NamedModel, sources: Sources, options: BuildOptions) -> BuildPlan:
    """Checks everything that can be checked before work begins.

    Raises:
        ConfigError: the size is unknown, the chunk impossible, or the output path no bundle. Or the backend or the
            model lacks the precision or the kind of KV cache.
        CheckpointError: keys and shapes of the files are not those of the architecture.
    """
    plan = BuildPlan(spec, sources, options)
    check_options(plan)
    plan.family.check_files()
    return plan


def check_options(plan: BuildPlan) -> None:
    """Checks everything that needs no file of the model, since its sources may not be there yet.

    Raises:
        ConfigError: as `plan_build`.
    """
    options, family = plan.options, plan.family  # a family refuses a size that its model does not draw
    if options.chunk is not None and options.chunk < 1:
        raise ConfigError(
            f"a chunk needs at least one block, got {options.chunk}", hint="leave --chunk out for one graph, or say 8"
        )
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
    if not family.has_static_cache:
        raise ConfigError("class-conditional models have no static cache", hint="leave --kv-cache out")
    if options.builder.backend == "torch":
        raise ConfigError("the torch backend has no static cache", hint="leave --kv-cache out")


def check_output(output: Path) -> None:
    """Raises ConfigError if a bundle cannot be built at this path."""
    parent = existing_parent(output)
    if not parent.is_dir():
        raise ConfigError(f"{parent} is a file", hint="name a folder as the output")
    if foreign := sorted(_foreign(output)):
        raise ConfigError(
            f"the output {output} holds other things: {', '.join(foreign[:5])}",
            hint="name an empty folder, a new one, or the bundle to rebuild",
        )


def _foreign(output: Path) -> Iterator[str]:
    """Things under an output path that no build put there. Links, such as one to the latest version, are welcome."""
    folders = {VERSIONS: VERSION_NAME, "stages": STAGE_NAME}
    known = {*folders, REPORTS, SAVED, CURRENT, PREVIOUS, ".lock"}
    if (output / CHECKPOINT / SHARES).is_file():  # else it is somebody's own checkpoint
        known.add(CHECKPOINT)
    for path in output.iterdir() if output.is_dir() else ():
        if path.name not in known and not is_scratch(path) and not path.is_symlink():
            yield path.name
        if path.name not in folders:
            continue
        if not path.is_dir():
            yield path.name
            continue
        for inner in path.iterdir():
            ours = folders[path.name].fullmatch(inner.name) or is_scratch(inner) or inner.is_symlink()
            if not ours and not inner.name.startswith("."):  # hidden files, as systems leave them
                yield f"{path.name}/{inner.name}"
