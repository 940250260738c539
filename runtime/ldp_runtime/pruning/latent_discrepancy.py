"""LD-Pruning (arXiv 2606.00310): which tokens (LHEP), and when the unconditional branch stops (SATS).

Scales left as None are derived from the schedule: pruning takes the last scales that hold three quarters of the
tokens (10, 11, 12 on the 1M square schedule, as in the paper), stopping may set in one scale earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning import lhep, sats, scores
from ldp_runtime.pruning.fills import Fill, fill_residual
from ldp_runtime.pruning.policy import PictureSoFar, Policy, Selection, check_choice, check_scales
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import ScaleSchedule

EnergyFrom = Literal["previous", "computed"]
GapNorm = Literal["rms", "l2"]
Border = Literal["counted", "ignored"]


@dataclass(frozen=True)
class LatentDiscrepancy(Policy):
    """LD-Pruning (arXiv 2606.00310): LHEP and SATS, with what the paper leaves open as explicit switches.

    Attributes:
        rho: share of the energy that the kept tokens must reach (Eq. 13); 1 keeps every token with any energy.
        prune_scales: scales that LHEP thins out; None derives them, () switches LHEP off.
        stop_threshold: delta; the branch stops once the gap changes by less. None switches SATS off.
        stop_scales: scales after which SATS may stop the branch; None derives them.
        skip_last: last scales that are not run at all (the paper's headline mode drops 2).
        fill: residual at pruned places: "repeat" up-samples the previous residual (Eq. 14), "zero" adds nothing,
            "scaled" repeats it times `fill_scale`.
        score: what rho is a share of: the paper's "energy", or the "distance" of the input to its mean token.
        energy_from: score the "previous" residual as it is, or carry energy forward where it was not "computed".
        gap: "rms", or the paper's raw "l2".
        border: whether smoothing counts the zeros beyond the border, as a plain average pool does ("counted"), or
            averages real neighbours only ("ignored"); see `lhep.smooth`.
    """

    rho: float = 0.5
    prune_scales: tuple[int, ...] | None = None
    stop_threshold: float | None = 0.15
    stop_scales: tuple[int, ...] | None = None
    skip_last: int = 0
    fill: Fill = "repeat"
    fill_scale: float = 0.0
    score: Literal["energy", "distance"] = "energy"
    energy_from: EnergyFrom = "previous"
    gap: GapNorm = "rms"
    border: Border = "counted"

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ConfigError(f"rho must lie in (0, 1], got {self.rho}")
        if self.stop_threshold is not None and not 0 <= self.stop_threshold < float("inf"):
            raise ConfigError(f"stop_threshold must be a number >= 0 or None, got {self.stop_threshold}")
        if self.skip_last < 0:
            raise ConfigError(f"skip_last must be >= 0, got {self.skip_last}")
        check_choice("fill", self.fill, get_args(Fill))
        if not abs(self.fill_scale) < float("inf"):
            raise ConfigError(f"fill_scale must be finite, got {self.fill_scale}")
        check_choice("score", self.score, ("energy", "distance"))
        check_choice("energy_from", self.energy_from, get_args(EnergyFrom))
        check_choice("gap", self.gap, get_args(GapNorm))
        check_choice("border", self.border, get_args(Border))

    def check(self, schedule: ScaleSchedule) -> None:
        check_scales("prune_scales", self.prune_scales, schedule, first=1)
        check_scales("stop_scales", self.stop_scales, schedule, first=1)
        if self.skip_last >= len(schedule):
            raise ConfigError(f"skip_last {self.skip_last} leaves no scale of {len(schedule)}")

    def scales_to_run(self, schedule: ScaleSchedule) -> int:
        return len(schedule) - self.skip_last

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        if self.prune_scales is None:
            return tuple(k for k in schedule.detail_scales() if k > 0)
        return self.prune_scales

    def stops(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """Scales after which the branch may stop."""
        if self.stop_threshold is None:
            return ()
        if self.stop_scales is None:
            return tuple(range(max(1, schedule.detail_scales()[0] - 1), len(schedule)))
        return self.stop_scales

    def select(self, picture: PictureSoFar) -> Selection | None:
        if picture.scale not in self.prunes(picture.schedule):
            return None
        if self.score == "distance":
            score = scores.distance(picture)
        else:
            score = scores.energy(picture, self.energy_from == "computed", self.border == "counted")
        return Selection(lhep.keep_by_energy(score, self.rho), score)

    def fill_residual(self, picture: PictureSoFar) -> torch.Tensor:
        return fill_residual(self.fill, self.fill_scale, picture)

    def watches_guidance(self, scale: int, schedule: ScaleSchedule) -> bool:
        watched = self.stops(schedule)
        return bool(watched) and scale >= min(watched) - 1

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        if scale not in self.stops(schedule) or scale < 1:
            return False
        previous, current = gaps[scale - 1], gaps[scale]
        if previous is None or current is None or self.stop_threshold is None:
            return False
        gamma = sats.change(previous, current, self.gap)
        return gamma is not None and gamma < self.stop_threshold
