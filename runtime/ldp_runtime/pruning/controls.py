"""Controls: simple policies that the paper lacks, and that pruning by latent discrepancy has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning import lhep, scores
from ldp_runtime.pruning.fills import Fill, fill_residual
from ldp_runtime.pruning.latent_discrepancy import LatentDiscrepancy
from ldp_runtime.pruning.policy import PictureSoFar, Policy, Selection, check_choice, check_scales
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import ScaleSchedule

_SCORES: dict[str, Callable[[PictureSoFar], torch.Tensor]] = {
    "energy": scores.energy,
    "variance": scores.variance,
    "distance": scores.distance,
    "random": scores.random,
}


@dataclass(frozen=True)
class SkipLastScales(Policy):
    """Control: the last `count` scales are never computed, for every prompt alike."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"count must be >= 0, got {self.count}")

    def check(self, schedule: ScaleSchedule) -> None:
        if self.count >= len(schedule):
            raise ConfigError(f"skipping {self.count} scales leaves none of {len(schedule)}")

    def scales_to_run(self, schedule: ScaleSchedule) -> int:
        return len(schedule) - self.count


@dataclass(frozen=True)
class StopGuidanceAfter(Policy):
    """Control: the unconditional branch always stops after the same scale."""

    scale: int

    def check(self, schedule: ScaleSchedule) -> None:
        check_scales("scale", (self.scale,), schedule, first=0)

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        return scale >= self.scale


@dataclass(frozen=True)
class FixedRatio(Policy):
    """Control: a fixed share of the tokens, chosen by a score.

    Attributes:
        keep: share of tokens to compute at each pruned scale.
        score: "energy" (LHEP's map), "variance" (of the input over 3x3 tokens), "distance" (of the input to its mean
            token, FastVAR's score), or "random" (seeded by the image's seed).
        prune_scales: None derives them as LD-Pruning does.
        fill, fill_scale: as for LD-Pruning.
    """

    keep: float = 0.4
    score: str = "energy"
    prune_scales: tuple[int, ...] | None = None
    fill: Fill = "repeat"
    fill_scale: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise ConfigError(f"keep must lie in [0, 1], got {self.keep}")
        check_choice("score", self.score, tuple(_SCORES))
        check_choice("fill", self.fill, get_args(Fill))
        if not abs(self.fill_scale) < float("inf"):
            raise ConfigError(f"fill_scale must be finite, got {self.fill_scale}")

    def check(self, schedule: ScaleSchedule) -> None:
        check_scales("prune_scales", self.prune_scales, schedule, first=1)

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        return LatentDiscrepancy(prune_scales=self.prune_scales).prunes(schedule)

    def select(self, picture: PictureSoFar) -> Selection | None:
        if picture.scale not in self.prunes(picture.schedule):
            return None
        score = _SCORES[self.score](picture)
        return Selection(lhep.keep_by_rank(score, round(self.keep * score.numel())), score)

    def fill_residual(self, picture: PictureSoFar) -> torch.Tensor:
        return fill_residual(self.fill, self.fill_scale, picture)
