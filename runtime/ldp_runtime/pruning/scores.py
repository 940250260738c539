"""Maps that say where the next scale is worth computing; higher is more."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ldp_runtime.pruning import lhep
from ldp_runtime.pruning.policy import PictureSoFar


def energy(picture: PictureSoFar, carried: bool = False, count_border: bool = True) -> torch.Tensor:
    """LHEP: smoothed Haar detail energy of the previous residual, on the grid of scale k [h, w].

    Args:
        carried: take the energy of patches that were not computed from the map of the scale before.
        count_border: see `lhep.smooth`.
    """
    patches = lhep.haar_energy(picture.residual)
    if carried and picture.energy is not None:
        before = F.interpolate(picture.energy[None, None], size=patches.shape, mode="bilinear", align_corners=False)[
            0, 0
        ]
        patches = torch.where(lhep.any_in_patch(picture.computed), patches, before)
    return lhep.to_grid(lhep.smooth(patches, count_border), picture.schedule.grids[picture.scale])


def distance(picture: PictureSoFar) -> torch.Tensor:
    """Squared distance of each input token to the mean token (FastVAR's score, on the latent) [h, w]."""
    tokens = picture.latent
    return (tokens - tokens.mean(dim=(1, 2), keepdim=True)).square().sum(dim=0)


def variance(picture: PictureSoFar) -> torch.Tensor:
    """Variance of the input over 3x3 tokens, summed over channels [h, w]."""
    tokens = picture.latent
    mean, square = (F.avg_pool2d(t[None], 3, 1, 1, count_include_pad=False)[0] for t in (tokens, tokens.square()))
    return (square - mean.square()).sum(dim=0).clamp(min=0)


def random(picture: PictureSoFar) -> torch.Tensor:
    """Uniform noise, seeded by the image's seed and the scale [h, w]."""
    generator = torch.Generator().manual_seed((picture.seed * 64 + picture.scale) % 2**63)
    return torch.rand(picture.schedule.grids[picture.scale], generator=generator).to(picture.latent.device)
