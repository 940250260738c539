"""A policy of given numbers: what random weights, which draw noise, cannot decide for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning import lhep, scores
from ldp_runtime.pruning.policy import PictureSoFar, Policy, Selection
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import ScaleSchedule


@dataclass(frozen=True)
class GivenShares(Policy):
    """Keeps given shares of the last scales' tokens, chosen at random, and stops the unconditional branch where told.

    It costs what a policy costs that arrives at these numbers, less its scoring.

    Attributes:
        keep: share of tokens of each of the schedule's last `len(keep)` scales; 0 leaves a scale out.
        stop_after: the unconditional branch is not run after this scale; None: it always is.
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

    def select(self, picture: PictureSoFar) -> Selection | None:
        if picture.scale not in self.prunes(picture.schedule):
            return None
        share = self.keep[picture.scale - len(picture.schedule)]
        score = scores.score_map("random", picture, None)
        count = max(1, round(share * score.numel())) if share else 0
        return Selection(lhep.keep_by_rank(score, count), score)

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        return self.stop_after is not None and scale >= self.stop_after
