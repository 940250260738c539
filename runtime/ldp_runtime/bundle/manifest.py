"""Manifest of a bundle: the model, its graphs and files, and everything that its engines depend on.

It is read and checked before any engine is opened; `files.py` shows the folder that it describes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from ldp_runtime.bundle.optimization_profiles import OptimizationProfile
from ldp_runtime.errors import ConfigError
from ldp_runtime.schedule import TEMPLATES, ScaleSchedule
from ldp_runtime.token_layout import LatentLayout

SCHEMA_VERSION = 3


#: Engine file of fused blocks: only their weights, since PyTorch compiles them on the machine that loads them.
FUSED_WEIGHTS = "fused.safetensors"


#: Element type of the graphs' matrix products; operations that the original keeps in float32 are float32 in each case.
Precision = Literal["float32", "bfloat16", "float16"]


#: "dynamic": engines concatenate the past and new keys and values; "static": they write into a cache of fixed size.
KvCacheKind = Literal["dynamic", "static"]


Backend = Literal["onnxruntime", "torch", "tensorrt", "tensorrt-rtx"]


#: Element type of the matrix products of `late_blocks`: 8-bit integers, or 8-bit floats with 4 exponent bits (E4M3).
QuantizedPrecision = Literal["int8", "float8"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Entry):
    size: int
    sha256: str


class TensorEntry(_Entry):
    name: str
    shape: tuple[int | str, ...]
    dtype: str


class GraphEntry(_Entry):
    """One graph, or one chunk of a graph that is split by transformer blocks.

    Attributes:
        file: path of its engine in the bundle.
        first, last: the chunk serves the transformer blocks [first, last).
        profiles: optimization profiles of its engine; none: it takes any size.
        quantized: its matrix products or convolutions multiply 8-bit numbers.
    """

    kind: Literal["text_encoder", "prompt", "blocks", "late_blocks", "decoder"]
    file: str
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    first: int = 0
    last: int = 0
    profiles: tuple[OptimizationProfile, ...] = ()
    quantized: bool = False

    @property
    def is_onnx(self) -> bool:
        """True if ONNX Runtime runs this graph."""
        return Path(self.file).suffix == ".onnx"


class _ModelEntry(_Entry):
    """Architecture of a model, as far as the runtime needs it; each family adds its own fields."""

    name: str
    depth: int
    width: int
    heads: int
    ffn: int
    latent_channels: int
    vae_stride: int


class InfinityEntry(_ModelEntry):
    """A text-to-image model that draws bits, in all aspect ratios of its size."""

    family: Literal["infinity"] = "infinity"
    size: str
    bits: int
    text_channels: int
    levels: int
    patch: int

    @property
    def layout(self) -> LatentLayout:
        return LatentLayout(self.latent_channels, self.patch)

    @property
    def pixels_per_token(self) -> int:
        return self.vae_stride * self.patch

    @property
    def token(self) -> str:
        """Content of a token, in words."""
        return f"{self.bits} bits a token"

    @property
    def logits(self) -> int:
        """Number of logits per token."""
        return 2 * self.bits

    @property
    def aspect_ratios(self) -> tuple[float, ...]:
        """Aspect ratios (height / width) that the model draws."""
        return tuple(TEMPLATES)

    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        return ScaleSchedule.of_size(self.size, aspect_ratio)


class VarEntry(_ModelEntry):
    """A class-conditional model that draws indices into a codebook, on the square grids it was trained on.

    Attributes:
        codes: number of entries of the codebook.
        classes: number of classes that can be drawn; the label `classes` is the unconditional one.
        grids: side of each scale's square token grid.
        phi_share: see `CodebookCodec`.
    """

    family: Literal["var"] = "var"
    codes: int
    classes: int
    grids: tuple[int, ...]
    phi_share: float

    @property
    def size(self) -> str:
        """Name of the schedule: the side of the images in pixels."""
        return f"{self.grids[-1] * self.vae_stride}px"

    @property
    def pixels_per_token(self) -> int:
        return self.vae_stride

    @property
    def token(self) -> str:
        return f"1 of {self.codes} codes a token"

    @property
    def logits(self) -> int:
        return self.codes

    @property
    def aspect_ratios(self) -> tuple[float, ...]:
        return (1.0,)

    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        if aspect_ratio != 1:
            raise ConfigError(
                f"{self.name} draws square images only, not height / width = {aspect_ratio:g}",
                hint="its positions are learned for its own grids; leave the aspect ratio out",
            )
        return ScaleSchedule.of_squares(self.grids)


ModelEntry = InfinityEntry | VarEntry


class Defaults(_Entry):
    """Settings of a request that does not choose its own."""

    guidance: float
    temperature: float
    top_k: int
    top_p: float


class Limits(_Entry):
    """Largest sizes that the engines were built for."""

    rows: int
    text_tokens: int
    tokens: int
    past: int


class QuantizedScales(_Entry):
    """Quantized last scales: the fewest last scales that together hold at least `share` of all tokens.

    They cost most, and decide least of an image. Their blocks compute in 8 bits, in graphs of the kind `late_blocks`.
    """

    precision: QuantizedPrecision
    share: float = Field(gt=0, lt=1)


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
        late: the quantized last scales, or None.
        digest: SHA-256 of all other fields; empty until `sealed` computes it.
    """

    schema_version: int
    model: ModelEntry = Field(discriminator="family")
    defaults: Defaults
    limits: Limits
    backend: Backend
    target: TargetEntry | None = None
    precision: Precision
    late: QuantizedScales | None = None  # the key of schema 3
    graphs: dict[str, GraphEntry]
    files: dict[str, FileEntry]
    sources: dict[str, str]
    toolchain: dict[str, str]
    has_text_encoder: bool
    digest: str = ""

    def computed_digest(self) -> str:
        """SHA-256 of the manifest without its digest field, in canonical JSON."""
        content = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def sealed(self) -> Manifest:
        return self.model_copy(update={"digest": self.computed_digest()})

    def chunks(self, kind: str) -> list[GraphEntry]:
        """Graphs of one kind, in the order of their blocks."""
        return sorted((graph for graph in self.graphs.values() if graph.kind == kind), key=lambda graph: graph.first)

    @property
    def cache_dtype(self) -> torch.dtype:
        """Element type of keys and values."""
        return getattr(torch, self._keys.dtype)

    @property
    def cache_tokens(self) -> int | None:
        """Number of positions of a static KV cache; None for a dynamic one."""
        size = self._keys.shape[2]
        return size if self.kv_cache == "static" and isinstance(size, int) else None

    @property
    def kv_cache(self) -> KvCacheKind:
        """Kind of the engines' KV cache, read from the names of their inputs."""
        return "static" if self._keys.name.startswith("cache_") else "dynamic"

    @property
    def has_fused_blocks(self) -> bool:
        """True if PyTorch compiles the blocks on the machine that loads them; see `engines/torch_compiled/fused`."""
        return Path(self.chunks("blocks")[0].file).name == FUSED_WEIGHTS

    @property
    def _keys(self) -> TensorEntry:
        """Input of the first blocks graph that holds its first layer's keys."""
        tensors = self.chunks("blocks")[0].inputs
        return next(tensor for tensor in tensors if tensor.name.startswith(("past_k_", "cache_k_")))

    @property
    def version(self) -> str:
        """Name of the version's folder."""
        return self.digest[:16]

    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        return self.model.schedule(aspect_ratio)

    def quantized_scales(self, schedule: ScaleSchedule) -> frozenset[int]:
        """Indices of the scales whose blocks compute in 8 bits."""
        return frozenset() if self.late is None else frozenset(schedule.detail_scales(self.late.share))

    def schedules(self) -> list[ScaleSchedule]:
        """Schedules of all aspect ratios that the bundle draws."""
        return [self.model.schedule(ratio) for ratio in self.model.aspect_ratios]

    def weight_bytes(self) -> int:
        """Total bytes of all graphs and their weights."""
        folders = {str(Path(graph.file).parent) for graph in self.graphs.values()}
        return sum(entry.size for name, entry in self.files.items() if str(Path(name).parent) in folders)
