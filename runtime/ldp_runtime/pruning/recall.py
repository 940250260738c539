"""Recall of guidance: estimates of l_cond - l_uncond after the unconditional branch has stopped.

The paper does not say what replaces l_uncond after the stop; setting it to l_cond drops guidance at once. The
difference l_cond - l_uncond of the last guided scale is still known, and can stand in for the missing one at no cost.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ldp_runtime.schedule import Grid


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


def _resize(map_: torch.Tensor, grid: Grid) -> torch.Tensor:
    return F.interpolate(map_[None], size=grid, mode="bilinear", align_corners=False)[0]
