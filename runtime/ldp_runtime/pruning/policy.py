"""What a policy is: frozen numbers and pure questions. The full model is the policy that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import ScaleSchedule


@dataclass(frozen=True)
class PictureSoFar:
    """What a policy may look at before scale k of one image.

    Attributes:
        schedule: of the image.
        scale: k, the scale about to run (>= 1).
        residual: R_{k-1} on the token grid [channels, h', w'], fills included.
        computed: True where a token of scale k-1 was computed [h', w'].
        energy: smoothed energy map that chose the tokens of scale k-1 [h', w'], or None.
        latent: F_{k-1} at the token grid of scale k [channels, h, w]: the scale's input.
        seed: of the image.
    """

    schedule: ScaleSchedule
    scale: int
    residual: torch.Tensor
    computed: torch.Tensor
    energy: torch.Tensor | None
    latent: torch.Tensor
    seed: int


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

    def select(self, picture: PictureSoFar) -> Selection | None:
        """Which tokens of scale k? None: all of them."""
        return None

    def fill_residual(self, picture: PictureSoFar) -> torch.Tensor:
        """Residual of the tokens that are not computed, on the token grid of scale k [channels, h, w]."""
        return torch.zeros_like(picture.latent)

    def watches_guidance(self, scale: int, schedule: ScaleSchedule) -> bool:
        """Whether the guidance gap of this scale will be asked for."""
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
