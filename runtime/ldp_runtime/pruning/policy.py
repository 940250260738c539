"""Base class of policies: frozen settings and pure functions of what was computed so far.

The full model is the policy that changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import Grid, ScaleSchedule


@dataclass(frozen=True)
class ScaleView:
    """View: everything that a policy may look at before scale k of one image.

    Attributes:
        schedule: schedule of the image.
        scale: k, the scale about to run (>= 1).
        residual: R_{k-1} on the token grid [channels, h', w'], fills included.
        computed: True where a token of scale k-1 was computed [h', w'], or None where all were.
        energy: smoothed energy map that chose the tokens of scale k-1 [h', w'], or None.
        latent: F_{k-1} at the token grid of scale k [channels, h, w]: the scale's input.
        seed: seed of the image.
        patch: latent positions per side of a token; more than 1 if tokens are patches of latents.
    """

    schedule: ScaleSchedule
    scale: int
    residual: torch.Tensor
    computed: torch.Tensor | None
    energy: torch.Tensor | None
    latent: torch.Tensor
    seed: int
    patch: int = 1

    def resized_residual(self) -> torch.Tensor:
        """R_{k-1} on the token grid of scale k [channels, h, w], resized as in the accumulation."""
        grid = self.schedule.grids[self.scale]
        return F.interpolate(self.residual[None], size=grid, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class Selection:
    """Tokens of a scale to compute: ascending indices `kept` [kept], and the map `score` they were chosen by [h, w]."""

    kept: torch.Tensor
    score: torch.Tensor


class Policy:
    """The full model; subclasses override the decisions they change. Instances are immutable and shared by threads."""

    def check(self, schedule: ScaleSchedule) -> None:
        """Raises ConfigError if the policy's settings make no sense for this schedule."""

    def scales_to_run(self, schedule: ScaleSchedule) -> int:
        """Number of scales to run before the image is decoded."""
        return len(schedule)

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """Scales at which `select` may keep fewer than all tokens."""
        return ()

    def select(self, view: ScaleView) -> Selection | None:
        """Tokens of scale k to compute; None: all of them."""
        return None

    def fill_residual(self, view: ScaleView) -> torch.Tensor:
        """Residual of the tokens that are not computed, on the token grid of scale k [channels, h, w]."""
        return torch.zeros_like(view.latent)

    def watches_guidance(self, scale: int, schedule: ScaleSchedule) -> bool:
        """True if the guidance gap of this scale must be measured."""
        return False

    def remember_guidance(
        self,
        before: torch.Tensor | None,
        conditional: torch.Tensor,
        unconditional: torch.Tensor,
        kept: torch.Tensor | None,
        grid: Grid,
    ) -> torch.Tensor | None:
        """Map [n, h, w] of l_cond - l_uncond that is remembered for `missing_guidance`, or None.

        Args:
            before: the map that was remembered at the scale before, or None.
            conditional, unconditional: scores of the computed tokens by either branch [L, n].
            kept: indices of these tokens (None: all).
            grid: token grid of the scale.
        """
        return None

    def missing_guidance(self, conditional: torch.Tensor, recalled: torch.Tensor, scale: int) -> torch.Tensor | None:
        """Estimate of l_cond - l_uncond at a scale without the unconditional branch; None: no guidance.

        Args:
            conditional: l_cond of the computed tokens [L, n].
            recalled: last known difference at their positions [L, n].
        """
        return None

    def ends_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        """True if scale k is the last one to draw; the image is then decoded as it is."""
        return False

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        """True if the unconditional branch stops after scale k.

        Args:
            gaps: guidance gap of each scale so far (None: not measured).
            scale: k, the scale that was just computed.
        """
        return False


def check_scales(name: str, scales: tuple[int, ...] | None, schedule: ScaleSchedule, first: int) -> None:
    """Raises ConfigError if one of the scales is not in the schedule, or lies before `first`."""
    wrong = [k for k in scales or () if not first <= k < len(schedule)]
    if wrong:
        raise ConfigError(
            f"{name} {wrong} do not exist: this schedule has scales {first} to {len(schedule) - 1}",
            hint="leave the scales out to derive them from the schedule",
        )


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError if an option does not allow this value."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_number(name: str, value: float | None, least: float = -math.inf) -> None:
    """Raises ConfigError for infinity, NaN, or a number below `least`; None passes."""
    if value is not None and not (math.isfinite(value) and value >= least):
        bound = "" if least == -math.inf else f" >= {least:g}"
        raise ConfigError(f"{name} must be a finite number{bound}, got {value}")
