"""Maps that say where the next scale is worth computing; higher is more."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from ldp_runtime.pruning import lhep
from ldp_runtime.pruning.fitted import Fitted, at_scale, required
from ldp_runtime.pruning.policy import PictureSoFar

#: Scores whose share a threshold may bound; "random" is for controls.
Score = Literal["energy", "distance", "variance", "change", "decoder", "error"]
#: What "error" weighs, in this order.
FEATURES: tuple[Score, ...] = ("distance", "variance", "energy", "change")


def score_map(score: str, picture: PictureSoFar, fitted: Fitted | None = None) -> torch.Tensor:
    """A score by its name, on the grid of scale k [h, w].

    Raises:
        ConfigError: "decoder" or "error" without fitted numbers.
    """
    if score == "decoder":
        metric = required(fitted and fitted.on(picture.latent.device), "metric", "score=decoder")
        return decoder(picture, metric)
    if score == "error":
        return error(picture, at_scale(required(fitted, "error", "score=error"), picture.scale, "score=error"))
    return {"energy": energy, "distance": distance, "variance": variance, "change": change, "random": random}[score](
        picture
    )


def energy(
    picture: PictureSoFar, carried: bool = False, count_border: bool = True, per_latent: bool = False
) -> torch.Tensor:
    """LHEP: smoothed Haar detail energy of the previous residual, on the grid of scale k [h, w].

    Args:
        carried: take the energy of patches that were not computed from the map of the scale before.
        count_border: see `lhep.smooth`.
        per_latent: where tokens are patches of latents, transform the latents; the same for models without patches.
    """
    residual, computed = picture.residual, picture.computed
    if per_latent and picture.patch > 1:
        residual = F.pixel_shuffle(residual, picture.patch)
        if computed is not None:
            computed = computed.repeat_interleave(picture.patch, 0).repeat_interleave(picture.patch, 1)
    patches = lhep.haar_energy(residual)
    if carried and computed is not None and picture.energy is not None:
        patches = torch.where(
            lhep.any_in_patch(computed), patches, lhep.to_grid(picture.energy, (patches.shape[0], patches.shape[1]))
        )
    return lhep.to_grid(lhep.smooth(patches, count_border), picture.schedule.grids[picture.scale])


def distance(picture: PictureSoFar) -> torch.Tensor:
    """Squared distance of each input token to the mean token (FastVAR's score, on the latent) [h, w]."""
    return _centred(picture).square().sum(dim=0)


def variance(picture: PictureSoFar) -> torch.Tensor:
    """Variance of the input over 3x3 tokens, summed over channels [h, w]."""
    tokens = picture.latent
    mean, square = (F.avg_pool2d(t[None], 3, 1, 1, count_include_pad=False)[0] for t in (tokens, tokens.square()))
    return (square - mean.square()).sum(dim=0).clamp(min=0)


def change(picture: PictureSoFar) -> torch.Tensor:
    """Squared size of the last change of the accumulated latent, seen at scale k [h, w]."""
    return picture.resized_residual().square().sum(dim=0)


def decoder(picture: PictureSoFar, metric: torch.Tensor) -> torch.Tensor:
    """Distance to the mean token as the decoder sees it: d' M d with the fitted metric M [C, C], on [h, w]."""
    d = _centred(picture)
    return torch.einsum("chw,cd,dhw->hw", d, metric, d).clamp(min=0)


def error(picture: PictureSoFar, weights: tuple[float, ...]) -> torch.Tensor:
    """Fitted guess of the pixels that a token changes [h, w]: a weight for each of `FEATURES`, and a constant."""
    total = torch.full(picture.schedule.grids[picture.scale], weights[-1], device=picture.latent.device)
    for feature, weight in zip(FEATURES, weights[:-1], strict=True):
        if weight:
            total = total + weight * score_map(feature, picture)
    return total.clamp(min=0)


def random(picture: PictureSoFar) -> torch.Tensor:
    """Uniform noise, seeded by the image's seed and the scale [h, w]."""
    generator = torch.Generator().manual_seed((picture.seed * 64 + picture.scale) % 2**63)
    return torch.rand(picture.schedule.grids[picture.scale], generator=generator).to(picture.latent.device)


def _centred(picture: PictureSoFar) -> torch.Tensor:
    return picture.latent - picture.latent.mean(dim=(1, 2), keepdim=True)
