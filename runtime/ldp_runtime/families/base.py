"""Interface between the scale loop and a family's tokens; all else in the loop is the same for every family.

The families implement it: bits (`infinity.py`), and indices into a codebook (`var.py`, `switti.py`).

Notation of the recursion: R_k are the codes of scale k on the token grid. F_k = F_{k-1} + Up(R_k) is the accumulated
latent, and Down(F_{k-1}) the input of scale k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import Grid, ScaleSchedule

#: Tensors of a bundle by name, on the device of its engines.
Constants = Mapping[str, torch.Tensor]


class Codec(Protocol):
    """Tokens of one family; implementations are immutable.

    Sampling decides `tokens` ([L, bits] bool, or [L] indices) by `scores` [L, n]; `codes` [L, channels] are the values
    that the tokens stand for.

    Shapes: L computed tokens of one image, R rows of an engine call, V logits and n scores per token, d latent
    channels.
    """

    @property
    def channels(self) -> int:
        """Channels of a token's codes, and of its input."""
        ...

    @property
    def gap_terms(self) -> int:
        """Number of terms that a token's guidance gap is the mean of."""
        ...

    def empty_latent(self, schedule: ScaleSchedule) -> torch.Tensor:
        """F before the first scale: zeros [d, H, W]."""
        ...

    def noise(self, seed: int, schedule: ScaleSchedule) -> tuple[torch.Tensor, ...]:
        """Variates of one image for the full grid of every scale [h*w, ...], drawn on the CPU in the original's order.

        Each position has its own: its draw depends neither on which others are computed nor on the batch.
        """
        ...

    def draw_noise(self, generator: torch.Generator, schedule: ScaleSchedule, scale: int) -> torch.Tensor:
        """Variates of the scale that is next [tokens, ...], from the image's generator, as `noise` gives them."""
        ...

    def variates(self, scale: int, scales: int) -> int:
        """Number of variates of a scale's token."""
        ...

    def of_uniforms(self, uniform: torch.Tensor) -> torch.Tensor:
        """Noise of tokens [L, variates] as of `noise`, from float64 uniform variates in (0, 1); see `CounterNoise`."""
        ...

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores [R, L, n] from the logits of all branches [R, L, V]; guidance and temperature apply to scores."""
        ...

    def gap(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """Squared guidance gap of each token from the scores of both branches [L, n] -> [L].

        A decision (a bit, or an index) has outcomes. For each pair of them, the branches' logit differences are
        subtracted and squared. The gap is the mean over all pairs and all decisions of the token. A shift of all
        logits does not count.
        """
        ...

    def draw(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, scale: int, scales: int, ended: bool
    ) -> torch.Tensor:
        """Codes [L, channels] drawn from guided scores, divided by temperature, and the noise of the same tokens.

        Args:
            ended: guidance has ended before this scale; see `ImageState.guidance_ended`.
        """
        ...

    def residual_inputs(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, weight: float, guided: bool
    ) -> Mapping[str, torch.Tensor] | None:
        """Inputs of the `residual` graph, which adds to the last scale's codes, beside its hidden tokens.

        The other arguments are those of `draw`.

        Args:
            weight: of the conditional branch at this scale.
            guided: the unconditional branch is alive.

        Returns:
            Tensors by name; `weights` [R] says how many branches the graph reads. None: the codes are complete.
        """
        ...

    def mixing(self) -> Codec:
        """The same codec drawing mixtures of codes (`more_smooth`); itself for families that mix none."""
        ...

    def codes(self, tokens: torch.Tensor) -> torch.Tensor:
        """Codes [L, channels] of given tokens, for teacher forcing."""
        ...

    def accumulate(self, latent: torch.Tensor, codes: torch.Tensor, scale: int, scales: int) -> torch.Tensor:
        """F_k = F_{k-1} + Up(R_k): latent [d, H, W], codes [h, w, channels] -> [d, H, W]."""
        ...

    def next_input(self, latents: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Down(F) of several images on the token grid of the next scale: [B, d, H, W] -> [B, h*w, channels]."""
        ...
