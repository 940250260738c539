"""What a build will need, predicted from shapes before any work: host memory, disk, and time.

Host memory is anonymous memory: mapped files are not counted, since the system drops their pages when it needs the
room. Whole builds of Infinity-2B and 8B (bfloat16, TensorRT-RTX, eight blocks a graph) stayed within 6 % of the memory
and 3 % of the disk predicted here. `docs/benchmarks.md` has the figures; `benchmarks/study/large_build.py` measures
anew.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import psutil
import torch
from ldp_runtime.disk import existing_parent, gigabytes
from ldp_runtime.errors import CapacityError

from ldp_export.builders.base import Compiler, is_quantized, quantized_scales
from ldp_export.building.stages import BuildStages
from ldp_export.graphs.onnx import MODEL_FILE

if TYPE_CHECKING:
    from ldp_export.building.plan import BuildPlan


_MB, _GB = 10**6, 10**9


#: The process with PyTorch and the exporter loaded, and what a trace leaves behind.
_BASE = 700 * _MB


#: A compiler's library, and its memory per byte of the graph that it compiles.
_COMPILER_BASE, _COMPILER_FACTOR = 600 * _MB, 1.25


#: Memory of ONNX Runtime's quantiser per byte of the blocks that it rounds.
_QUANTIZER_FACTOR = 3.0


#: Memory of ONNX Runtime per byte of weights: its own copy, and matrices packed anew.
_SESSION_FACTOR = 1.6


#: Files of a graph beside its weights; an engine's code for each profile.
_GRAPH_FILES, _ENGINE_CODE = 1 * _MB, 8 * _MB


#: Seconds: a graph's trace and optimization; hashing, reading and writing a gigabyte; compiling one.
_SECONDS_PER_GRAPH, _SECONDS_PER_GB, _COMPILE_SECONDS_PER_GB = 8.0, 6.0, 6.0


@dataclass(frozen=True)
class BuildEstimate:
    """Bytes and seconds that a build needs.

    Attributes:
        host_memory: anonymous memory at its peak.
        disk: under the output path at its peak; bundle: of it, what stays.
        device_memory: engines that a GPU will hold (keys and values come on top, see `Pipeline.load`).
        seconds: on two cores; other machines differ.
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
    """What the parts of a plan weigh."""

    def __init__(self, plan: BuildPlan) -> None:
        self.plan, self.options = plan, plan.options

    @cached_property
    def graphs(self) -> list[int]:
        """Bytes of weights of each graph."""
        plan = self.plan
        return [plan.family.graph(name, plan.precision(name)).weight_bytes() for name in plan.graph_names]

    @cached_property
    def engines(self) -> list[int]:
        """Bytes of each engine; none where the graphs are what ships."""
        builder = self.options.builder
        if not isinstance(builder, Compiler):
            return []
        found: list[int] = []
        for name, size in zip(self.plan.graph_names, self.graphs, strict=True):
            code = len(builder.profiles(self.plan.signature(name))) * _ENGINE_CODE
            itemsize = getattr(torch, self.plan.precision(name)).itemsize
            for engine in self.plan.engine_names(name):
                found.append(code + (size // itemsize if is_quantized(builder, engine) else size))
        return found

    @property
    def copied(self) -> int:
        """Bytes of the largest graph that ONNX Runtime's quantiser reads: a copy of its own, deleted after it."""
        builder, found = self.options.builder, [0]
        for name, size in zip(self.plan.graph_names, self.graphs, strict=True):
            for engine in self.plan.engine_names(name):
                signature = self.plan.signature(name) if engine == name else self.plan.signature(name).quantized()
                if is_quantized(builder, engine) and builder.engine_file(signature) == MODEL_FILE:
                    found.append(size)
        return max(found)

    @property
    def reference(self) -> int:
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
    moved = (plan.sources.size() + 3 * weights + 2 * engines) / _GB
    seconds = 10 + _SECONDS_PER_GRAPH * len(sizes.graphs) * (1 if plan.options.precision == "float32" else 2)
    seconds += _SECONDS_PER_GB * moved + _COMPILE_SECONDS_PER_GB * engines / _GB
    resident = sum(sizes.engines or sizes.graphs)
    return BuildEstimate(_host_memory(plan, sizes), disk, shipped, resident, round(seconds))


def _host_memory(plan: BuildPlan, sizes: _Sizes) -> int:
    """The largest of the stages: they run one after the other."""
    stages = [plan.family.reference_memory]
    if sizes.engines:
        stages.append(int(_COMPILER_BASE + _COMPILER_FACTOR * max(sizes.graphs)))
    if quantized_scales(plan.options.builder) and plan.options.builder.backend == "onnxruntime":
        named = zip(plan.graph_names, sizes.graphs, strict=True)
        stages.append(int(_QUANTIZER_FACTOR * max(size for name, size in named if len(plan.engine_names(name)) > 1)))
    if plan.options.builder.verified_on == "cpu":
        stages.append(int(_SESSION_FACTOR * sum(sizes.engines or sizes.graphs)))
    return _BASE + max(stages)


def require_capacity(plan: BuildPlan) -> BuildEstimate:
    """The estimate, or CapacityError where memory or disk is missing.

    Stages that an earlier try of the same build has finished have their place on the disk already.
    """
    estimate, output = estimate_build(plan), plan.options.output
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(existing_parent(output)).free
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
    """Of this very build's stages. Telling them from those of other builds takes the hashes of all sources."""
    if plan.options.force or not (plan.options.output / "stages").is_dir():
        return 0
    work = BuildStages(plan)
    places = [stage.place(work.cache) for stage in work.stages()]
    return sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())


def _compiles(plan: BuildPlan) -> bool:
    return isinstance(plan.options.builder, Compiler)
