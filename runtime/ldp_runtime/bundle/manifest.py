"""The bundle: a directory of engines and everything that they depend on, described by a manifest.

    OUTPUT/
      CURRENT                     name of the version that serves; replaced atomically
      versions/DIGEST/            hashed content, never changed
        manifest.json  constants.safetensors  tokenizer.json  reference/
        text_encoder/  prompt/  blocks/  late_blocks/  decoder/             one folder a graph, or a chunk of one
      reports/DIGEST.json         what `verify` found, on which machine

The manifest is read and checked before any engine is opened. Its digest covers every file's hash, so an edit by hand
is found.
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
from ldp_runtime.layout import LatentLayout
from ldp_runtime.schedule import TEMPLATES, ScaleSchedule

SCHEMA_VERSION = 3


#: Engine file of blocks that PyTorch compiles where they are loaded: their weights alone.
FUSED_WEIGHTS = "fused.safetensors"


#: Element type of the graphs' matrix products; what the original keeps in float32 is float32 in all of them.
Precision = Literal["float32", "bfloat16", "float16"]


#: Whether engines join the past with their new keys and values, or write these into a cache of a fixed size.
KvCacheKind = Literal["dynamic", "static"]


Backend = Literal["onnxruntime", "torch", "tensorrt", "tensorrt-rtx"]


#: Of the matrix products of `late_blocks`: 8-bit integers, or 8-bit floats of which 4 bits are exponent (E4M3).
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
    """One graph; `first` and `last` bound the blocks that a chunk serves. No profiles: it takes any size.

    Attributes:
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
        """Whether ONNX Runtime runs it."""
        return Path(self.file).suffix == ".onnx"


class _ModelEntry(_Entry):
    """A model's architecture, as far as the runtime needs it; the families add what is their own."""

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
        """A token in words."""
        return f"{self.bits} bits a token"

    @property
    def logits(self) -> int:
        """Logits of a token."""
        return 2 * self.bits

    @property
    def aspect_ratios(self) -> tuple[float, ...]:
        """height / width of what it draws."""
        return tuple(TEMPLATES)

    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        return ScaleSchedule.of_size(self.size, aspect_ratio)


class VarEntry(_ModelEntry):
    """A class-conditional model that draws indices into a codebook, on the square grids it was trained on.

    Attributes:
        codes: entries of the codebook; classes: that can be drawn, label `classes` is the unconditional one.
        grids: sides of the scales; phi_share: see `CodebookCodec`.
    """

    family: Literal["var"] = "var"
    codes: int
    classes: int
    grids: tuple[int, ...]
    phi_share: float

    @property
    def size(self) -> str:
        """Name of its schedule: the side of its images in pixels."""
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
    """What a request that does not say gets."""

    guidance: float
    temperature: float
    top_k: int
    top_p: float


class Limits(_Entry):
    """The largest sizes that the engines were built for."""

    rows: int
    text_tokens: int
    tokens: int
    past: int


class QuantizedScales(_Entry):
    """Late scales: the fewest last ones that hold `share` of all tokens. They cost most, and decide least of a picture.

    Their blocks compute in 8 bits; they are graphs of the kind `late_blocks`.
    """

    precision: QuantizedPrecision
    share: float = Field(gt=0, lt=1)


class TargetEntry(_Entry):
    """What compiled engines depend on beside their graphs.

    Attributes:
        library: version of the library that built them, which must be the one that runs them.
        compute_capabilities: of the GPUs that they run on, as "8.9".
        system: operating system and processor family, where engines hold their machine code.
        instructions: extensions of the processor that this code may use.
    """

    library: str
    compute_capabilities: tuple[str, ...]
    system: str = ""
    instructions: tuple[str, ...] = ()


class Manifest(_Entry):
    """Everything an engine depends on."""

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
        """The graphs of a kind, in the order of their blocks."""
        return sorted((graph for graph in self.graphs.values() if graph.kind == kind), key=lambda graph: graph.first)

    @property
    def cache_dtype(self) -> torch.dtype:
        """Element type of keys and values."""
        return getattr(torch, self._keys.dtype)

    @property
    def cache_tokens(self) -> int | None:
        """Positions of the cache that the engines write in place; None where they give new keys and values."""
        size = self._keys.shape[2]
        return size if self.kv_cache == "static" and isinstance(size, int) else None

    @property
    def kv_cache(self) -> KvCacheKind:
        """How the engines remember keys and values, as their signature says."""
        return "static" if self._keys.name.startswith("cache_") else "dynamic"

    @property
    def has_fused_blocks(self) -> bool:
        """Whether PyTorch compiles the blocks where they are loaded; see `engines/fused`."""
        return Path(self.chunks("blocks")[0].file).name == FUSED_WEIGHTS

    @property
    def _keys(self) -> TensorEntry:
        """The first layer's keys, as an input."""
        tensors = self.chunks("blocks")[0].inputs
        return next(tensor for tensor in tensors if tensor.name.startswith(("past_k_", "cache_k_")))

    @property
    def version(self) -> str:
        """Name of the version's folder."""
        return self.digest[:16]

    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        return self.model.schedule(aspect_ratio)

    def quantized_scales(self, schedule: ScaleSchedule) -> frozenset[int]:
        """The scales of an image whose blocks compute in 8 bits."""
        return frozenset() if self.late is None else frozenset(schedule.detail_scales(self.late.share))

    def schedules(self) -> list[ScaleSchedule]:
        """All that the bundle draws."""
        return [self.model.schedule(ratio) for ratio in self.model.aspect_ratios]

    def weight_bytes(self) -> int:
        """Bytes of all graphs with their weights."""
        folders = {str(Path(graph.file).parent) for graph in self.graphs.values()}
        return sum(entry.size for name, entry in self.files.items() if str(Path(name).parent) in folders)
