"""Needs of a build, predicted from shapes before any work: host memory, disk, and time.

Host memory is anonymous memory: mapped files are not counted, since the system drops their pages when it needs the
room. The predictions were checked on whole builds of Infinity-2B and 8B: bfloat16, TensorRT-RTX, eight blocks per
graph. Memory stayed within 6 % of the prediction, disk within 3 %. `docs/results/measured/builds.md` has the figures;
`benchmarks/study/large_build.py` measures anew.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ldp_runtime.errors import CapacityError
from ldp_runtime.pipeline.activations import decoder_bytes, layer_bytes
from ldp_runtime.pipeline.memory import available_memory
from ldp_runtime.system.disk import existing_parent, gigabytes

from ldp_export.builders.base import Compiler, has_8_bit_weights, has_static_ranges, is_quantized, quantized_scales
from ldp_export.builders.onnxruntime import Int8Builder
from ldp_export.families.base import MeasuresRanges

if TYPE_CHECKING:
    from ldp_export.building.plan import BuildPlan


_MB, _GB = 10**6, 10**9


#: Memory of the process with PyTorch and the exporter loaded, and of the remains of a trace.
_BASE = 700 * _MB


#: Memory of a compiler's library, and of its work per byte of the graph that it compiles.
_COMPILER_BASE, _COMPILER_FACTOR = 600 * _MB, 1.25


#: Memory of ONNX Runtime's quantizer per byte of the blocks that it quantizes.
_QUANTIZER_FACTOR = 3.0


#: Rows of the largest call that verifies: an image and its unconditional branch.
_ROWS = 2


#: Bytes of a graph's files besides its weights; bytes of an engine's code per optimization profile.
_GRAPH_FILES, _ENGINE_CODE = 1 * _MB, 8 * _MB


#: Seconds to trace and optimize a graph; to hash, read and write a gigabyte; to compile a gigabyte.
_SECONDS_PER_GRAPH, _SECONDS_PER_GB, _COMPILE_SECONDS_PER_GB = 8.0, 6.0, 6.0


@dataclass(frozen=True)
class BuildEstimate:
    """Predicted bytes and seconds of a build.

    Attributes:
        host_memory: peak of anonymous memory, in bytes.
        disk: peak of disk space under the output path, in bytes.
        bundle: part of `disk` that the published bundle keeps.
        device_memory: bytes of the engines that a GPU will hold; keys and values come on top, see `Pipeline.load`.
        seconds: time on two cores; other machines differ.
    """

    host_memory: int
    disk: int
    bundle: int
    device_memory: int
    seconds: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{gigabytes(self.host_memory)} of memory, {gigabytes(self.disk)} of disk ({gigabytes(self.bundle)} stay), "
            f"about {self.seconds / 60:.0f} min; the engines then {gigabytes(self.device_memory)} where they run"
        )


class _Sizes:
    """Bytes of a plan's graphs, engines and reference runs."""

    def __init__(self, plan: BuildPlan) -> None:
        self.plan, self.options = plan, plan.options

    @cached_property
    def graphs(self) -> list[int]:
        """Bytes of each graph's weights."""
        plan = self.plan
        return [plan.family.graph_bytes(name, plan.precision(name)) for name in plan.graph_names]

    @cached_property
    def engines(self) -> list[int]:
        """Bytes of each engine; empty if the graphs ship as they are."""
        builder = self.options.builder
        if not isinstance(builder, Compiler):
            return []
        engines: list[int] = []
        for name, size in zip(self.plan.graph_names, self.graphs, strict=True):
            tuned = builder.backend.startswith("tensorrt")
            code = len(builder.profiles(self.plan.signature(name))) * _ENGINE_CODE if tuned else 0
            itemsize = 4 if self.plan.precision(name) == "float32" else 2
            for engine in self.plan.engine_names(name):
                rounded = is_quantized(builder, engine) or has_8_bit_weights(builder, engine)
                engines.append(code + (size // itemsize if rounded else size))
        return engines

    @property
    def copied(self) -> int:
        """Bytes of the largest graph that ONNX Runtime's quantizer reads: it reads a temporary copy."""
        builder = self.options.builder
        quantizer = builder if isinstance(builder, Int8Builder) else getattr(builder, "int8", None)
        if quantizer is None:
            return 0
        named = zip(self.plan.graph_names, self.graphs, strict=True)
        copies = (size for name, size in named if any(map(quantizer.quantizes, self.plan.engine_names(name))))
        return max(copies, default=0)

    @property
    def reference(self) -> int:
        """Bytes of the recorded reference runs."""
        return self.plan.family.reference_bytes


def estimate_build(plan: BuildPlan) -> BuildEstimate:
    """Predicts a build that finds nothing cached."""
    sizes = _Sizes(plan)
    graphs = sum(sizes.graphs) + _GRAPH_FILES * len(sizes.graphs)
    engines = sum(sizes.engines)
    shipped = (engines or graphs) + sizes.reference
    kept = max(sizes.graphs) if plan.options.discard_graphs else graphs
    disk = engines + kept + sizes.copied + sizes.reference if engines else graphs + sizes.reference
    weights = sum(sizes.graphs)
    moved = (_source_bytes(plan) + 3 * weights + 2 * engines) / _GB
    seconds = 10 + _SECONDS_PER_GRAPH * len(sizes.graphs) * (1 if plan.options.precision == "float32" else 2)
    seconds += _SECONDS_PER_GB * moved + _COMPILE_SECONDS_PER_GB * engines / _GB
    resident = sum(sizes.engines or sizes.graphs)
    return BuildEstimate(_host_memory(plan, sizes), disk, shipped, resident, round(seconds))


def _source_bytes(plan: BuildPlan) -> int:
    """Bytes of the checkpoint; of a released one that is not here yet, as the registry has counted them."""
    counts = plan.spec.counts
    return plan.sources.size() or (0 if counts is None else counts.transformer_bytes + counts.vae_bytes)


def _host_memory(plan: BuildPlan, sizes: _Sizes) -> int:
    """Peak memory in bytes: that of the largest stage, since stages run one after the other."""
    stages = [plan.family.reference_memory]
    if has_static_ranges(plan.options.builder) and isinstance(plan.family, MeasuresRanges):
        stages.append(plan.family.ranges_memory)
    if sizes.engines:
        stages.append(int(_COMPILER_BASE + _COMPILER_FACTOR * max(sizes.graphs)))
    if quantized_scales(plan.options.builder) and plan.options.builder.backend == "onnxruntime":
        named = zip(plan.graph_names, sizes.graphs, strict=True)
        stages.append(int(_QUANTIZER_FACTOR * max(size for name, size in named if len(plan.engine_names(name)) > 1)))
    if plan.options.builder.verified_on == "cpu":
        stages.append(_verification_memory(plan, sizes))
    return _BASE + max(stages)


def _verification_memory(plan: BuildPlan, sizes: _Sizes) -> int:
    """Bytes of the engines that verify on a CPU, as one copy of their weights, and of what they compute.

    The text encoder leaves memory before the others run.
    """
    model = plan.family.entry
    schedules = [model.schedule(ratio) for ratio in model.aspect_ratios]
    named = plan.graph_names if not sizes.engines else [e for g in plan.graph_names for e in plan.engine_names(g)]
    by_name = dict(zip(named, sizes.engines or sizes.graphs, strict=True))
    encoder = by_name.pop("text_encoder", 0)
    keys_and_values = 2 * model.depth * max(s.offsets[-2] for s in schedules) * _ROWS * model.width * 4
    computed = max(layer_bytes(model, schedules, _ROWS, plan.fused_attention), decoder_bytes(model, schedules))
    return sum(by_name.values()) + max(encoder, keys_and_values + computed + sizes.reference)


def require_capacity(plan: BuildPlan) -> BuildEstimate:
    """Estimates a build, and checks that memory and disk suffice.

    Stages that an earlier try of the same build has finished already take their disk space.

    Raises:
        CapacityError: memory or disk is missing.
    """
    estimate, output = estimate_build(plan), plan.options.output
    memory, disk = int(available_memory("cpu")), shutil.disk_usage(existing_parent(output)).free
    missing = estimate.disk - disk
    if missing > 0 and missing > _finished_bytes(plan):
        smaller = "" if plan.options.discard_graphs or not _compiles(plan) else ", or add --discard-graphs"
        raise CapacityError(
            f"the build needs up to {gigabytes(estimate.disk)} on the disk of {output}, {gigabytes(disk)} are free",
            hint=f"free some space, or choose another --output{smaller}",
        )
    if estimate.host_memory > memory:
        raise CapacityError(
            f"the build needs about {gigabytes(estimate.host_memory)} of memory, {gigabytes(memory)} are available",
            hint="split the model with a smaller --chunk, or build on a larger machine",
        )
    return estimate


def _finished_bytes(plan: BuildPlan) -> int:
    """Bytes of the finished stages of this very build. Telling them from other builds' takes hashes of all sources."""
    if plan.options.force or not (plan.options.output / "stages").is_dir():
        return 0
    from ldp_export.building.stages import BuildStages

    work = BuildStages(plan)
    places = [stage.place(work.cache) for stage in work.stages()]
    return sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())


def _compiles(plan: BuildPlan) -> bool:
    return isinstance(plan.options.builder, Compiler)
