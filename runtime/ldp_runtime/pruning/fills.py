"""The residual of places that are not computed."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from ldp_runtime.pruning.policy import PictureSoFar

#: "repeat" up-samples the previous residual (the paper, Eq. 14), "zero" adds nothing, "scaled" is a multiple of it.
Fill = Literal["repeat", "zero", "scaled"]


def fill_residual(fill: Fill, scale: float, picture: PictureSoFar) -> torch.Tensor:
    """The filled residual on the token grid of scale k [channels, h, w].

    Residual codes of unit norm overshoot, and the next scale corrects them: repeating one adds the same correction
    twice. A number below zero (with "scaled") guesses that correction.
    """
    if fill == "zero":
        return torch.zeros_like(picture.latent)
    repeated = F.interpolate(picture.residual[None], size=picture.schedule.grids[picture.scale], mode="nearest")[0]
    return repeated if fill == "repeat" else repeated * scale
