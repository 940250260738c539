"""The named models, as data: architecture, files on the hub, schedule and recommended settings."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ldp_runtime.bundle.manifest import Defaults
from ldp_runtime.errors import ConfigError
from ldp_runtime.schedule import TEMPLATES, ScaleSchedule
from ldp_runtime.token_layout import LatentLayout

from ldp_export.models.counts import Counts, counts_of
from ldp_export.models.hub_files import SINGLE_NAME, HubFiles, HubPart, PartName
from ldp_export.models.sizes import (
    ClipSizes,
    ClipTowersSizes,
    HartConfig,
    InfinityConfig,
    InfinityVaeConfig,
    Qwen2Sizes,
    SwittiConfig,
    VarConfig,
    VarVaeConfig,
    ffn_width,
)
from ldp_export.models.t5 import FLAN_T5_XL, T5Sizes

#: Sizes of what reads a text.
TextSizes = T5Sizes | ClipTowersSizes | Qwen2Sizes


@dataclass(frozen=True)
class NamedModel:
    """One named model of either family.

    Attributes:
        patch: latent positions along one side of a token (2 with patchify).
        size: name of the scale schedule; for VAR, whose schedule is part of its architecture, the pixels of a side.
        guidance, temperature, top_k, top_p: recommended settings, which become the bundle's defaults.
        licence: licence of the weights, as their publisher states it.
        hub: files on the hub; None if no hub holds them.
        policy: text of the policy that its bundle uses for requests that name none.
        embedded: True if the weights are part of this package.
        quantizes_on_gpu: True if PyTorch's fused blocks, which multiply 8-bit numbers on a GPU, know this family.
        released_text: sizes of the text encoder of this family's released models.
    """

    name: str
    title: str
    transformer: InfinityConfig | VarConfig | SwittiConfig | HartConfig
    vae: InfinityVaeConfig | VarVaeConfig
    patch: int = 1
    size: str = "1M"
    guidance: float = 4.0
    temperature: float = 1.0
    top_k: int = 900
    top_p: float = 0.97
    policy: str = "none"
    licence: str = "MIT"
    hub: HubFiles | None = None
    embedded: bool = field(default=False)
    family: ClassVar[str] = ""
    quantizes_on_gpu: ClassVar[bool] = False
    released_text: ClassVar[TextSizes] = FLAN_T5_XL

    @property
    def text_encoder(self) -> TextSizes | None:
        """Sizes of the hub's text encoder; None for class-conditional models and for models that no hub holds."""
        return self.released_text if self.hub is not None and self.hub.text_encoders else None

    @property
    def defaults(self) -> Defaults:
        """Settings of its bundle for requests that leave them out."""
        return Defaults(
            guidance=self.guidance,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            policy=self.policy,
        )

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest text; 0 for class-conditional models."""
        return 0

    @property
    def schedules(self) -> tuple[ScaleSchedule, ...]:
        """Scale schedules of all image sizes that it draws, the square one first."""
        return self.schedules_of(self.size)

    def schedules_of(self, size: str) -> tuple[ScaleSchedule, ...]:
        """Scale schedules of all shapes of a size, the square one first."""
        return tuple(ScaleSchedule.of_size(size, ratio) for ratio in TEMPLATES)

    @property
    def counts(self) -> Counts | None:
        """Counted weights, if this is the architecture of the registry's model of this name."""
        named = MODELS.get(self.name)
        same = named is not None and (named.transformer, named.vae) == (self.transformer, self.vae)
        return counts_of(self.name) if same else None

    @property
    def parameters(self) -> int:
        """Parameters of the transformer and the VAE (the text encoder not counted)."""
        if self.counts is not None:
            return self.counts.transformer + self.counts.vae
        from ldp_export.models.choose import count_parameters

        return count_parameters(self.transformer) + count_parameters(self.vae)

    def run_bytes(self, element: int = 2) -> int:
        """Least memory in bytes for drawing one guided image: all weights, and the KV cache of both branches.

        Args:
            element: bytes of one number: 2 for bfloat16, 4 for float32.
        """
        encoder = self.text_encoder
        return element * (self.parameters + (encoder.encoder_parameters if encoder else 0) + self._cached)

    @property
    def _cached(self) -> int:
        """Numbers in the KV cache of both branches."""
        past = max(schedule.offsets[-2] for schedule in self.schedules)
        return 2 * 2 * self.transformer.depth * past * self.transformer.width


@dataclass(frozen=True)
class InfinitySpec(NamedModel):
    """A model of the Infinity family, which turns text into bits."""

    transformer: InfinityConfig
    vae: InfinityVaeConfig
    family: ClassVar[str] = "infinity"
    quantizes_on_gpu: ClassVar[bool] = True

    @property
    def layout(self) -> LatentLayout:
        return LatentLayout(self.vae.bits, self.patch)

    @property
    def text_tokens(self) -> int:
        return self.transformer.text_tokens


@dataclass(frozen=True)
class VarSpec(NamedModel):
    """A model of the VAR family, from classes to codebook indices; its only schedule is part of its architecture."""

    transformer: VarConfig
    vae: VarVaeConfig
    family: ClassVar[str] = "var"

    @property
    def layout(self) -> LatentLayout:
        return LatentLayout(self.vae.channels)

    def schedules_of(self, size: str) -> tuple[ScaleSchedule, ...]:
        return (self.transformer.schedule,)


#: Scale from which the original's demos draw without guidance, by number of scales.
_FIRST_UNGUIDED = {10: 8, 14: 11}
#: CLIP-L and OpenCLIP bigG.
_CLIP_TOWERS = ClipTowersSizes(
    ClipSizes(layers=12, width=768, heads=12, ffn=3072, vocabulary=49408),
    ClipSizes(layers=32, width=1280, heads=20, ffn=5120, vocabulary=49408, activation="gelu"),
)


@dataclass(frozen=True)
class SwittiSpec(NamedModel):
    """A model of the Switti family, from texts to codebook indices, with the settings of the original's demos.

    Attributes:
        temperature: of the scales after guidance has ended.
        first_guided, more_smooth, first_smooth: see `SwittiEntry`.
    """

    transformer: SwittiConfig
    vae: VarVaeConfig
    guidance: float = 6.0
    temperature: float = 0.1
    top_k: int = 400
    top_p: float = 0.95
    first_guided: int = 0
    more_smooth: bool = True
    first_smooth: int = 2
    family: ClassVar[str] = "switti"
    released_text: ClassVar[TextSizes] = _CLIP_TOWERS

    @property
    def _cached(self) -> int:
        return super()._cached if self.transformer.keeps_past else 0

    @property
    def first_unguided(self) -> int:
        """Scale at which guidance ends."""
        schedule = self.transformer.schedule
        return _FIRST_UNGUIDED.get(len(schedule), schedule.detail_scales()[0])

    @property
    def layout(self) -> LatentLayout:
        return LatentLayout(self.vae.channels)

    @property
    def text_tokens(self) -> int:
        return self.transformer.text_tokens

    def schedules_of(self, size: str) -> tuple[ScaleSchedule, ...]:
        return (self.transformer.schedule,)


#: Text stack of Qwen2-VL-1.5B-Instruct.
_QWEN2_TEXT = Qwen2Sizes(layers=28, width=1536, heads=12, kv_heads=2, ffn=8960, vocabulary=151936, rope_theta=1000000.0)


@dataclass(frozen=True)
class HartSpec(NamedModel):
    """A model of the HART family, from texts to codebook indices, with the settings of the original's demos.

    Attributes:
        late_top_k, first_late, more_smooth: see `HartEntry`.
    """

    transformer: HartConfig
    vae: VarVaeConfig
    guidance: float = 4.5
    top_k: int = 600
    top_p: float = 0.0
    late_top_k: int = 300
    first_late: int = 7
    more_smooth: bool = True
    family: ClassVar[str] = "hart"
    released_text: ClassVar[TextSizes] = _QWEN2_TEXT

    @property
    def layout(self) -> LatentLayout:
        return LatentLayout(self.vae.channels)

    @property
    def text_tokens(self) -> int:
        return self.transformer.text_tokens

    def schedules_of(self, size: str) -> tuple[ScaleSchedule, ...]:
        return (self.transformer.schedule,)


def _infinity(depth: int, width: int, heads: int, bits: int, chunks: int) -> InfinityConfig:
    """Sizes of an Infinity transformer with flan-t5-xl's text channels and the original number of pooling heads."""
    text_channels = 2048
    pool_heads = text_channels // (64 if width > 4096 else 128)
    return InfinityConfig(
        depth=depth,
        width=width,
        heads=heads,
        ffn=ffn_width(width),
        bits=bits,
        text_channels=text_channels,
        pool_heads=pool_heads,
        chunks=chunks,
    )


_STRIDE_16 = (1, 2, 4, 4, 4)
_VAE_D16 = InfinityVaeConfig(bits=16, channel_multipliers=_STRIDE_16)
_VAE_D32 = InfinityVaeConfig(bits=32, channel_multipliers=_STRIDE_16)
_VAE_D56 = InfinityVaeConfig(bits=14, channel_multipliers=(1, 2, 4, 4), stride=8)
_VAR_VAE = VarVaeConfig()
_HUB = "FoundationVision/Infinity"
#: Bytes of a BSQ VAE file: 440 MB are the VAE, the rest was used only in training.
_VAE_FILE = 1_560_000_000
_BESIDE_TEXT = ("config.json", "tokenizer.json")
T5_FILES = HubPart(
    "text_encoder",
    "google/flan-t5-xl",
    revision="7d6315df2c2fb742f0f5b556879d730926ca9001",
    beside=_BESIDE_TEXT,
    folder="text_encoder",
    licence="Apache-2.0",
)
#: Both repositories hold whole CLIP models, towers of pictures included.
_CLIP = (
    HubPart(
        "text_encoder",
        "openai/clip-vit-large-patch14",
        beside=_BESIDE_TEXT,
        folder="text_encoder",
        bytes=1_710_000_000,
        licence="MIT",
    ),
    HubPart(
        "text_encoder_2",
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        beside=_BESIDE_TEXT,
        folder="text_encoder_2",
        bytes=10_160_000_000,
        licence="MIT",
    ),
)


def infinity_hub(
    transformer: str,
    vae: str,
    revision: str = "main",
    repository: str = _HUB,
    text_encoder: HubPart = T5_FILES,
    vae_bytes: int | None = _VAE_FILE,
) -> HubFiles:
    """Files of an Infinity model: transformer and VAE from one repository, the text encoder from another."""
    return HubFiles(
        (
            HubPart("transformer", repository, transformer, revision),
            HubPart("vae", repository, vae, revision, bytes=vae_bytes),
            text_encoder,
        )
    )


def _var_hub(depth: int, revision: str) -> HubFiles:
    names: tuple[tuple[PartName, str], ...] = (("transformer", f"var_d{depth}.pth"), ("vae", "vae_ch160v4096z32.pth"))
    return HubFiles(tuple(HubPart(part, "FoundationVision/var", name, revision) for part, name in names))


def _switti_hub(name: str) -> HubFiles:
    """Files of a Switti model; its `config.json` names the heads and the rotary settings."""
    return HubFiles(
        (
            HubPart("transformer", f"yresearch/{name}", SINGLE_NAME, beside=("config.json",), folder=name),
            HubPart("vae", "yresearch/VQVAE-Switti", SINGLE_NAME, folder="VQVAE-Switti"),
            *_CLIP,
        )
    )


_HART = "mit-han-lab/hart-0.7b-1024px"
#: The averages of training are what the original draws with. No file of the repositories could be listed here.
_HART_HUB = HubFiles(
    (
        HubPart("transformer", _HART, "llm/ema_model.bin", beside=("llm/config.json",), folder="hart"),
        HubPart("vae", _HART, "tokenizer/model.safetensors", folder="hart"),
        HubPart(
            "text_encoder",
            "mit-han-lab/Qwen2-VL-1.5B-Instruct",
            beside=(*_BESIDE_TEXT, "tokenizer_config.json"),
            folder="text_encoder",
            licence="Apache-2.0",
        ),
    )
)


def _var(depth: int, pixels: int = 256, revision: str = "6d0ee6598a42f75079aa79e58b012b57b284c91b") -> VarSpec:
    """A VAR model sized by the original code's rules: width 64 per block; at 512 pixels all blocks share one AdaLN."""
    width = 64 * depth
    config = VarConfig(depth, width, heads=depth, ffn=4 * width)
    if pixels == 512:
        config = replace(config, grids=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32), shared_ada=True)
    return VarSpec(
        f"var-d{depth}",
        f"VAR-d{depth}, ImageNet classes, {pixels}x{pixels}",
        config,
        _VAR_VAE,
        size=f"{pixels}px",
        guidance=4.0,
        top_p=0.95,
        hub=_var_hub(depth, revision),
    )


#: Released models, by their names on the hub, and the pixels of a side.
_SWITTI = {"Switti": 512, "Switti-AR": 512, "Switti-1024": 1024, "Switti-1024-AR": 1024}
_SWITTI_GRIDS = {
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}


def _switti(name: str, pixels: int) -> SwittiSpec:
    keeps_past = name.endswith("-AR")
    config = SwittiConfig(30, 1920, heads=30, ffn=5120, grids=_SWITTI_GRIDS[pixels], keeps_past=keeps_past)
    title = f"Switti{', autoregressive' if keeps_past else ''}, {pixels}x{pixels}"
    return SwittiSpec(
        name.lower(), title, config, _VAR_VAE, size=f"{pixels}px", licence="Apache-2.0", hub=_switti_hub(name)
    )


def _unreleased(name: str, depth: int, width: int, heads: int, chunks: int = 4) -> InfinitySpec:
    title = f"Infinity, {depth} blocks of width {width} (configuration of the original code, never released)"
    return InfinitySpec(name, title, _infinity(depth, width, heads, 32, chunks), _VAE_D32)


_SPECS = (
    InfinitySpec(
        "infinity-shapes",
        "coloured shapes at 128x128: small, trained by this project, part of the package",
        InfinityConfig(
            depth=6, width=256, heads=4, ffn=1024, bits=16, text_channels=256, pool_heads=2, text_tokens=512, chunks=2
        ),
        InfinityVaeConfig(bits=16, base_channels=48, channel_multipliers=(1, 1, 1, 2), res_blocks=1, stride=8),
        size="0.06M",
        guidance=2.0,
        temperature=0.7,
        top_k=0,
        top_p=0.97,
        licence="Apache-2.0",
        embedded=True,
    ),
    InfinitySpec(
        "infinity-2b",
        "Infinity-2B, 1024x1024",
        _infinity(32, 2048, 16, 32, 8),
        _VAE_D32,
        guidance=4.0,
        temperature=0.5,
        hub=infinity_hub("infinity_2b_reg.pth", "infinity_vae_d32reg.pth"),
    ),
    InfinitySpec(
        "infinity-8b",
        "Infinity-8B, 1024x1024",
        _infinity(40, 3584, 28, 56, 8),
        _VAE_D56,
        patch=2,
        guidance=3.0,
        hub=infinity_hub("infinity_8b_weights", "infinity_vae_d56_f8_14_patchify.pth"),
    ),
    InfinitySpec(
        "infinity-8b-512",
        "Infinity-8B, 512x512",
        _infinity(40, 3584, 28, 56, 8),
        _VAE_D56,
        patch=2,
        size="0.25M",
        guidance=3.0,
        hub=infinity_hub("infinity_8b_512x512_weights", "infinity_vae_d56_f8_14_patchify.pth"),
    ),
    InfinitySpec(
        "infinity-125m",
        "Infinity-125M, 256x256",
        _infinity(12, 768, 8, 16, 4),
        _VAE_D16,
        size="0.06M",
        hub=infinity_hub(
            "infinity_125M_256x256.pth", "infinity_vae_d16.pth", "d4c15777e41bd36eb8eef5a854b018d19962b6d9"
        ),
    ),
    *(_var(depth) for depth in (16, 20, 24, 30)),
    # No commit is known to hold this file, so the revision is the branch.
    _var(36, 512, "main"),
    *(_switti(name, pixels) for name, pixels in _SWITTI.items()),
    HartSpec(
        "hart-0.7b",
        "HART 0.7B, 1024x1024",
        HartConfig(24, 1536, heads=24, ffn=4096),
        _VAR_VAE,
        size="1024px",
        hub=_HART_HUB,
    ),
    _unreleased("infinity-layer16", 16, 1152, 12),
    _unreleased("infinity-layer24", 24, 1536, 16),
    _unreleased("infinity-layer32", 32, 2080, 20),
    _unreleased("infinity-layer40", 40, 2688, 24),
    _unreleased("infinity-layer48", 48, 3360, 28),
    # 58 blocks do not divide into the four chunks that the original code asks for, but they do into two.
    _unreleased("infinity-20b", 58, 4608, 36, chunks=2),
)

#: A model of any family.
AnySpec = InfinitySpec | VarSpec | SwittiSpec | HartSpec
MODELS: dict[str, AnySpec] = {spec.name: spec for spec in _SPECS}
DEFAULT_MODEL = "infinity-shapes"


def find_model(name: str) -> AnySpec:
    """Model of that name. Raises ConfigError, which suggests the nearest names."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(f"unknown model {name!r}", hint=hint + "`ldp-export models` lists all of them")
