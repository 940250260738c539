"""What a policy is: frozen numbers and pure questions. The full model is the policy that changes nothing."""

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
    """What a policy may look at before scale k of one image.

    Attributes:
        schedule: of the image.
        scale: k, the scale about to run (>= 1).
        residual: R_{k-1} on the token grid [channels, h', w'], fills included.
        computed: True where a token of scale k-1 was computed [h', w'], or None where all were.
        energy: smoothed energy map that chose the tokens of scale k-1 [h', w'], or None.
        latent: F_{k-1} at the token grid of scale k [channels, h, w]: the scale's input.
        seed: of the image.
        patch: latents per token side, where tokens are patches of latents.
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
        """R_{k-1} at the token grid of scale k, as accumulating it resizes it [channels, h, w]."""
        grid = self.schedule.grids[self.scale]
        return F.interpolate(self.residual[None], size=grid, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class Selection:
    """Tokens of a scale to compute: ascending indices [kept], and the map they were chosen by [h, w]."""

    kept: torch.Tensor
    score: torch.Tensor


class Policy:
    """The full model; subclasses override what they change. Instances are immutable and shared between threads."""

    def check(self, schedule: ScaleSchedule) -> None:
        """Raises ConfigError when the policy's numbers make no sense on this schedule."""

    def scales_to_run(self, schedule: ScaleSchedule) -> int:
        """Number of scales before the picture is decoded."""
        return len(schedule)

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """Scales at which `select` may keep less than all tokens."""
        return ()

    def select(self, view: ScaleView) -> Selection | None:
        """Which tokens of scale k? None: all of them."""
        return None

    def fill_residual(self, view: ScaleView) -> torch.Tensor:
        """Residual of the tokens that are not computed, on the token grid of scale k [channels, h, w]."""
        return torch.zeros_like(view.latent)

    def watches_guidance(self, scale: int, schedule: ScaleSchedule) -> bool:
        """Whether the guidance gap of this scale will be asked for."""
        return False

    def remember_guidance(
        self,
        before: torch.Tensor | None,
        conditional: torch.Tensor,
        unconditional: torch.Tensor,
        kept: torch.Tensor | None,
        grid: Grid,
    ) -> torch.Tensor | None:
        """What to keep of a scale's guidance for `missing_guidance`: a map [n, h, w] of l_cond - l_uncond, or None.

        Args:
            before: what was kept of the scale before.
            conditional, unconditional: what the branches say of the computed tokens [L, n]; kept: their indices.
        """
        return None

    def missing_guidance(self, conditional: torch.Tensor, recalled: torch.Tensor, scale: int) -> torch.Tensor | None:
        """A guess of l_cond - l_uncond at a scale whose unconditional branch was stopped; None: guidance ends.

        Args:
            conditional: l_cond of the computed tokens [L, n].
            recalled: the last known difference at their places [L, n].
        """
        return None

    def ends_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        """Draw no scale after scale k? The picture is then decoded as it is."""
        return False

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        """Stop the unconditional branch after scale k? `gaps` holds one entry per scale so far (None: not measured)."""
        return False


def check_scales(name: str, scales: tuple[int, ...] | None, schedule: ScaleSchedule, first: int) -> None:
    """Raises ConfigError when a scale is not of the schedule."""
    wrong = [k for k in scales or () if not first <= k < len(schedule)]
    if wrong:
        raise ConfigError(
            f"{name} {wrong} do not exist: this schedule has scales {first} to {len(schedule) - 1}",
            hint="leave the scales out to derive them from the schedule",
        )


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError when a switch has no such setting."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_number(name: str, value: float | None, least: float = -math.inf) -> None:
    """Raises ConfigError for infinity, NaN, or a number below `least`; None passes."""
    if value is not None and not (math.isfinite(value) and value >= least):
        bound = "" if least == -math.inf else f" >= {least:g}"
        raise ConfigError(f"{name} must be a finite number{bound}, got {value}")
