"""Token layout: the arrangement of a token's bits or codes on the latent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ldp_runtime.schedule import Grid


@dataclass(frozen=True)
class LatentLayout:
    """Mapping of tokens to latents.

    Attributes:
        channels: d, bits of the VAE per latent position.
        patch: latent positions per side of a token (1, or 2 with patchify).
    """

    channels: int
    patch: int = 1

    @property
    def bits(self) -> int:
        """Bits per token: d * patch**2."""
        return self.channels * self.patch**2

    @cached_property
    def code(self) -> float:
        """Magnitude of every entry of a token's codes: 1 / sqrt(d), rounded as float32 division rounds it."""
        from ldp_runtime.numerics import scalar

        return float(scalar(1.0) / self.channels**0.5)

    def latent_grid(self, grid: Grid) -> Grid:
        """Latent grid (H, W) of a token grid (h, w)."""
        return grid[0] * self.patch, grid[1] * self.patch
