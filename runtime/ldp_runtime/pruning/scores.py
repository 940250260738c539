"""Score maps: the higher a token's score, the more it is worth computing at the next scale."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from ldp_runtime.pruning import lhep
from ldp_runtime.pruning.fitted import Fitted, at_scale, required
from ldp_runtime.pruning.policy import ScaleView

#: Scores that a threshold may take a share of, beside LHEP's "energy"; "random" exists too, for controls only.
Score = Literal["distance", "variance", "error"]
#: Scores that "error" weighs, in the order of its weights.
FEATURES = ("distance", "variance", "energy", "change")


def score_map(score: str, view: ScaleView, fitted: Fitted | None = None) -> torch.Tensor:
    """A score by its name, on the grid of scale k [h, w].

    Raises:
        ConfigError: "error" without fitted numbers.
    """
    if score == "error":
        return error(view, at_scale(required(fitted, "error", "score=error"), view.scale, "score=error"))
    maps = {"energy": energy, "distance": distance, "variance": variance, "change": change, "random": random}
    return maps[score](view)


def energy(view: ScaleView, carried: bool = False, count_border: bool = True, per_latent: bool = False) -> torch.Tensor:
    """LHEP: smoothed Haar detail energy of the previous residual, on the grid of scale k [h, w].

    Args:
        carried: take the energy of patches that were not computed from the map of the scale before.
        count_border: see `lhep.smooth`.
        per_latent: transform latents instead of tokens, if tokens are patches of latents; else it changes nothing.
    """
    residual, computed = view.residual, view.computed
    if per_latent and view.patch > 1:
        residual = F.pixel_shuffle(residual, view.patch)
        if computed is not None:
            computed = computed.repeat_interleave(view.patch, 0).repeat_interleave(view.patch, 1)
    patches = lhep.haar_energy(residual)
    if carried and computed is not None and view.energy is not None:
        patches = torch.where(
            lhep.any_in_patch(computed), patches, lhep.to_grid(view.energy, (patches.shape[0], patches.shape[1]))
        )
    return lhep.to_grid(lhep.smooth(patches, count_border), view.schedule.grids[view.scale])


def distance(view: ScaleView) -> torch.Tensor:
    """Squared distance of each input token to the mean token (FastVAR's score, on the latent) [h, w]."""
    return _centred(view).square().sum(dim=0)


def variance(view: ScaleView) -> torch.Tensor:
    """Variance of the input over 3x3 tokens, summed over channels [h, w]."""
    tokens = view.latent
    mean, square = (F.avg_pool2d(t[None], 3, 1, 1, count_include_pad=False)[0] for t in (tokens, tokens.square()))
    return (square - mean.square()).sum(dim=0).clamp(min=0)


def change(view: ScaleView) -> torch.Tensor:
    """Squared norm of the last change of the accumulated latent, on the grid of scale k [h, w]."""
    return view.resized_residual().square().sum(dim=0)


def error(view: ScaleView, weights: tuple[float, ...]) -> torch.Tensor:
    """Fitted estimate of how much a token changes the pixels [h, w]: weighted `FEATURES` plus a constant."""
    total = view.latent.new_full(view.schedule.grids[view.scale], weights[-1])
    for feature, weight in zip(FEATURES, weights[:-1], strict=True):
        if weight:
            total = total + weight * score_map(feature, view)
    return total.clamp(min=0)


def random(view: ScaleView) -> torch.Tensor:
    """Uniform noise, seeded by the image's seed and the scale [h, w]."""
    generator = torch.Generator("cpu").manual_seed((view.seed * 64 + view.scale) % 2**63)
    drawn = torch.rand(view.schedule.grids[view.scale], generator=generator, dtype=torch.float32, device="cpu")
    return drawn.to(view.latent.device)


def _centred(view: ScaleView) -> torch.Tensor:
    return view.latent - view.latent.mean(dim=(1, 2), keepdim=True)
