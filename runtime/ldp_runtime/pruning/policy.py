"""Base class of policies: frozen settings and pure functions of what was computed so far.

The full model is the policy that changes nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from ldp_runtime.arguments import listed, number, shown, whole_number
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.recall import remember
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


#: After the stop: the "conditional" logits alone, or the last difference of the two branches unchanged ("reuse").
Then = Literal["conditional", "reuse"]


class TokenRule(ABC):
    """Rule that picks the tokens of a scale to compute, and fills the others. Instances are immutable numbers."""

    def check(self, schedule: ScaleSchedule, last: int) -> None:  # noqa: B027 - many rules fit every schedule
        """Raises ConfigError when the rule's numbers make no sense on this schedule, of which scale `last` is run."""

    @abstractmethod
    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """Scales at which `select` may keep less than all tokens."""

    @abstractmethod
    def select(self, view: ScaleView) -> Selection | None:
        """The tokens of scale k to compute; None: all of them."""

    def fill_residual(self, view: ScaleView) -> torch.Tensor:
        """Residual of the tokens that are not computed, on the token grid of scale k [channels, h, w]."""
        return torch.zeros_like(view.latent)


class GuidanceRule(ABC):
    """Rule that stops the unconditional branch. Instances are immutable numbers.

    Attributes:
        then: what guides after the stop.
    """

    then: Then = "conditional"

    def check(self, schedule: ScaleSchedule) -> None:  # noqa: B027 - many rules fit every schedule
        """Raises ConfigError when the rule's numbers make no sense on this schedule."""

    def watches(self, scale: int, schedule: ScaleSchedule) -> bool:
        """True if the guidance gap of this scale will be asked for."""
        return False

    @abstractmethod
    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        """True if the unconditional branch stops after scale k.

        Args:
            gaps: one entry per scale so far (None: not measured).
        """

    def remember(
        self,
        before: torch.Tensor | None,
        conditional: torch.Tensor,
        unconditional: torch.Tensor,
        kept: torch.Tensor | None,
        grid: Grid,
    ) -> torch.Tensor | None:
        """Map of l_cond - l_uncond [n, h, w] to keep for `missing`, or None.

        Args:
            before: what was kept of the scale before.
            conditional, unconditional: scores of the computed tokens by branch [L, n].
            kept: indices of these tokens (None: all).
        """
        return remember(before, conditional - unconditional, kept, grid) if self.then == "reuse" else None

    def missing(self, conditional: torch.Tensor, recalled: torch.Tensor, scale: int) -> torch.Tensor | None:
        """Estimate of l_cond - l_uncond [L, n] at a scale whose unconditional branch was stopped.

        Args:
            conditional: l_cond of the computed tokens [L, n].
            recalled: the last known difference at their positions [L, n].
        """
        return recalled


@dataclass(frozen=True)
class Policy:
    """Policy of one image: which tokens are computed, when the unconditional branch stops, how many scales are skipped.

    Attributes:
        tokens: rule that picks tokens; None: all of them.
        guidance: rule that stops the unconditional branch; None: it runs to the end.
        skip_last: last scales that are not run.
    """

    tokens: TokenRule | None = None
    guidance: GuidanceRule | None = None
    skip_last: int = 0

    def __post_init__(self) -> None:
        for name, rule, kind in (("tokens", self.tokens, TokenRule), ("guidance", self.guidance, GuidanceRule)):
            if rule is not None and not isinstance(rule, kind):
                raise ConfigError(f"{name} must be a {kind.__name__}, got {shown(rule)}", hint="such as LHEP(), SATS()")
        skipped = whole_number("skip_last", self.skip_last, 0, 2**31, hint="0 runs every scale")
        object.__setattr__(self, "skip_last", skipped)

    def check(self, schedule: ScaleSchedule) -> None:
        """Raises ConfigError when the policy's numbers make no sense on this schedule."""
        if self.skip_last >= len(schedule):
            raise ConfigError(
                f"skip_last {self.skip_last} leaves none of {len(schedule)} scales", hint="skip fewer scales"
            )
        if self.tokens is not None:
            self.tokens.check(schedule, self.scales_to_run(schedule) - 1)
        if self.guidance is not None:
            self.guidance.check(schedule)

    def scales_to_run(self, schedule: ScaleSchedule) -> int:
        """Number of scales before the image is decoded."""
        return len(schedule) - self.skip_last

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """Scales at which less than all tokens may be computed."""
        return () if self.tokens is None else self.tokens.prunes(schedule)


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
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"there is no {name} {shown(value)}", hint=f"one of {', '.join(allowed)}")


def set_number(rule: object, name: str, low: float, high: float, hint: str | None = None) -> None:
    """Makes a field of a new rule a plain number.

    Raises:
        ConfigError: it is no number in [low, high].
    """
    value = getattr(rule, name)
    checked = number(name, value, hint)
    if not low <= checked <= high:
        bound = f"[{low:g}, {high:g}{')' if high == math.inf else ']'}"
        raise ConfigError(f"{name} must lie in {bound}, got {value}", hint=hint)
    if type(value) not in (int, float):
        object.__setattr__(rule, name, checked)


def set_scales(rule: object, name: str = "scales") -> None:
    """Makes a field of a new rule a tuple of scales, or leaves it None.

    Raises:
        ConfigError: it is no list of whole numbers.
    """
    value = getattr(rule, name)
    if value is not None:
        scales = tuple(whole_number("a scale", each, -_MOST_SCALES, _MOST_SCALES) for each in _listed(name, value))
        object.__setattr__(rule, name, scales)


#: Longest list of scales that is read.
_MOST_SCALES = 1000


def _listed(name: str, value: object) -> list[object]:
    return listed(name, value, _MOST_SCALES)
