"""Fills: residuals of the tokens that are not computed."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from ldp_runtime.pruning.fitted import Fitted, at_scale, required
from ldp_runtime.pruning.policy import ScaleView

#: "repeat" up-samples the previous residual (the paper, Eq. 14), "zero" adds nothing, "linear" is a prediction that
#: calibration fitted.
Fill = Literal["repeat", "zero", "linear"]


def fill_residual(fill: Fill, view: ScaleView, fitted: Fitted | None = None) -> torch.Tensor:
    """Filled residual on the token grid of scale k [channels, h, w].

    Residual codes of unit norm overshoot, and the next scale corrects them: repeating one adds the same correction
    twice. "linear" predicts most of it.

    Raises:
        ConfigError: "linear" without fitted numbers for this scale.
    """
    if fill == "zero":
        return torch.zeros_like(view.latent)
    if fill == "linear":
        fits = required(fitted and fitted.on(view.latent.device), "fill", "fill=linear")
        return linear(view, *at_scale(fits, view.scale, "fill=linear"))
    return F.interpolate(view.residual[None], size=view.schedule.grids[view.scale], mode="nearest")[0]


def linear(view: ScaleView, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Residual [channels, h, w] predicted from the maps that are known before the scale runs.

    Args:
        kernel: [C, 2 C, 3, 3], applied to `predictors`.
        bias: [C].
    """
    padded = F.pad(predictors(view)[None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel, bias)[0]


def predictors(view: ScaleView) -> torch.Tensor:
    """The previous residual (bilinear) and the accumulated latent on the grid of scale k [2 * channels, h, w]."""
    return torch.cat((view.resized_residual(), view.latent))
