"""VAR's image tokenizer: a convolutional VAE with one codebook for all scales and `phi` convolutions between them.

Parameter names are the original checkpoints' names.
"""

from __future__ import annotations

from typing import cast

import torch
from ldp_runtime.families.var import phi_index
from ldp_runtime.schedule import Grid, ScaleSchedule
from torch import nn
from torch.nn import functional as F

from ldp_export.models.infinity_vae import Downsample, ResBlock, Upsample, norm
from ldp_export.models.layers import Conv2d
from ldp_export.models.sizes import VarVaeConfig


class SpatialAttention(nn.Module):
    """Single-head attention over all positions, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = Conv2d(channels, 3 * channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, C, H, W]
        q, k, v = (t.flatten(2).transpose(1, 2)[:, None] for t in self.qkv(self.norm(x)).chunk(3, dim=1))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(out.transpose(1, 2).view_as(x))


class _Level(nn.Module):
    """Blocks of one resolution, each followed by attention at the lowest resolution."""

    def __init__(
        self, sizes: tuple[int, int], count: int, attention: bool, resample: nn.Module | None, name: str
    ) -> None:
        super().__init__()
        in_channels, out_channels = sizes
        self.block = nn.ModuleList(
            ResBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(count)
        )
        self.attn = nn.ModuleList(SpatialAttention(out_channels) for _ in range(count if attention else 0))
        self._resample = name if resample is not None else None
        if resample is not None:
            self.add_module(name, resample)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x if self._resample is None else self.get_submodule(self._resample)(x)


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = SpatialAttention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Encoder(nn.Module):
    def __init__(self, config: VarVaeConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            _Level(
                (widths[l - 1] if l else config.base_channels, width),
                config.res_blocks,
                l == last,
                None if l == last else Downsample(width),
                "downsample",
            )
            for l, width in enumerate(widths)
        )
        self.mid = _Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = Conv2d(widths[-1], config.channels, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class _Decoder(nn.Module):
    def __init__(self, config: VarVaeConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = Conv2d(config.channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        self.up = nn.ModuleList(
            _Level(
                (widths[min(last, l + 1)], width),
                config.res_blocks + 1,
                l == last,
                None if l == 0 else Upsample(width),
                "upsample",
            )
            for l, width in enumerate(widths)
        )
        self.norm_out = norm(widths[0])
        self.conv_out = Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Phis(nn.Module):
    def __init__(self, config: VarVaeConfig) -> None:
        super().__init__()
        convolutions = (Conv2d(config.channels, config.channels, 3, padding=1) for _ in range(config.phis))
        self.qresi_ls = nn.ModuleList(convolutions)


class _Quantizer(nn.Module):
    def __init__(self, config: VarVaeConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codes, config.channels)
        self.quant_resi = _Phis(config)


class VarVae(nn.Module):
    """Encoder, codebook with its phi convolutions, and decoder."""

    def __init__(self, config: VarVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        self.quant_conv = Conv2d(config.channels, config.channels, 3, padding=1)
        self.post_quant_conv = Conv2d(config.channels, config.channels, 3, padding=1)
        self.quantize = _Quantizer(config)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Image [B, 3, H, W] in [-1, 1] to a continuous latent [B, C, H/stride, W/stride]."""
        return self.quant_conv(self.encoder(image))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Accumulated latent to an image [B, 3, H, W], clamped to [-1, 1]."""
        return self.decoder(self.post_quant_conv(latent)).clamp(-1, 1)

    @property
    def phis(self) -> list[Conv2d]:
        """The shared phi convolutions as a typed list."""
        return cast(list[Conv2d], list(self.quantize.quant_resi.qresi_ls))

    def codes(self, indices: torch.Tensor) -> torch.Tensor:
        """Codebook entries [..., C] of indices [...]."""
        return self.quantize.embedding(indices)

    def residual(self, codes: torch.Tensor, grid: Grid, scale: int, scales: int) -> torch.Tensor:
        """Contribution of a scale to the latent: codes [B, C, h, w], resized bicubically to `grid`, through its phi."""
        if tuple(codes.shape[-2:]) != tuple(grid):
            codes = F.interpolate(codes, size=grid, mode="bicubic")
        convolution = self.phis[phi_index(scale, scales, self.config.phis)]
        w = self.config.phi_share
        return codes * (1 - w) + convolution(codes) * w


def quantize(vae: VarVae, latent: torch.Tensor, schedule: ScaleSchedule) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Multi-scale residual quantization of an encoded image.

    Returns:
        Indices [B, h*w] of every scale, and the accumulated latent [B, C, H, W].
    """
    full = (latent.shape[-2], latent.shape[-1])
    rest, total, indices = latent, torch.zeros_like(latent), []
    for k, grid in enumerate(schedule.grids):
        coarse = rest if tuple(grid) == full else F.interpolate(rest, size=grid, mode="area")
        tokens = coarse.flatten(2).transpose(1, 2)  # [B, h*w, C]
        nearest = torch.cdist(tokens, vae.quantize.embedding.weight[None]).argmin(dim=-1)
        codes = vae.codes(nearest).transpose(1, 2).unflatten(2, grid)
        added = vae.residual(codes, full, k, len(schedule))
        rest, total = rest - added, total + added
        indices.append(nearest)
    return indices, total
