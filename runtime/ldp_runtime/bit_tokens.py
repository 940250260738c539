"""Infinity's tokens: `bits` binary decisions each, codes +-1/sqrt(d), bilinear resizing in both directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldp_runtime.guidance import gap_per_token
from ldp_runtime.residual import LatentLayout, accumulate, bits_to_codes, next_input, tokens_to_latent
from ldp_runtime.sampling import SamplingFilter, draw_noise, logit_difference, position_noise, sample_bits
from ldp_runtime.schedule import Grid, ScaleSchedule


@dataclass(frozen=True)
class BitTokens:
    """The `TokenSpace` of bits; scores are the logit differences l1 - l0 of each bit."""

    layout: LatentLayout

    @property
    def channels(self) -> int:
        return self.layout.bits

    @property
    def gap_terms(self) -> int:
        return self.layout.bits

    def empty_latent(self, schedule: ScaleSchedule) -> torch.Tensor:
        return torch.zeros(self.layout.channels, *self.layout.latent_grid(schedule.final_grid))

    def noise(self, seed: int, schedule: ScaleSchedule) -> tuple[torch.Tensor, ...]:
        return position_noise(seed, schedule, self.layout.bits)

    def draw_noise(self, generator: torch.Generator, tokens: int) -> torch.Tensor:
        return draw_noise(generator, tokens, self.layout.bits)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logit_difference(logits)

    def gap(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        return gap_per_token(conditional, unconditional)

    def draw(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, scale: int, scales: int
    ) -> torch.Tensor:
        return self.codes(sample_bits(scores, noise, rule))

    def codes(self, tokens: torch.Tensor) -> torch.Tensor:
        return bits_to_codes(tokens, self.layout)

    def accumulate(self, latent: torch.Tensor, codes: torch.Tensor, scale: int, scales: int) -> torch.Tensor:
        return accumulate(latent[None], tokens_to_latent(codes[None], self.layout))[0]

    def next_input(self, latents: torch.Tensor, grid: Grid) -> torch.Tensor:
        return next_input(latents, grid, self.layout)
