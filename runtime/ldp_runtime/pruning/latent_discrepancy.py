"""LD-Pruning (arXiv 2606.00310): LHEP selects tokens, SATS stops the unconditional branch.

Scales left as None are derived from the schedule. Pruning takes the last scales that hold three quarters of the
tokens: 10, 11 and 12 on the 1M square schedule, as in the paper. Stopping may begin one scale earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning import lhep, sats, scores
from ldp_runtime.pruning.fills import Fill, fill_residual
from ldp_runtime.pruning.fitted import Fitted, check_fits
from ldp_runtime.pruning.policy import Policy, ScaleView, Selection, check_choice, check_number, check_scales
from ldp_runtime.pruning.recall import AfterStop, missing_guidance, remember
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.pruning.scores import Score
from ldp_runtime.schedule import Grid, ScaleSchedule

EnergyFrom = Literal["previous", "computed"]
GapNorm = Literal["rms", "l2"]
Border = Literal["counted", "ignored"]
HaarOf = Literal["tokens", "latents"]


@dataclass(frozen=True)
class LatentDiscrepancy(Policy):
    """LD-Pruning (arXiv 2606.00310): LHEP and SATS, with options for everything that the paper leaves open.

    The defaults are the paper's.

    Attributes:
        rho: share of the score that the kept tokens must reach (Eq. 13); 1 keeps every token with any score.
        prune_scales: scales at which LHEP prunes; None derives them, () switches LHEP off.
        prune_share: derived `prune_scales` are the last scales that hold at least this share of all tokens.
        stop_threshold: delta; the branch stops once the gap changes by less. None switches SATS off. A number above
            any change, such as 9, stops the branch after the first of SATS's scales.
        stop_scales: scales after which SATS may stop the branch; None derives them.
        after_stop: guidance after the stop: none ("conditional"), the last difference of the two branches ("reuse"),
            or a prediction that calibration fitted ("fitted").
        skip_last: number of last scales that are not run at all (the paper's headline mode drops 2).
        end_threshold: an image ends, without further scales, once its gap changes by less; None: never. The gap takes
            both branches, so no image ends after its unconditional branch has stopped.
        end_scales: scales after which an image may end; None: those of SATS.
        fill: residual at pruned positions. "repeat" up-samples the previous residual (Eq. 14), "scaled" repeats it
            times `fill_scale`, "zero" adds nothing, "linear" is fitted by calibration.
        score: the map that rho is a share of: the paper's "energy", or another map of `pruning.scores`.
        energy_from: "previous" scores the previous residual as it is. "computed" carries energy forward from earlier
            scales at positions where the residual was not computed.
        gap: norm of the gap: "rms", or the paper's raw "l2".
        border: "counted" smooths with the zeros beyond the border, as a plain average pool does. "ignored" averages
            real neighbours only; see `lhep.smooth`.
        haar: the Haar transform is taken of "tokens", or of "latents" where tokens are patches of latents (8B).
        fitted: numbers that calibration fitted; bundles and saved policies supply them.
    """

    rho: float = 0.5
    prune_scales: tuple[int, ...] | None = None
    prune_share: float = 0.75
    stop_threshold: float | None = 0.15
    stop_scales: tuple[int, ...] | None = None
    after_stop: AfterStop = "conditional"
    skip_last: int = 0
    end_threshold: float | None = None
    end_scales: tuple[int, ...] | None = None
    fill: Fill = "repeat"
    fill_scale: float = 0.0
    score: Score = "energy"
    energy_from: EnergyFrom = "previous"
    gap: GapNorm = "rms"
    border: Border = "counted"
    haar: HaarOf = "tokens"
    fitted: Fitted | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ConfigError(f"rho must lie in (0, 1], got {self.rho}")
        if not 0 < self.prune_share <= 1:
            raise ConfigError(f"prune_share must lie in (0, 1], got {self.prune_share}")
        for name in ("stop_threshold", "end_threshold"):
            check_number(name, getattr(self, name), least=0)
        if self.skip_last < 0:
            raise ConfigError(f"skip_last must be >= 0, got {self.skip_last}")
        check_choice("fill", self.fill, get_args(Fill))
        check_number("fill_scale", self.fill_scale)
        check_choice("score", self.score, get_args(Score))
        check_choice("after_stop", self.after_stop, get_args(AfterStop))
        check_choice("energy_from", self.energy_from, get_args(EnergyFrom))
        check_choice("gap", self.gap, get_args(GapNorm))
        check_choice("border", self.border, get_args(Border))
        check_choice("haar", self.haar, get_args(HaarOf))

    def check(self, schedule: ScaleSchedule) -> None:
        check_scales("prune_scales", self.prune_scales, schedule, first=1)
        check_scales("stop_scales", self.stop_scales, schedule, first=1)
        check_scales("end_scales", self.end_scales, schedule, first=1)
        if self.skip_last >= len(schedule):
            raise ConfigError(f"skip_last {self.skip_last} leaves no scale of {len(schedule)}")
        run, stops = range(self.scales_to_run(schedule)), self.stops(schedule)
        pruned = [k for k in self.prunes(schedule) if k in run]
        check_fits(self.fitted, self.fill, self.score, pruned, self.after_stop, run[min(stops) + 1 :] if stops else ())

    def scales_to_run(self, schedule: ScaleSchedule) -> int:
        return len(schedule) - self.skip_last

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        if self.prune_scales is None:
            return tuple(k for k in schedule.detail_scales(self.prune_share) if k > 0)
        return self.prune_scales

    def stops(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """Scales after which the unconditional branch may stop."""
        return () if self.stop_threshold is None else _or_derived(self.stop_scales, schedule)

    def ends(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """Scales after which an image may end."""
        return () if self.end_threshold is None else _or_derived(self.end_scales, schedule)

    def select(self, view: ScaleView) -> Selection | None:
        if view.scale not in self.prunes(view.schedule):
            return None
        if self.score == "energy":
            carried, counted = self.energy_from == "computed", self.border == "counted"
            score = scores.energy(view, carried, counted, self.haar == "latents")
        else:
            score = scores.score_map(self.score, view, self.fitted)
        return Selection(lhep.keep_by_energy(score, self.rho), score)

    def fill_residual(self, view: ScaleView) -> torch.Tensor:
        return fill_residual(self.fill, self.fill_scale, view, self.fitted)

    def watches_guidance(self, scale: int, schedule: ScaleSchedule) -> bool:
        watched = (*self.stops(schedule), *self.ends(schedule))
        return bool(watched) and scale >= min(watched) - 1

    def remember_guidance(
        self,
        before: torch.Tensor | None,
        conditional: torch.Tensor,
        unconditional: torch.Tensor,
        kept: torch.Tensor | None,
        grid: Grid,
    ) -> torch.Tensor | None:
        if self.after_stop == "conditional" or self.stop_threshold is None:
            return None
        return remember(before, conditional - unconditional, kept, grid)

    def missing_guidance(self, conditional: torch.Tensor, recalled: torch.Tensor, scale: int) -> torch.Tensor | None:
        return missing_guidance(self.after_stop, conditional, recalled, scale, self.fitted)

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        return scale in self.stops(schedule) and self._settled(gaps, scale, self.stop_threshold)

    def ends_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        return scale in self.ends(schedule) and self._settled(gaps, scale, self.end_threshold)

    def _settled(self, gaps: Sequence[GuidanceGap | None], scale: int, threshold: float | None) -> bool:
        """True if the gap of this scale differs from that of the scale before by less than the threshold."""
        previous, current = (gaps[scale - 1], gaps[scale]) if scale >= 1 else (None, None)
        if previous is None or current is None or threshold is None:
            return False
        gamma = sats.change(previous, current, self.gap)
        return gamma is not None and gamma < threshold


def _or_derived(scales: tuple[int, ...] | None, schedule: ScaleSchedule) -> tuple[int, ...]:
    return tuple(range(max(1, schedule.detail_scales()[0] - 1), len(schedule))) if scales is None else scales
