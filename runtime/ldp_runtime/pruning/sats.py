"""SATS, Scale-Adaptive Termination: stops the unconditional branch once guidance has settled (LD-Pruning, section 3).

Delta_k measures how far the two branches' logits are apart at scale k. Once it changes by less than a threshold from
one scale to the next, all later scales run the conditional branch alone. The paper compares raw L2 norms, which grow
with the number of tokens; the root mean square is the default here. The check is made *after* scale k, since the
logits exist only then, and takes effect from scale k + 1.
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
    """Guidance gap of one scale, token by token.

    Attributes:
        grid: token grid (h, w) of the scale.
        per_token: mean squared gap of each computed token [kept].
        kept: indices of these tokens in the grid [kept], or None if all were computed.
        terms: number of terms that a token's gap is the mean of (bits of a token, entries of a codebook).
    """

    grid: Grid
    per_token: torch.Tensor
    kept: torch.Tensor | None
    terms: int

    @cached_property
    def rms(self) -> float:
        """Root mean square over the computed tokens (0 if there are none)."""
        return math.sqrt(self.per_token.mean()) if self.per_token.numel() else 0.0

    def size(self, norm: str) -> float:
        """Size of the gap over the computed tokens: `rms`, or the paper's raw norm if `norm` is "l2"."""
        return self.rms * (math.sqrt(self.per_token.numel() * self.terms) if norm == "l2" else 1.0)


def change(previous: GuidanceGap, current: GuidanceGap, norm: str = "rms") -> float | None:
    """Relative change gamma_k = |Delta_k - Delta_{k-1}| / (Delta_{k-1} + eps), over the same region of the image.

    If either scale is pruned, both gaps are taken over the same tokens. These are the current ones whose position was
    computed at the previous scale too (nearest position). A change of region must not pass for a change of guidance.

    Args:
        norm: "rms", or "l2" for the paper's raw norm.

    Returns:
        gamma_k, or None if the two scales share no computed position.
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
    ratio = float(gamma.nan_to_num(nan=-1.0))  # the only number that the host needs from the device
    return None if ratio < 0 else ratio


def _matched(previous: GuidanceGap, current: GuidanceGap) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaps of both scales at the current scale's computed tokens; NaN where the previous scale was not computed."""
    before, now = previous.per_token.double(), current.per_token.double()
    (h, w), (ph, pw) = current.grid, previous.grid
    kept = torch.arange(h * w, dtype=torch.int64, device=now.device) if current.kept is None else current.kept
    parents = (kept // w * ph // h) * pw + kept % w * pw // w
    everywhere = torch.full((ph * pw,), float("nan"), dtype=before.dtype, device=now.device)
    everywhere[slice(None) if previous.kept is None else previous.kept] = before
    matched = everywhere[parents]
    return matched, torch.where(matched.isnan(), matched, now)
