"""Rules that stop the unconditional branch: SATS (LD-Pruning), and a fixed scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ldp_runtime.arguments import whole_number
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning import sats
from ldp_runtime.pruning.policy import GuidanceRule, Then, check_choice, check_scales, set_number, set_scales
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import ScaleSchedule

GapNorm = Literal["rms", "l2"]


def derived_scales(schedule: ScaleSchedule) -> tuple[int, ...]:
    """Scales after which the branch may stop: from one before the detail scales to the last."""
    return tuple(range(max(1, schedule.detail_scales()[0] - 1), len(schedule)))


@dataclass(frozen=True)
class SATS(GuidanceRule):
    """Scale-Adaptive Termination: the branch stops once the guidance gap settles (LD-Pruning, section 3).

    Attributes:
        delta: the branch stops once the gap changes by less.
        scales: scales after which it may stop; None derives them.
        gap: norm of the gap: "rms", or the paper's raw "l2".
        then: what guides after the stop.
    """

    delta: float = 0.15
    scales: tuple[int, ...] | None = None
    gap: GapNorm = "rms"
    then: Then = "conditional"

    def __post_init__(self) -> None:
        set_number(self, "delta", 0, math.inf)
        set_scales(self)
        check_choice("gap", self.gap, get_args(GapNorm))
        check_choice("then", self.then, get_args(Then))

    def check(self, schedule: ScaleSchedule) -> None:
        check_scales("stop_scales", self.scales, schedule, first=1)

    def stops(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """Scales after which the branch may stop."""
        return derived_scales(schedule) if self.scales is None else self.scales

    def watches(self, scale: int, schedule: ScaleSchedule) -> bool:
        stops = self.stops(schedule)
        return bool(stops) and scale >= min(stops) - 1

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        previous, current = (gaps[scale - 1], gaps[scale]) if scale >= 1 else (None, None)
        if scale not in self.stops(schedule) or previous is None or current is None:
            return False
        gamma = sats.change(previous, current, self.gap)
        return gamma is not None and gamma < self.delta


@dataclass(frozen=True)
class StopAt(GuidanceRule):
    """The branch stops after one scale, whatever the image.

    Attributes:
        scale: the last scale that runs the branch, or the "first" at which SATS might stop it.
        then: what guides after the stop.
    """

    scale: int | Literal["first"] = "first"
    then: Then = "conditional"

    def __post_init__(self) -> None:
        if self.scale != "first":
            plain = whole_number("stop", self.scale, -(2**31), 2**31, hint="stop=first, or stop=4")
            object.__setattr__(self, "scale", plain)
        check_choice("then", self.then, get_args(Then))

    def check(self, schedule: ScaleSchedule) -> None:
        if not isinstance(self.scale, str) and not 0 <= self.scale < len(schedule):
            raise ConfigError(
                f"there is no scale {self.scale} to stop after: this schedule has scales 0 to {len(schedule) - 1}",
                hint="stop=first takes the first scale at which SATS might stop",
            )

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        return scale >= (derived_scales(schedule)[0] if isinstance(self.scale, str) else self.scale)
