"""Recall of guidance: estimates of l_cond - l_uncond after the unconditional branch has stopped.

The paper does not say what replaces l_uncond after the stop; setting it to l_cond drops guidance at once. The
difference l_cond - l_uncond of the last guided scale is still known. Guidance also sharpens the conditional branch's
own preferences. Part of the missing difference can therefore be estimated from these two at no cost.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from ldp_runtime.pruning.fitted import Fitted, at_scale, required
from ldp_runtime.schedule import Grid

#: After the stop: the "conditional" logits alone, the last difference unchanged ("reuse"), or a "fitted" estimate.
AfterStop = Literal["conditional", "reuse", "fitted"]


def remember(
    before: torch.Tensor | None, difference: torch.Tensor, kept: torch.Tensor | None, grid: Grid
) -> torch.Tensor:
    """The guidance difference on the grid of a scale [n, h, w]: new where computed, carried over elsewhere.

    Args:
        before: the map of the scale before [n, h', w'], or None.
        difference: l_cond - l_uncond of the computed tokens [L, n].
        kept: indices of these tokens (None: all).
    """
    if kept is None:
        return difference.T.view(-1, *grid)
    carried = difference.new_zeros(difference.shape[1], *grid) if before is None else _resize(before, grid)
    carried = carried.flatten(1).clone()
    carried[:, kept] = difference.T
    return carried.unflatten(1, grid)


def recall(remembered: torch.Tensor, kept: torch.Tensor | None, grid: Grid) -> torch.Tensor:
    """The remembered difference [n, h', w'] at the computed tokens of a later scale: [L, n]."""
    at_grid = _resize(remembered, grid).flatten(1).T
    return at_grid if kept is None else at_grid.index_select(0, kept)


def missing_guidance(
    after_stop: AfterStop, conditional: torch.Tensor, recalled: torch.Tensor, scale: int, fitted: Fitted | None
) -> torch.Tensor | None:
    """Estimate of l_cond - l_uncond [L, n], or None for no guidance.

    Raises:
        ConfigError: "fitted" without fitted numbers for this scale.
    """
    if after_stop == "conditional":
        return None
    if after_stop == "reuse":
        return recalled
    a, b = at_scale(required(fitted, "guidance", "after_stop=fitted"), scale, "after_stop=fitted")
    return a * recalled + b * conditional


def _resize(map_: torch.Tensor, grid: Grid) -> torch.Tensor:
    return F.interpolate(map_[None], size=grid, mode="bilinear", align_corners=False)[0]
