"""Rules that pick tokens: LHEP (LD-Pruning), top-p over another score, and top-k with a fixed share.

Scales left as None are derived from the schedule: the last ones that hold at least `detail` of all tokens. On the 1M
square schedule these are scales 10, 11 and 12, as in the paper.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from ldp_runtime.arguments import is_list, listed, number, shown
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning import lhep, scores
from ldp_runtime.pruning.fills import Fill, fill_residual
from ldp_runtime.pruning.fitted import Fitted, check_fits
from ldp_runtime.pruning.policy import (
    ScaleView,
    Selection,
    TokenRule,
    check_choice,
    check_scales,
    set_number,
    set_scales,
)
from ldp_runtime.pruning.scores import Score
from ldp_runtime.schedule import ScaleSchedule

#: Longest list of shares that is read.
_MOST_SHARES = 1000

EnergyFrom = Literal["previous", "computed"]
Border = Literal["counted", "ignored"]
HaarOf = Literal["tokens", "latents"]


@dataclass(frozen=True, kw_only=True)
class _AtScales(TokenRule):
    """Base of the rules: the scales that they thin out, and the fill of what is not computed.

    Attributes:
        fill: residual of pruned tokens: "repeat" up-samples the previous one (Eq. 14), "zero" adds nothing, "linear" is
            fitted by calibration.
        scales: scales that are thinned out; None derives them.
        detail: derived ones are the last scales that hold at least this share of all tokens.
        fitted: numbers that calibration fitted; bundles and saved policies bring them.
    """

    fill: Fill = "repeat"
    scales: tuple[int, ...] | None = None
    detail: float = 0.75
    fitted: Fitted | None = field(default=None, repr=False)

    #: Name of the score, where it is an option.
    score = "energy"

    def __post_init__(self) -> None:
        set_share(self, "detail", hint="0.75 is the usual share of tokens")
        set_scales(self)
        if not isinstance(self.fitted, Fitted | None):
            raise ConfigError(f"fitted must be fitted numbers, got {shown(self.fitted)}", hint="leave it out")
        if self.scales == ():
            raise ConfigError("a rule for no scales", hint="leave the rule out: Policy(tokens=None), or none as text")
        check_choice("fill", self.fill, get_args(Fill))

    def check(self, schedule: ScaleSchedule, last: int) -> None:
        check_scales("scales", self.scales, schedule, first=1)
        check_fits(self.fitted, self.fill, self.score, [k for k in self.prunes(schedule) if k <= last])

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        if self.scales is not None:
            return self.scales
        return tuple(k for k in schedule.detail_scales(self.detail) if k > 0)

    def select(self, view: ScaleView) -> Selection | None:
        return self.keep(view) if view.scale in self.prunes(view.schedule) else None

    @abstractmethod
    def keep(self, view: ScaleView) -> Selection:
        """The tokens of a scale that is thinned out."""

    def fill_residual(self, view: ScaleView) -> torch.Tensor:
        return fill_residual(self.fill, view, self.fitted)


@dataclass(frozen=True)
class LHEP(_AtScales):
    """Latent High-frequency Energy Pruning (LD-Pruning, section 3): the fewest tokens that hold `rho` of the energy.

    The defaults are the paper's.

    Attributes:
        rho: share of the detail energy that the kept tokens must reach (Eq. 13); 1 keeps every token with any energy.
        energy_from: take the energy of the "previous" residual as it is, or carry it forward where nothing was
            "computed".
        border: smoothing counts the zeros beyond the border, as a plain average pool does ("counted"), or averages real
            neighbours only ("ignored"); see `lhep.smooth`.
        haar: transform of "tokens", or of "latents" where tokens are patches of latents (8B).
    """

    rho: float = 0.5
    energy_from: EnergyFrom = "previous"
    border: Border = "counted"
    haar: HaarOf = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        set_share(self, "rho")
        check_choice("energy_from", self.energy_from, get_args(EnergyFrom))
        check_choice("border", self.border, get_args(Border))
        check_choice("haar", self.haar, get_args(HaarOf))

    def keep(self, view: ScaleView) -> Selection:
        carried, counted = self.energy_from == "computed", self.border == "counted"
        score = scores.energy(view, carried, counted, self.haar == "latents")
        return Selection(lhep.keep_by_energy(score, self.rho), score)


@dataclass(frozen=True)
class TopP(_AtScales):
    """The fewest tokens that hold a share `p` of a score.

    Attributes:
        score: map that `p` is a share of; "distance" (of the input to its mean token) is FastVAR's.
    """

    p: float = 0.8
    score: Score = "distance"
    fill: Fill = field(default="zero", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        set_share(self, "p")
        check_choice("score", self.score, get_args(Score))

    def keep(self, view: ScaleView) -> Selection:
        score = scores.score_map(self.score, view, self.fitted)
        return Selection(lhep.keep_by_energy(score, self.p), score)


@dataclass(frozen=True)
class TopK(_AtScales):
    """A fixed share of the tokens, those of the highest score: a control.

    Attributes:
        share: share of tokens to compute at each pruned scale; or one for each of the schedule's last scales.
        score: map of `pruning.scores`, such as "energy" (LHEP's), "distance", or "random" (from the image's seed).
    """

    share: float | tuple[float, ...] = 0.4
    score: str = "energy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_list(self.share):
            shares = tuple(number("share", each) for each in listed("share", self.share, _MOST_SHARES))
            object.__setattr__(self, "share", shares)
        else:
            set_number(self, "share", 0, 1, hint="0.4 computes 40 % of the tokens")
        for share in self._shares:
            if not 0 <= share <= 1:
                raise ConfigError(f"share must lie in [0, 1], got {share}", hint="0.4 computes 40 % of the tokens")
        check_choice("score", self.score, ("energy", *get_args(Score), "random"))

    @property
    def _shares(self) -> tuple[float, ...]:
        return self.share if isinstance(self.share, tuple) else (self.share,)

    def check(self, schedule: ScaleSchedule, last: int) -> None:
        super().check(schedule, last)
        if isinstance(self.share, tuple) and len(self.share) >= len(schedule):
            raise ConfigError(
                f"{len(self.share)} shares for {len(schedule)} scales", hint="the first scale is never pruned"
            )

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        if not isinstance(self.share, tuple):
            return super().prunes(schedule)
        first = len(schedule) - len(self.share)
        return tuple(first + i for i, share in enumerate(self.share) if share < 1)

    def keep(self, view: ScaleView) -> Selection:
        share = self.share[view.scale - len(view.schedule)] if isinstance(self.share, tuple) else self.share
        score = scores.score_map(self.score, view, self.fitted)
        count = round(share * score.numel())
        if isinstance(self.share, tuple) and share:
            count = max(1, count)
        return Selection(lhep.keep_by_rank(score, count), score)


def set_share(rule: object, name: str, hint: str = "a larger share keeps more tokens") -> None:
    """Makes a field of a new rule a plain number; raises ConfigError if it is no share of a whole, or none of it."""
    value = number(name, getattr(rule, name), hint)
    if not 0 < value <= 1:
        raise ConfigError(f"{name} must lie in (0, 1], got {value}", hint=hint)
    set_number(rule, name, 0, 1)
