"""What the scale loop needs to know of a family's tokens; everything else in the loop is the same for all families.

Two families implement it: bits (`infinity.py`) and indices into a codebook (`var.py`).
Notation of the recursion: R_k are the codes of scale k on the token grid, F_k = F_{k-1} + Up(R_k) the accumulated
latent, Down(F_{k-1}) the input of scale k.
"""

from __future__ import annotations

from typing import Protocol

import torch

from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import Grid, ScaleSchedule


class Codec(Protocol):
    """Tokens of one family; implementations are immutable.

    Shapes: L computed tokens of one image, S scales, d latent channels. `tokens` are what sampling decides ([L, bits]
    bool, or [L] indices), `codes` are what they stand for [L, channels], `scores` are what sampling decides by.
    """

    @property
    def channels(self) -> int:
        """Channels of a token's codes, and of its input."""
        ...

    @property
    def gap_terms(self) -> int:
        """How many numbers a token's guidance gap is the mean of."""
        ...

    def empty_latent(self, schedule: ScaleSchedule) -> torch.Tensor:
        """F before the first scale: zeros [d, H, W]."""
        ...

    def noise(self, seed: int, schedule: ScaleSchedule) -> tuple[torch.Tensor, ...]:
        """Variates of one image for the full grid of every scale [h*w, ...], drawn on the CPU in the original's order.

        They belong to positions: what a position draws depends neither on which others are computed nor on the batch.
        """
        ...

    def draw_noise(self, generator: torch.Generator, tokens: int) -> torch.Tensor:
        """The next scale's part of `noise` [tokens, ...] from the image's stream."""
        ...

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of all branches [R, L, V] to scores [R, L, n]. Guidance and temperature apply to scores."""
        ...

    def gap(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """Squared guidance gap of each token from the scores of both branches [L, n] -> [L].

        The mean squared difference of what the branches say about a pair of outcomes of one decision, over all pairs
        of outcomes and all decisions of the token; a shift of all logits does not count.
        """
        ...

    def draw(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, scale: int, scales: int
    ) -> torch.Tensor:
        """Guided, tempered scores and the noise of the same tokens to drawn codes [L, channels]."""
        ...

    def codes(self, tokens: torch.Tensor) -> torch.Tensor:
        """Given tokens to codes [L, channels]: for teacher forcing."""
        ...

    def accumulate(self, latent: torch.Tensor, codes: torch.Tensor, scale: int, scales: int) -> torch.Tensor:
        """F_k = F_{k-1} + Up(R_k): latent [d, H, W], codes [h, w, channels] -> [d, H, W]."""
        ...

    def next_input(self, latents: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Down(F) of several images on the token grid of the next scale: [B, d, H, W] -> [B, h*w, channels]."""
        ...
