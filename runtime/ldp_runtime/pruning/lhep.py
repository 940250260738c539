"""LHEP, Latent High-frequency Energy Pruning: where the next scale is worth computing (LD-Pruning, section 3).

The 2x2 Haar detail energy of the previous scale's residual codes predicts where the next residual changes visible
detail. The transform is orthonormal, so the energy of its three detail bands is the patch's energy less that of its
mean: sum ||c||^2 - 4 ||mean||^2 over the four codes of a patch, for codes of any norm.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ldp_runtime.schedule import Grid


def haar_energy(codes: torch.Tensor) -> torch.Tensor:
    """Detail energy of each 2x2 patch, summed over channels: [C, h, w] -> [ceil(h/2), ceil(w/2)].

    Odd grids (the non-square templates have them) are padded by repeating the last row or column.
    """
    h, w = codes.shape[-2:]
    even = F.pad(codes[None], (0, w % 2, 0, h % 2), mode="replicate")
    squares = 4 * F.avg_pool2d(even.square(), 2).sum(dim=1)
    mean = 4 * F.avg_pool2d(even, 2).square().sum(dim=1)
    return (squares - mean).clamp(min=0)[0]


def smooth(energy: torch.Tensor) -> torch.Tensor:
    """3x3 average, stride 1, zero padding 1 (counted), as the paper states it: [h, w] -> [h, w]."""
    return F.avg_pool2d(energy[None, None], 3, stride=1, padding=1)[0, 0]


def to_grid(energy: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Bilinear resize to the next scale's token grid: [h', w'] -> [h, w]. The paper leaves the mode open; nearest
    would make ties of four, which selection by threshold cannot split."""
    return F.interpolate(energy[None, None], size=grid, mode="bilinear", align_corners=False)[0, 0]


def keep_by_energy(energy: torch.Tensor, rho: float) -> torch.Tensor:
    """Indices of the fewest tokens whose energy reaches `rho` of the total: [h, w] -> [kept], ascending.

    Selection is by rank, so exactly that many are kept also among ties. A map without energy keeps no token.
    """
    flat = energy.flatten().double()
    order = torch.argsort(flat, descending=True, stable=True)
    reached = flat[order].cumsum(0)
    if not reached.numel() or reached[-1] <= 0:
        return order[:0]
    # A prefix reaches the share when its sum does; the comparison forgives the rounding of the total itself.
    count = int((reached < rho * reached[-1] * (1 - 1e-12)).sum()) + 1
    return order[:count].sort().values


def keep_by_rank(score: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` tokens of the highest score: [h, w] -> [count], ascending."""
    return torch.argsort(score.flatten(), descending=True, stable=True)[:count].sort().values
