"""Manifest of a bundle: the model, its graphs and files, and everything that its engines depend on.

It is read and checked before any engine is opened; `files.py` shows the folder that it describes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ldp_runtime.architecture.choose import ModelEntry
from ldp_runtime.bundle.optimization_profiles import OptimizationProfile
from ldp_runtime.schedule import ScaleSchedule

if TYPE_CHECKING:
    pass

#: Schema that builds write; `older_manifest.py` reads the one before.
SCHEMA_VERSION = 4


#: Engine file of fused blocks: only their weights, since PyTorch compiles them on the machine that loads them.
FUSED_WEIGHTS = "fused.safetensors"


#: Element type of the graphs' matrix products; operations that the original keeps in float32 are float32 in each case.
Precision = Literal["float32", "bfloat16", "float16"]


#: "dynamic": engines concatenate the past and new keys and values; "static": they write into a cache of fixed size.
#: "none": the model keeps no keys and values (Switti).
KvCacheKind = Literal["dynamic", "static", "none"]


Backend = Literal["onnxruntime", "torch", "tensorrt", "tensorrt-rtx"]


#: Element type of quantized blocks' matrix products: 8-bit integers, or 8-bit floats with 4 exponent bits (E4M3).
QuantizedPrecision = Literal["int8", "float8"]


#: Origin of the ranges of quantized inputs. "measured": each call measures its own, on all its rows or on each.
#: "static": the build measured them, and the engine holds them.
RangeKind = Literal["measured", "static"]


#: Source of a request's noise, see `noise.py`. "generator": the originals' CPU generator, one per image and in their
#: order. "counter": a function of seed, scale and position, drawn on the device.
NoiseMode = Literal["generator", "counter"]


#: Axes of tensors whose size differs from call to call, and a size that does not.
AxisName = Literal["rows", "tokens", "past", "text", "images", "height", "width", "image_height", "image_width"]
Side = Annotated[int, Field(gt=0, lt=2**31)]


#: Element types of tensors that engines read and write.
ElementType = Literal["float32", "bfloat16", "float16", "int64", "bool"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Entry):
    size: int
    sha256: str


class TensorEntry(_Entry):
    """A tensor of a graph: its name, its fixed sides and named axes, and its element type."""

    name: str
    shape: tuple[Side | AxisName, ...]
    dtype: ElementType


class GraphEntry(_Entry):
    """One graph, or one chunk of a graph that is split by transformer blocks.

    Attributes:
        file: path of its engine in the bundle.
        first, last: the chunk serves the transformer blocks [first, last).
        profiles: optimization profiles of its engine; none: it takes any size.
        quantized: its matrix products or convolutions multiply 8-bit numbers.
        scales: name of the set of quantized scales that a `blocks` graph serves; empty: all other scales.
    """

    kind: Literal["text_encoder", "prompt", "blocks", "residual", "decoder"]
    file: str
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    first: int = 0
    last: int = 0
    profiles: tuple[OptimizationProfile, ...] = ()
    quantized: bool = False
    scales: str = ""

    @property
    def is_onnx(self) -> bool:
        """True if ONNX Runtime runs this graph."""
        return Path(self.file).suffix == ".onnx"


class Defaults(_Entry):
    """Settings of a request that does not choose its own.

    Attributes:
        policy: policy as text, with every field written out; see `pruning/parse.py`.
    """

    guidance: float
    temperature: float
    top_k: int
    top_p: float
    policy: str = "none"


class Limits(_Entry):
    """Largest sizes that the engines were built for."""

    rows: int
    text_tokens: int
    tokens: int
    past: int


class QuantizedScales(_Entry):
    """A set of quantized scales: the fewest last scales that together hold at least `share` of all tokens.

    The last scales cost most, and decide least of an image. A scale in several sets belongs to the smallest.

    Attributes:
        name: name of the set, which its graphs carry.
        ranges: origin of the ranges of the inputs. With measured ones, images run one by one.
    """

    precision: QuantizedPrecision
    share: float = Field(gt=0, lt=1)
    name: str = Field(default="last", pattern=r"^[a-z0-9]+$")
    ranges: RangeKind = "measured"


class SourcePart(_Entry):
    """Origin of one part of the model: its files, and where they were published.

    Attributes:
        sha256: hash of the part's file, or of its folder: of all names and hashes in order.
        files: size and hash of each file, by its name; empty if a schema before 4 noted none.
        repository, revision: repository on the hub; empty for files of one's own.
        licence: licence as the publisher states it; empty if unknown.
    """

    sha256: str
    files: dict[str, FileEntry] = {}
    repository: str = ""
    revision: str = ""
    licence: str = ""


class TargetEntry(_Entry):
    """Library and machine that compiled engines were built for.

    Attributes:
        library: version of the library that built the engines, which must be the one that runs them.
        compute_capabilities: compute capabilities of the GPUs that the engines run on, such as "8.9".
        system: operating system and processor family, if the engines hold machine code for the processor.
        instructions: instruction set extensions of the processor that this code may use.
    """

    library: str
    compute_capabilities: tuple[str, ...]
    system: str = ""
    instructions: tuple[str, ...] = ()


class Manifest(_Entry):
    """Everything that a bundle's engines depend on.

    Attributes:
        noise: source of the noise of its images.
        fused_attention: True if self-attention keeps no scores in memory.
        quantized: sets of quantized scales; empty: all blocks compute in `precision`.
        weight_precision: element type in which the blocks' weights are stored if it is not that of their products.
        sources: origin of each part of the model.
        digest: SHA-256 of all other fields; empty until `sealed` computes it.
    """

    schema_version: int
    model: ModelEntry
    defaults: Defaults
    limits: Limits
    backend: Backend
    target: TargetEntry | None = None
    precision: Precision
    noise: NoiseMode = "generator"
    fused_attention: bool = False
    quantized: tuple[QuantizedScales, ...] = ()
    weight_precision: Literal["int8"] | None = None
    graphs: dict[str, GraphEntry]
    files: dict[str, FileEntry]
    sources: dict[str, SourcePart]
    toolchain: dict[str, str]
    has_text_encoder: bool
    digest: str = ""

    def computed_digest(self) -> str:
        """SHA-256 of the manifest without its digest field, in canonical JSON."""
        content = self.model_dump(mode="json", exclude={"digest"})
        for name in ("fused_attention", "weight_precision"):
            if not content[name]:  # as in bundles from before it was a field
                del content[name]
        for entry in content["quantized"]:
            if entry["ranges"] == "measured":  # likewise
                del entry["ranges"]
        return content_digest(content)

    def sealed(self) -> Manifest:
        return self.model_copy(update={"digest": self.computed_digest()})

    def chunks(self, kind: str, scales: str = "") -> list[GraphEntry]:
        """Graphs of one kind and set of quantized scales, in the order of their blocks."""
        found = (graph for graph in self.graphs.values() if graph.kind == kind and graph.scales == scales)
        return sorted(found, key=lambda graph: graph.first)

    @property
    def cache_type(self) -> str:
        """Name of the element type of keys and values."""
        return "float32" if self._keys is None else self._keys.dtype

    @property
    def cache_tokens(self) -> int | None:
        """Number of positions of a static KV cache; None for a dynamic one."""
        size = None if self._keys is None else self._keys.shape[2]
        return size if self.kv_cache == "static" and isinstance(size, int) else None

    @property
    def kv_cache(self) -> KvCacheKind:
        """Kind of the engines' KV cache, read from the names of their inputs."""
        if self._keys is None:
            return "none"
        return "static" if self._keys.name.startswith("cache_") else "dynamic"

    @property
    def has_fused_blocks(self) -> bool:
        """True if PyTorch compiles the blocks on the machine that loads them; see `engines/torch_compiled/fused`."""
        return Path(self.chunks("blocks")[0].file).name == FUSED_WEIGHTS

    @property
    def _keys(self) -> TensorEntry | None:
        """Input of the first blocks graph that holds its first layer's keys; None for models that keep none."""
        tensors = self.chunks("blocks")[0].inputs
        if not self.model.cached_layers:
            return None
        return next(tensor for tensor in tensors if tensor.name.startswith(("past_k_", "cache_k_")))

    @property
    def version(self) -> str:
        """Name of the version's folder."""
        return self.digest[:16]

    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        return self.model.schedule(aspect_ratio)

    def quantized_scales(self, schedule: ScaleSchedule) -> dict[int, QuantizedScales]:
        """Set of each quantized scale, by the scale's index; other scales are left out."""
        largest_first = sorted(self.quantized, key=lambda entry: -entry.share)
        return {k: entry for entry in largest_first for k in schedule.detail_scales(entry.share)}

    def scale_sets(self, schedule: ScaleSchedule) -> dict[int, str]:
        """Name of the set of each quantized scale, by the scale's index."""
        return {k: entry.name for k, entry in self.quantized_scales(schedule).items()}

    def scales_alone(self, schedule: ScaleSchedule) -> frozenset[int]:
        """Quantized scales whose engines measure ranges in each call: an image must not depend on the others of it."""
        return frozenset(k for k, entry in self.quantized_scales(schedule).items() if entry.ranges == "measured")

    def schedules(self) -> list[ScaleSchedule]:
        """Schedules of all aspect ratios that the bundle draws."""
        return [self.model.schedule(ratio) for ratio in self.model.aspect_ratios]

    def weight_bytes(self, kind: str | None = None) -> int:
        """Total bytes of all graphs and their weights, or of those of one kind."""
        graphs = (graph for graph in self.graphs.values() if kind in (None, graph.kind))
        folders = {str(Path(graph.file).parent) for graph in graphs}
        return sum(entry.size for name, entry in self.files.items() if str(Path(name).parent) in folders)


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's fields without its digest, in canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
