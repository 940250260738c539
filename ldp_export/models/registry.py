"""The named models, as data: architecture, files on the hub, schedule and recommended settings."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from ldp_runtime.errors import ConfigError
from ldp_runtime.residual import LatentLayout

from ldp_export.models.bsq_vae import VaeConfig
from ldp_export.models.infinity import InfinityConfig, ffn_width


@dataclass(frozen=True)
class HubFiles:
    """Where a model's files are published.

    Attributes:
        repository, revision: of the transformer and the VAE.
        transformer: a file, or a folder of shards with its index file.
        vae: a file.
        text_encoder: repository of the T5 encoder and its tokenizer.
    """

    repository: str
    transformer: str
    vae: str
    text_encoder: str = "google/flan-t5-xl"
    revision: str = "main"


@dataclass(frozen=True)
class ModelSpec:
    """One named model.

    Attributes:
        patch: latents per token side (2 with patchify).
        size: name of its scale schedule.
        guidance, temperature, top_k, top_p: recommended settings, the bundle's defaults.
        hub: None for models that no hub holds.
        embedded: its weights are part of this package.
    """

    name: str
    title: str
    transformer: InfinityConfig
    vae: VaeConfig
    patch: int = 1
    size: str = "1M"
    guidance: float = 4.0
    temperature: float = 1.0
    top_k: int = 900
    top_p: float = 0.97
    licence: str = "MIT"
    hub: HubFiles | None = None
    embedded: bool = field(default=False)

    @property
    def layout(self) -> LatentLayout:
        return LatentLayout(self.vae.bits, self.patch)

    @property
    def parameters(self) -> int:
        """Parameters of the transformer and the VAE (the text encoder not counted)."""
        import torch

        from ldp_export.models.bsq_vae import BsqVae
        from ldp_export.models.infinity import InfinityTransformer

        with torch.device("meta"):
            models = (InfinityTransformer(self.transformer), BsqVae(self.vae))
        return sum(p.numel() for model in models for p in model.parameters())


def _infinity(depth: int, width: int, heads: int, bits: int, chunks: int) -> InfinityConfig:
    """An Infinity transformer with flan-t5-xl's text channels; the pooling heads are the originals' rule."""
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
_VAE_D16 = VaeConfig(bits=16, channel_multipliers=_STRIDE_16)
_VAE_D32 = VaeConfig(bits=32, channel_multipliers=_STRIDE_16)
_VAE_D56 = VaeConfig(bits=14, channel_multipliers=(1, 2, 4, 4), stride=8)
_HUB = "FoundationVision/Infinity"


def _unreleased(name: str, depth: int, width: int, heads: int, chunks: int = 4) -> ModelSpec:
    title = f"Infinity, {depth} blocks of width {width} (configuration of the original code, never released)"
    return ModelSpec(name, title, _infinity(depth, width, heads, 32, chunks), _VAE_D32)


_SPECS = (
    ModelSpec(
        "infinity-shapes",
        "coloured shapes at 128x128: small, trained by this project, part of the package",
        InfinityConfig(
            depth=6, width=256, heads=4, ffn=1024, bits=16, text_channels=256, pool_heads=2, text_tokens=512, chunks=2
        ),
        VaeConfig(bits=16, base_channels=48, channel_multipliers=(1, 1, 1, 2), res_blocks=1, stride=8),
        size="0.06M",
        guidance=2.0,
        temperature=0.7,
        top_k=0,
        top_p=0.97,
        licence="Apache-2.0",
        embedded=True,
    ),
    ModelSpec(
        "infinity-2b",
        "Infinity-2B, 1024x1024",
        _infinity(32, 2048, 16, 32, 8),
        _VAE_D32,
        guidance=4.0,
        temperature=0.5,
        hub=HubFiles(_HUB, "infinity_2b_reg.pth", "infinity_vae_d32reg.pth"),
    ),
    ModelSpec(
        "infinity-8b",
        "Infinity-8B, 1024x1024",
        _infinity(40, 3584, 28, 56, 8),
        _VAE_D56,
        patch=2,
        guidance=3.0,
        hub=HubFiles(_HUB, "infinity_8b_weights", "infinity_vae_d56_f8_14_patchify.pth"),
    ),
    ModelSpec(
        "infinity-8b-512",
        "Infinity-8B, 512x512",
        _infinity(40, 3584, 28, 56, 8),
        _VAE_D56,
        patch=2,
        size="0.25M",
        guidance=3.0,
        hub=HubFiles(_HUB, "infinity_8b_512x512_weights", "infinity_vae_d56_f8_14_patchify.pth"),
    ),
    ModelSpec(
        "infinity-125m",
        "Infinity-125M, 256x256",
        _infinity(12, 768, 8, 16, 4),
        _VAE_D16,
        size="0.06M",
        hub=HubFiles(_HUB, "infinity_125M_256x256.pth", "infinity_vae_d16.pth"),
    ),
    _unreleased("infinity-layer16", 16, 1152, 12),
    _unreleased("infinity-layer24", 24, 1536, 16),
    _unreleased("infinity-layer32", 32, 2080, 20),
    _unreleased("infinity-layer40", 40, 2688, 24),
    _unreleased("infinity-layer48", 48, 3360, 28),
    # 58 blocks do not divide into the four chunks the original code asks for; two do.
    _unreleased("infinity-20b", 58, 4608, 36, chunks=2),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
DEFAULT_MODEL = "infinity-shapes"


def find_model(name: str) -> ModelSpec:
    """A model by its name. Raises ConfigError that names the nearest ones."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(f"unknown model {name!r}", hint=hint + "`ldp-export models` lists all of them")
