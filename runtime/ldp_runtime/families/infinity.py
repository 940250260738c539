"""Infinity's tokens: from sampled bits to the accumulated latent and to the next scale's input.

Notation of the VAR recursion: R_k are the residual codes of scale k. F_k = F_{k-1} + Up(R_k) is the accumulated
latent, and Down(F_{k-1}) the input of scale k.

Tokens lie on the transformer's grid [B, h, w, bits], latents on the VAE's grid [B, d, H, W]. With 2x2 patchify (8B)
one token is a 2x2 patch of latents and bits = 4 d; otherwise the grids coincide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ldp_runtime.architecture.infinity import InfinityEntry
from ldp_runtime.engines.blocks import Placement
from ldp_runtime.families.base import Constants
from ldp_runtime.guidance import gap_per_token, per_scale
from ldp_runtime.noise import draw_noise, logistics, position_noise
from ldp_runtime.numerics import scalar
from ldp_runtime.sampling import SamplingFilter, logit_difference, sample_bits
from ldp_runtime.schedule import Grid, ScaleSchedule, rope_table
from ldp_runtime.token_layout import LatentLayout


def bits_to_codes(bits: torch.Tensor, layout: LatentLayout) -> torch.Tensor:
    """BSQ codes +-1/sqrt(d) (float32) of bits (0/1, any shape); d is the VAE's channel count, also with patchify."""
    return bits * scalar(2 * layout.code) - scalar(layout.code)  # exact: twice a number minus that number


def tokens_to_latent(codes: torch.Tensor, layout: LatentLayout) -> torch.Tensor:
    """Latent map [B, d, H, W] of token codes [B, h, w, bits]; a pixel shuffle if tokens are patches."""
    channels_first = codes.permute(0, 3, 1, 2)
    return F.pixel_shuffle(channels_first, layout.patch) if layout.patch > 1 else channels_first


def latent_to_tokens(latent: torch.Tensor, layout: LatentLayout) -> torch.Tensor:
    """Tokens [B, h*w, bits] of a latent map [B, d, H, W], row-major: the inverse of `tokens_to_latent`."""
    if layout.patch > 1:
        latent = F.pixel_unshuffle(latent, layout.patch)
    return latent.flatten(2).mT


def resize(latent: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Bilinear resize of [B, d, H, W] as in the originals: align_corners False, no antialiasing, up and down alike."""
    if tuple(latent.shape[-2:]) == tuple(grid):
        return latent
    return F.interpolate(latent, size=grid, mode="bilinear", align_corners=False)


def accumulate(latent: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """F_k = F_{k-1} + Up(R_k), from the latent [B, d, H, W] on the final grid and the residual [B, d, h', w']."""
    return latent + resize(residual, (latent.shape[-2], latent.shape[-1]))


def next_input(latent: torch.Tensor, grid: Grid, layout: LatentLayout) -> torch.Tensor:
    """Down(F) on the token grid of the next scale: [B, d, H, W] -> [B, h*w, bits]."""
    return latent_to_tokens(resize(latent, layout.latent_grid(grid)), layout)


@dataclass(frozen=True)
class BitCodec:
    """The `Codec` of Infinity: tokens are bits, scores the logit difference l1 - l0 of each bit."""

    layout: LatentLayout

    @property
    def channels(self) -> int:
        return self.layout.bits

    @property
    def gap_terms(self) -> int:
        return self.layout.bits

    def empty_latent(self, schedule: ScaleSchedule) -> torch.Tensor:
        return torch.zeros(
            self.layout.channels, *self.layout.latent_grid(schedule.final_grid), dtype=torch.float32, device="cpu"
        )

    def noise(self, seed: int, schedule: ScaleSchedule) -> tuple[torch.Tensor, ...]:
        return position_noise(seed, schedule, self.layout.bits)

    def draw_noise(self, generator: torch.Generator, schedule: ScaleSchedule, scale: int) -> torch.Tensor:
        return draw_noise(generator, schedule.tokens[scale], self.layout.bits)

    def residual_inputs(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, weight: float, guided: bool
    ) -> Mapping[str, torch.Tensor] | None:
        return None

    def mixing(self) -> BitCodec:
        return self

    def variates(self, scale: int, scales: int) -> int:
        return self.layout.bits

    def of_uniforms(self, uniform: torch.Tensor) -> torch.Tensor:
        return logistics(uniform)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logit_difference(logits)

    def gap(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        return gap_per_token(conditional, unconditional)

    def draw(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, scale: int, scales: int, ended: bool
    ) -> torch.Tensor:
        return self.codes(sample_bits(scores, noise, rule))

    def codes(self, tokens: torch.Tensor) -> torch.Tensor:
        return bits_to_codes(tokens, self.layout)

    def accumulate(self, latent: torch.Tensor, codes: torch.Tensor, scale: int, scales: int) -> torch.Tensor:
        return accumulate(latent[None], tokens_to_latent(codes[None], self.layout))[0]

    def next_input(self, latents: torch.Tensor, grid: Grid) -> torch.Tensor:
        return next_input(latents, grid, self.layout)


def codec(model: InfinityEntry) -> BitCodec:
    """Codec of a model of this family."""
    return BitCodec(model.layout)


def placement(model: InfinityEntry, constants: Constants, schedule: ScaleSchedule) -> Placement:
    """Scale embeddings, and rotary tables of every token."""
    offsets = constants["level_offsets"]
    rotary = rope_table(schedule, model.width // model.heads)
    return Placement(
        offsets, tuple({"cos": cos.to(offsets.device), "sin": sin.to(offsets.device)} for cos, sin in rotary)
    )


def guidance_weights(guidance: float | Sequence[float], scales: int) -> tuple[float, ...]:
    """Weight of the conditional branch at each scale: one number for all, or a list of them.

    Raises:
        ConfigError: `guidance` is not made of numbers, has too few of them, or one is not finite.
    """
    return per_scale(guidance, scales, "guidance_scale")
