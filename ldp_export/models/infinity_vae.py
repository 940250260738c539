"""Infinity's image tokenizer: a convolutional VAE whose latents are binary (BSQ), quantized scale by scale.

Parameter names follow the original checkpoints with their `.conv.` / `.norm.` wrappers taken off.
"""

from __future__ import annotations

import torch
from ldp_runtime.families.infinity import accumulate, resize
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout
from torch import nn
from torch.nn import functional as F

from ldp_export.models.layers import Conv2d, GroupNorm
from ldp_export.models.sizes import InfinityVaeConfig


def norm(channels: int) -> GroupNorm:
    """GroupNorm as both families use it."""
    return GroupNorm(32 if channels % 32 == 0 else 24, channels, eps=1e-6)


class ResBlock(nn.Module):
    """GroupNorm, swish, 3x3 convolution, twice, plus a (projected) shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, Cin, H, W] -> [B, Cout, H, W]
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, C, H/2, W/2]
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as in the original


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, C, 2H, 2W]
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Blocks of one resolution, followed by down- or upsampling if `resample` says so."""

    def __init__(self, in_channels: int, out_channels: int, count: int, resample: str | None) -> None:
        super().__init__()
        blocks = [ResBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(count)]
        self.block = nn.ModuleList(blocks)
        if resample == "down":
            self.downsample = Downsample(out_channels)
        elif resample == "up":
            self.upsample = Upsample(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    def __init__(self, config: InfinityVaeConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = Conv2d(3, config.base_channels, 3, padding=1)
        levels, channels = [], config.base_channels
        for l, width in enumerate(widths):
            levels.append(_Level(channels, width, config.res_blocks, "down" if l < config.halvings else None))
            channels = width
        self.down = nn.ModuleList(levels)
        self.mid = _Middle(channels)
        self.norm_out = norm(channels)
        self.conv_out = Conv2d(channels, config.bits, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] in [-1, 1] -> [B, d, H/s, W/s]
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: InfinityVaeConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        levels: list[nn.Module] = [nn.Identity()] * len(widths)
        channels = widths[-1]
        for l in reversed(range(len(widths))):
            resample = "up" if 1 <= l <= config.halvings else None
            levels[l] = _Level(channels, widths[l], config.res_blocks + 1, resample)
            channels = widths[l]
        self.up = nn.ModuleList(levels)
        self.norm_out = norm(channels)
        self.conv_out = Conv2d(channels, 3, 3, padding=1)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:  # [B, d, H/s, W/s] -> [B, 3, H, W], not clamped
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class InfinityVae(nn.Module):
    """Encoder and decoder; the pure function `quantize` quantizes between them."""

    def __init__(self, config: InfinityVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Image [B, 3, H, W] in [-1, 1] to a continuous latent [B, d, H/stride, W/stride]."""
        return self.encoder(image)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Accumulated latent [B, d, h, w] to an image [B, 3, h*stride, w*stride], clamped to [-1, 1]."""
        return self.decoder(latent).clamp(-1, 1)


def quantize(
    latent: torch.Tensor, schedule: ScaleSchedule, layout: LatentLayout
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Multi-scale residual binary quantization of an encoded image (the encoder side of BSQ).

    At each scale the remaining residual is area-resized to the scale's latent grid. Its signs are the bits, and the
    up-sampled codes are subtracted. Only the encoder resizes by area; generation resizes bilinearly in both directions.

    Args:
        latent: [B, d, H, W] at the final latent grid.

    Returns:
        Bits of every scale in VAE layout [B, h', w', d] (uint8), and the accumulated codes [B, d, H, W].
    """
    residual, total, bits = latent, torch.zeros_like(latent), []
    for grid in schedule.grids:
        target = layout.latent_grid(grid)
        same = tuple(residual.shape[-2:]) == target
        coarse = residual if same else F.interpolate(residual, size=target, mode="area")
        positive = F.normalize(coarse, dim=1) > 0
        codes = torch.where(positive, 1.0, -1.0).to(latent) / layout.channels**0.5
        residual = residual - resize(codes, (latent.shape[-2], latent.shape[-1]))
        total = accumulate(total, codes)
        bits.append(positive.permute(0, 2, 3, 1).to(torch.uint8))
    return bits, total
