"""Controls: simple policies that the paper lacks, and that LD-Pruning has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning import lhep, scores
from ldp_runtime.pruning.fills import Fill, fill_residual
from ldp_runtime.pruning.fitted import Fitted, check_fits
from ldp_runtime.pruning.latent_discrepancy import LatentDiscrepancy
from ldp_runtime.pruning.policy import Policy, ScaleView, Selection, check_choice, check_number, check_scales
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.pruning.scores import Score
from ldp_runtime.schedule import ScaleSchedule


@dataclass(frozen=True)
class StopGuidanceAfter(Policy):
    """Control: the unconditional branch always stops after the same scale."""

    scale: int

    def check(self, schedule: ScaleSchedule) -> None:
        check_scales("scale", (self.scale,), schedule, first=0)

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        return scale >= self.scale


@dataclass(frozen=True, kw_only=True)
class _MayStop(Policy):
    """Base of controls: for every prompt, the unconditional branch stops after scale `stop_after` (None: never)."""

    stop_after: int | None = None

    def check(self, schedule: ScaleSchedule) -> None:
        check_scales("stop_after", None if self.stop_after is None else (self.stop_after,), schedule, first=0)

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        return self.stop_after is not None and scale >= self.stop_after


@dataclass(frozen=True)
class SkipLastScales(_MayStop):
    """Control: the last `count` scales are not computed, whatever the prompt."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"count must be >= 0, got {self.count}")

    def check(self, schedule: ScaleSchedule) -> None:
        super().check(schedule)
        if self.count >= len(schedule):
            raise ConfigError(f"skipping {self.count} scales leaves none of {len(schedule)}")

    def scales_to_run(self, schedule: ScaleSchedule) -> int:
        return len(schedule) - self.count


@dataclass(frozen=True)
class FixedRatio(_MayStop):
    """Control: a fixed share of the tokens, chosen by a score.

    Attributes:
        keep: share of tokens to compute at each pruned scale.
        score: name of a map of `pruning.scores`: "energy" is LHEP's. "distance" (of the input to its mean token) is
            FastVAR's. "random" is seeded by the image's seed.
        prune_scales: scales to prune; None derives them as LD-Pruning does.
        fill, fill_scale, fitted: as for LD-Pruning.
    """

    keep: float = 0.4
    score: str = "energy"
    prune_scales: tuple[int, ...] | None = None
    fill: Fill = "repeat"
    fill_scale: float = 0.0
    fitted: Fitted | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise ConfigError(f"keep must lie in [0, 1], got {self.keep}")
        check_choice("score", self.score, (*get_args(Score), "random"))
        check_choice("fill", self.fill, get_args(Fill))
        check_number("fill_scale", self.fill_scale)

    def check(self, schedule: ScaleSchedule) -> None:
        super().check(schedule)
        check_scales("prune_scales", self.prune_scales, schedule, first=1)
        check_fits(self.fitted, self.fill, self.score, self.prunes(schedule))

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        return LatentDiscrepancy(prune_scales=self.prune_scales).prunes(schedule)

    def select(self, view: ScaleView) -> Selection | None:
        if view.scale not in self.prunes(view.schedule):
            return None
        score = scores.score_map(self.score, view, self.fitted)
        return Selection(lhep.keep_by_rank(score, round(self.keep * score.numel())), score)

    def fill_residual(self, view: ScaleView) -> torch.Tensor:
        return fill_residual(self.fill, self.fill_scale, view, self.fitted)


@dataclass(frozen=True)
class GivenShares(Policy):
    """Control: given shares of the last scales' tokens, chosen at random, and a given end of the unconditional branch.

    Its cost is that of a policy that arrives at the same shares, without that policy's scoring.

    Attributes:
        keep: share of tokens to keep at each of the schedule's last `len(keep)` scales; 0 leaves a scale out.
        stop_after: last scale that runs the unconditional branch; None: it always runs.
    """

    keep: tuple[float, ...] = ()
    stop_after: int | None = None

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in self.keep):
            raise ConfigError(f"shares to keep must lie in [0, 1], got {self.keep}")

    def check(self, schedule: ScaleSchedule) -> None:
        if len(self.keep) >= len(schedule):
            raise ConfigError(f"{len(self.keep)} shares for {len(schedule)} scales: the first is never pruned")
        if self.stop_after is not None and not 0 <= self.stop_after < len(schedule):
            raise ConfigError(f"there is no scale {self.stop_after}: this schedule has 0 to {len(schedule) - 1}")

    def scales_to_run(self, schedule: ScaleSchedule) -> int:
        left_out = next((i for i, share in enumerate(reversed(self.keep)) if share > 0), len(self.keep))
        return len(schedule) - left_out

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        first = len(schedule) - len(self.keep)
        return tuple(k for k in range(first, self.scales_to_run(schedule)) if self.keep[k - first] < 1)

    def select(self, view: ScaleView) -> Selection | None:
        if view.scale not in self.prunes(view.schedule):
            return None
        share = self.keep[view.scale - len(view.schedule)]
        score = scores.score_map("random", view, None)
        count = max(1, round(share * score.numel())) if share else 0
        return Selection(lhep.keep_by_rank(score, count), score)

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        return self.stop_after is not None and scale >= self.stop_after
