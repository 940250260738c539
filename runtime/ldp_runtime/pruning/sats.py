"""SATS, Scale-Adaptive Termination: when the unconditional branch has no more to say (LD-Pruning, section 3).

Delta_k measures how far the two branches' logits are apart at scale k; once it changes by less than a threshold from
one scale to the next, all later scales run the conditional branch alone. The paper compares raw L2 norms, which grow
with the number of tokens; the root mean square is the default here. It checks *after* scale k (the logits exist only
then) and takes effect from scale k + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from ldp_runtime.schedule import Grid

EPSILON = 1e-6


@dataclass(frozen=True)
class GuidanceGap:
    """The gap of one scale, token by token.

    Attributes:
        grid: token grid (h, w) of the scale.
        per_token: mean squared gap of each computed token [kept].
        kept: indices of these tokens in the grid [kept], or None when all were computed.
        terms: how many numbers a token's gap is the mean of (bits of a token, entries of a codebook).
    """

    grid: Grid
    per_token: torch.Tensor
    kept: torch.Tensor | None
    terms: int

    @cached_property
    def rms(self) -> float:
        """Root mean square over the computed tokens (0 when there are none)."""
        return math.sqrt(self.per_token.mean()) if self.per_token.numel() else 0.0

    def size(self, norm: str) -> float:
        """Over the computed tokens: `rms`, or "l2", the paper's raw norm."""
        return self.rms * (math.sqrt(self.per_token.numel() * self.terms) if norm == "l2" else 1.0)


def change(previous: GuidanceGap, current: GuidanceGap, norm: str = "rms") -> float | None:
    """gamma_k = |Delta_k - Delta_{k-1}| / (Delta_{k-1} + eps), over the same region of the picture.

    Where either scale is pruned, both gaps are taken over the current tokens whose place was computed at the previous
    scale too (nearest position), so that a change of region does not pass for a change of guidance.

    Args:
        norm: "rms", or "l2" for the paper's raw norm.

    Returns:
        None where the two scales share no computed place.
    """
    if previous.kept is None and current.kept is None:
        before, now = previous.size(norm), current.size(norm)
        return abs(now - before) / (before + EPSILON)
    before, now = _matched(previous, current)  # of equal length
    if norm == "l2":
        delta_before, delta = ((m.nansum() * current.terms).sqrt() for m in (before, now))
    else:
        delta_before, delta = (m.nanmean().sqrt() for m in (before, now))
    gamma = (delta - delta_before).abs() / (delta_before + EPSILON)
    found = float(gamma.nan_to_num(nan=-1.0))  # the one number that the host must know
    return None if found < 0 else found


def _matched(previous: GuidanceGap, current: GuidanceGap) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaps of both scales at the same places, NaN at places that were not computed at both."""
    before, now = previous.per_token.double(), current.per_token.double()
    (h, w), (ph, pw) = current.grid, previous.grid
    kept = torch.arange(h * w, device=now.device) if current.kept is None else current.kept
    parents = (kept // w * ph // h) * pw + kept % w * pw // w
    everywhere = torch.full((ph * pw,), float("nan"), dtype=before.dtype, device=now.device)
    everywhere[slice(None) if previous.kept is None else previous.kept] = before
    matched = everywhere[parents]
    return matched, torch.where(matched.isnan(), matched, now)
