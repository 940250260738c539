"""Trace of one image: counts, times, score map, guidance gap and branches of each scale."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ldp_runtime.schedule import Grid


@dataclass(frozen=True)
class ScaleTrace:
    """One scale of one image.

    Attributes:
        scale: index of the scale.
        grid: token grid (h, w).
        tokens: number of tokens computed.
        tokens_full: number of tokens of the full grid.
        rows: rows of the engine call that belong to this image (2 with the unconditional branch, 1 without).
        guided: True if guidance mixed two branches at this scale.
        images_in_call: number of images that shared the engine call.
        gap: RMS guidance gap, or None if it was not measured.
        unconditional_stopped: the policy stopped the unconditional branch after this scale.
        select_s: seconds spent choosing tokens, shared by all images of the call.
        blocks_s: seconds in the engine call, shared likewise.
        residual_s: seconds spent sampling and accumulating this image. The first image of a call includes the work that
            the images share.
        kept: indices of the computed tokens, on the engines' device, or None for all of them.
        score: the map they were chosen by [h, w], on the engines' device, or None.

    On a GPU the three times are the device's once the run is over. A callback sees the host's, which runs ahead.
    """

    scale: int
    grid: Grid
    tokens: int
    tokens_full: int
    rows: int
    guided: bool
    images_in_call: int
    gap: float | None
    unconditional_stopped: bool
    select_s: float = 0.0
    blocks_s: float = 0.0
    residual_s: float = 0.0
    kept: torch.Tensor | None = field(default=None, repr=False)
    score: torch.Tensor | None = field(default=None, repr=False)

    @property
    def kept_share(self) -> float:
        return self.tokens / self.tokens_full

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists; the maps are left out, the kept indices are not."""
        plain = {k: v for k, v in self.__dict__.items() if k not in ("kept", "score")}
        return plain | {
            "grid": list(self.grid),
            "kept_share": self.kept_share,
            "kept": None if self.kept is None else self.kept.tolist(),
        }


@dataclass(frozen=True)
class Trace:
    """Trace of one image.

    Attributes:
        seed: seed of the image.
        policy: its policy as text.
        scales: one entry per scale that was run.
        scales_full: number of scales of the schedule.
        tokens_full: tokens of the whole schedule, skipped scales included.
        text_s: seconds before the first scale, for text and noise, shared by a batch.
        decode_s: seconds of the decoder; 0 if latents were requested.
    """

    seed: int
    policy: str
    scales: tuple[ScaleTrace, ...]
    scales_full: int
    tokens_full: int
    text_s: float = 0.0
    decode_s: float = 0.0

    @property
    def tokens(self) -> int:
        """Number of tokens computed, each counted once whatever its number of rows."""
        return sum(scale.tokens for scale in self.scales)

    @property
    def row_tokens(self) -> int:
        """Number of tokens times rows: the work of the blocks."""
        return sum(scale.tokens * scale.rows for scale in self.scales)

    @property
    def stopped_after(self) -> int | None:
        """The scale after which the policy stopped the unconditional branch, if it did."""
        return next((scale.scale for scale in self.scales if scale.unconditional_stopped), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "policy": self.policy,
            "tokens": self.tokens,
            "tokens_full": self.tokens_full,
            "row_tokens": self.row_tokens,
            "stopped_after": self.stopped_after,
            "scales_full": self.scales_full,
            "text_s": self.text_s,
            "decode_s": self.decode_s,
            "scales": [scale.to_json() for scale in self.scales],
        }
