"""LHEP, Latent High-frequency Energy Pruning: the tokens that are worth computing (LD-Pruning, section 3).

The 2x2 Haar detail energy of the previous scale's residual codes predicts where the next residual changes visible
detail. The transform is orthonormal: the energy of its three detail bands is the patch's energy less that of its mean.
This is sum ||c||^2 - 4 ||mean||^2 over the four codes of a patch, for codes of any norm.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

import torch
from torch.nn import functional as F

from ldp_runtime.schedule import Grid


def haar_energy(codes: torch.Tensor) -> torch.Tensor:
    """Detail energy of each 2x2 patch, summed over channels: [C, h, w] -> [ceil(h/2), ceil(w/2)].

    Odd grids (the non-square templates have them) are padded by repeating the last row or column.
    """
    a, b, c, d = (_even(codes)[:, y::2, x::2] for y in (0, 1) for x in (0, 1))
    # Computed from differences, not as energy less mean energy, because flat patches must score exactly zero.
    lh, hl, hh = (b - a) + (d - c), (c - a) + (d - b), (a - b) - (c - d)
    return (lh.square() + hl.square() + hh.square()).sum(dim=0) / 4


def _even(map_: torch.Tensor) -> torch.Tensor:
    """Map [..., h, w] made even: the last row is repeated if h is odd, the last column if w is odd."""
    if map_.shape[-2] % 2:
        map_ = torch.cat((map_, map_[..., -1:, :]), dim=-2)
    if map_.shape[-1] % 2:
        map_ = torch.cat((map_, map_[..., -1:]), dim=-1)
    return map_


def any_in_patch(flags: torch.Tensor) -> torch.Tensor:
    """True for each 2x2 patch that has any of its four positions set: bool [h, w] -> [ceil(h/2), ceil(w/2)]."""
    return _even(flags).unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).any(dim=3).any(dim=1)


def smooth(energy: torch.Tensor, count_border: bool = True) -> torch.Tensor:
    """3x3 average, stride 1, padding 1: [h, w] -> [h, w].

    The paper's plain average pool counts the zeros beyond the border. This takes a third of the energy off every edge
    and over half off the corners. On the small grids of small images, the centre is then kept whatever is drawn.
    Without `count_border`, a border position is the average of its real neighbours.

    Sums of shifted slices are used because pooling kernels start a thread team for any size. This costs more than the
    work on such small maps.
    """
    total = _box_sum(energy)
    return total / (9 if count_border else _box_sum(torch.ones_like(energy)))


def _box_sum(map_: torch.Tensor) -> torch.Tensor:
    h, w = map_.shape
    padded = F.pad(map_, (1, 1, 1, 1))
    return torch.stack([padded[y : y + h, x : x + w] for y in range(3) for x in range(3)]).sum(dim=0)


def to_grid(energy: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Bilinear resize to the next scale's token grid: [h', w'] -> [h, w].

    The paper leaves the mode open. The nearest mode would give each four positions the same energy: ties that a
    threshold cannot split.
    """
    return F.interpolate(energy[None, None], size=grid, mode="bilinear", align_corners=False)[0, 0]


def keep_by_energy(energy: torch.Tensor, rho: float) -> torch.Tensor:
    """Indices of the fewest tokens whose energy reaches `rho` of the total: [h, w] -> [kept], ascending.

    Tokens are selected by rank, so exactly that many are kept even among ties. A map without energy keeps no token.
    """
    ranked, order = energy.flatten().sort(descending=True, stable=True)
    if not order.numel():
        return order
    reached = list(accumulate(ranked.tolist()))  # on the host, which needs the count: in double precision, in order
    # The tolerance allows for the rounding of the total itself.
    count = bisect_left(reached, rho * reached[-1] * (1 - 1e-12)) + (reached[-1] > 0)
    return order[:count].sort().values


def keep_by_rank(score: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` tokens of the highest score: [h, w] -> [count], ascending."""
    return torch.argsort(score.flatten(), descending=True, stable=True)[:count].sort().values
