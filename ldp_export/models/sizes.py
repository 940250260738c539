"""Sizes of the models, as data: without PyTorch, so that listings answer at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ldp_runtime.errors import ConfigError
from ldp_runtime.schedule import ScaleSchedule


def ffn_width(width: int, mlp_ratio: float = 4.0) -> int:
    """Hidden width of the feed-forward layer: a multiple of 256, rounded half to even as the originals do."""
    return round(width * mlp_ratio / 256) * 256


@dataclass(frozen=True)
class InfinityConfig:
    """Sizes of the transformer.

    Attributes:
        depth: number of blocks.
        width: C, channels of a token.
        heads: attention heads H of the blocks; each has C / H channels (`head_dim`).
        ffn: hidden width of the feed-forward layers.
        bits: bits per token (the VAE's d, or 4 d with 2x2 patchify).
        text_channels: channels of the text features.
        text_tokens: longest text, and number of unconditional text rows.
        levels: number of scale embeddings.
        pool_heads: heads of the attention that pools the text into the start token (not H).
        chunks: block chunks of the original checkpoint layout; they affect the names of weights only.
    """

    depth: int
    width: int
    heads: int
    ffn: int
    bits: int
    text_channels: int = 2048
    text_tokens: int = 512
    levels: int = 15
    pool_heads: int = 16
    chunks: int = 1
    norm_eps: float = 1e-6
    crosses_text: ClassVar[bool] = True
    ffn_matrices: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ConfigError(
                f"width {self.width} over {self.heads} heads must give a head dimension divisible by 4",
                hint="choose a width that is a multiple of four times the heads",
            )
        if self.width % self.pool_heads:
            raise ConfigError(
                f"width {self.width} is not divisible by {self.pool_heads} pooling heads",
                hint="choose a width that is a multiple of the pooling heads",
            )
        if self.depth % self.chunks:
            raise ConfigError(
                f"depth {self.depth} is not divisible by {self.chunks} block chunks",
                hint="choose a depth that the chunks divide, or one chunk",
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def summary(self) -> str:
        """Sizes in words, which tell models apart."""
        return f"{self.depth} blocks of width {self.width} and {self.bits} bits a token"

    def resized(self, depth: int, width: int) -> InfinityConfig:
        """The same architecture with another number of blocks and channels: heads of the same size, one chunk."""
        heads = width // self.head_dim
        sizes = {"heads": heads, "ffn": ffn_width(width), "pool_heads": heads, "chunks": 1}
        return replace(self, depth=depth, width=width, **sizes)


@dataclass(frozen=True)
class InfinityVaeConfig:
    """Sizes of the VAE.

    Attributes:
        bits: d, channels of the latent, one bit each.
        base_channels: width at full resolution.
        channel_multipliers: width of each resolution level over `base_channels`, fine to coarse.
        res_blocks: residual blocks of an encoder level; a decoder level has one more.
        stride: pixels per latent position along one side, a power of two.
    """

    bits: int
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    res_blocks: int = 2
    stride: int = 16

    def __post_init__(self) -> None:
        if self.stride < 1 or self.stride & (self.stride - 1):
            raise ConfigError(
                f"the VAE's stride must be a power of two, got {self.stride}",
                hint="8 or 16, as the released models have",
            )
        if len(self.channel_multipliers) <= self.halvings:
            raise ConfigError(
                f"stride {self.stride} needs at least {self.halvings + 1} levels, got {self.channel_multipliers}",
                hint="give a multiplier for each halving of the resolution, and one more",
            )

        uneven = [width for width in self.widths if width % 32 and width % 24]
        if uneven:
            raise ConfigError(
                f"widths {uneven} do not divide into the 32 (or 24) groups of the VAE's normalisation",
                hint="choose widths that are multiples of 32, or of 24",
            )

    @property
    def halvings(self) -> int:
        return self.stride.bit_length() - 1

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.base_channels * m for m in self.channel_multipliers)


@dataclass(frozen=True)
class VarConfig:
    """Sizes of the transformer.

    Attributes:
        grids: sides of the square scales (`patch_nums`); the position embeddings are learned for exactly these.
        codes: size of the codebook.
        channels: channels of a code.
        classes: number of classes; label `classes` is the unconditional one.
        shared_ada: True if all blocks share one AdaLN, with an offset per block (d36).
    """

    depth: int
    width: int
    heads: int
    ffn: int
    codes: int = 4096
    channels: int = 32
    classes: int = 1000
    grids: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    shared_ada: bool = False
    norm_eps: float = 1e-6
    crosses_text: ClassVar[bool] = False
    ffn_matrices: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"width {self.width} does not divide into {self.heads} heads",
                hint="choose a width that is a multiple of the heads",
            )

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.of_squares(self.grids)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def summary(self) -> str:
        """Sizes in words, which tell models apart."""
        grids = " ".join(map(str, self.grids))
        return f"{self.depth} blocks of width {self.width}, {self.codes} codes, and grids of sides {grids}"

    def resized(self, depth: int, width: int) -> VarConfig:
        """The same architecture with another number of blocks and channels, and heads of the same size."""
        sizes = {"heads": width // self.head_dim, "ffn": self.ffn * width // self.width}
        return replace(self, depth=depth, width=width, **sizes)


@dataclass(frozen=True)
class SwittiConfig:
    """Sizes of the transformer.

    Attributes:
        grids: sides of the square scales.
        codes: size of the codebook.
        channels: channels of a code.
        text_channels: channels of the text features: those of both text towers, one after the other.
        pooled_channels: channels of the pooled text, of the second tower alone.
        text_tokens: tokens of every text; shorter ones are masked.
        keeps_past: True if scales see the keys and values of earlier ones (the autoregressive variant).
        rope_theta, rope_size: base of the rotary angles, and the position of a scale's last row and column.
        crop: height, width, top and left of the crop that the model is told of.
    """

    depth: int
    width: int
    heads: int
    ffn: int
    codes: int = 4096
    channels: int = 32
    text_channels: int = 2048
    pooled_channels: int = 1280
    text_tokens: int = 77
    grids: tuple[int, ...] = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    keeps_past: bool = False
    rope_theta: float = 10000.0
    rope_size: int = 128
    crop: tuple[int, int, int, int] = (512, 512, 0, 0)
    norm_eps: float = 1e-6
    crosses_text: ClassVar[bool] = True
    ffn_matrices: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 4 or self.width % 8:
            raise ConfigError(
                f"width {self.width} over {self.heads} heads must give a head dimension divisible by 4",
                hint="choose a width that is a multiple of 8, and of four times the heads",
            )
        if self.pooled_channels >= self.text_channels:
            raise ConfigError(
                f"{self.pooled_channels} of the {self.text_channels} text channels are pooled, which leaves the first "
                "text tower none",
                hint="the text features are those of both text towers; the pooled vector is of the second alone",
            )

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.of_squares(self.grids)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def summary(self) -> str:
        """Sizes in words, which tell models apart."""
        grids, kind = " ".join(map(str, self.grids)), "all scales so far" if self.keeps_past else "one scale"
        return (
            f"{self.depth} blocks of width {self.width} that see {kind}, {self.codes} codes, and grids of sides {grids}"
        )

    def resized(self, depth: int, width: int) -> SwittiConfig:
        """The same architecture with another number of blocks and channels, and heads of the same size."""
        sizes = {"heads": width // self.head_dim, "ffn": self.ffn * width // self.width}
        return replace(self, depth=depth, width=width, **sizes)


@dataclass(frozen=True)
class HartConfig:
    """Sizes of the transformer.

    Attributes:
        grids: sides of the square scales.
        codes: size of the codebook.
        channels: channels of a code.
        text_channels: channels of the text features.
        text_tokens: rows of every text; shorter ones are padded, and the padding is read.
        residual_width, residual_depth: channels and blocks of the residual head.
        residual_steps: steps in which the residual of the last scale is denoised.
    """

    depth: int
    width: int
    heads: int
    ffn: int
    codes: int = 4096
    channels: int = 32
    text_channels: int = 1536
    text_tokens: int = 300
    grids: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
    residual_width: int = 1024
    residual_depth: int = 6
    residual_steps: int = 8
    norm_eps: float = 1e-6
    crosses_text: ClassVar[bool] = False
    ffn_matrices: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ConfigError(
                f"width {self.width} over {self.heads} heads must give a head dimension divisible by 4",
                hint="choose a width that is a multiple of four times the heads",
            )
        if len(self.grids) < 2 or self.grids[0] != 1 or self.text_tokens < 2 or self.residual_steps < 2:
            raise ConfigError(
                f"grids {self.grids}, {self.text_tokens} rows of text and {self.residual_steps} steps are none of HART",
                hint="the first of several grids is one token, behind at least two rows of text; steps are 2 or more",
            )

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.of_squares(self.grids)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def summary(self) -> str:
        """Sizes in words, which tell models apart."""
        grids = " ".join(map(str, self.grids))
        return (
            f"{self.depth} blocks of width {self.width} behind {self.text_tokens} rows of text, {self.codes} codes, "
            f"and grids of sides {grids}"
        )

    def resized(self, depth: int, width: int) -> HartConfig:
        """The same architecture with another number of blocks and channels, and heads of the same size."""
        sizes = {"heads": width // self.head_dim, "ffn": self.ffn * width // self.width}
        return replace(self, depth=depth, width=width, **sizes)


@dataclass(frozen=True)
class ClipSizes:
    """Sizes of a CLIP text tower.

    Attributes:
        layers, width, heads, ffn, vocabulary: the usual sizes of a transformer.
        positions: tokens of the longest text.
        activation: "quick_gelu" or "gelu".
    """

    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int = 77
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"width {self.width} does not divide into {self.heads} heads",
                hint="choose a width that is a multiple of the heads",
            )

    @property
    def parameters(self) -> int:
        layer = 4 * self.width * (self.width + 1) + 2 * self.width * self.ffn + self.ffn + 5 * self.width
        return (self.vocabulary + self.positions) * self.width + self.layers * layer + 2 * self.width


@dataclass(frozen=True)
class ClipTowersSizes:
    """Sizes of both text towers of Switti, of which a build takes everything but the projections."""

    clip_l: ClipSizes
    clip_bigg: ClipSizes

    @property
    def encoder_parameters(self) -> int:
        """Number of parameters of both towers."""
        return sum(tower.parameters for tower in (self.clip_l, self.clip_bigg))

    @property
    def encoder_islands(self) -> int:
        """Number of the weights that stay float32: those of the normalizations."""
        return sum((2 * tower.layers + 1) * 2 * tower.width for tower in (self.clip_l, self.clip_bigg))

    @property
    def parameters(self) -> int:
        return self.encoder_parameters


@dataclass(frozen=True)
class Qwen2Sizes:
    """Sizes of a Qwen2 text stack: the usual ones of a transformer whose queries share keys and values in groups."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_dim % 2 or self.heads % self.kv_heads:
            raise ConfigError(
                f"width {self.width} does not divide into {self.heads} even heads in {self.kv_heads} groups",
                hint="the configuration is of another model than Qwen2",
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def encoder_parameters(self) -> int:
        """Number of parameters, the table of tokens included."""
        C, shared = self.width, self.kv_heads * self.head_dim
        attention = 2 * C * C + C + 2 * (C + 1) * shared
        return self.vocabulary * C + C + self.layers * (attention + 3 * C * self.ffn + 2 * C)

    @property
    def encoder_islands(self) -> int:
        """Number of the weights that stay float32: those of the normalizations."""
        return (2 * self.layers + 1) * self.width

    @property
    def parameters(self) -> int:
        return self.encoder_parameters


@dataclass(frozen=True)
class VarVaeConfig:
    """Sizes of the VAE.

    Attributes:
        codes: number of entries of the codebook.
        channels: channels of a code and of the latent.
        base_channels, channel_multipliers, res_blocks: see `InfinityVaeConfig`; every level but the last halves the
            resolution.
        phis: number of shared phi convolutions.
        phi_share: share of the convolution in phi(h) = (1 - w) h + w conv(h).
    """

    codes: int = 4096
    channels: int = 32
    base_channels: int = 160
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    phis: int = 4
    phi_share: float = 0.5

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)
