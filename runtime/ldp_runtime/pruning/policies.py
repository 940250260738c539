"""Policies: frozen numbers and pure questions. A policy is chosen per request; no engine knows about it.

Scales left as None are derived from the schedule: pruning takes the last scales that hold three quarters of the
tokens (10, 11, 12 on the 1M square schedule, as in the paper), stopping may set in one scale earlier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional as F

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning import lhep, sats
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import ScaleSchedule

Fill = Literal["repeat", "zero"]
EnergyFrom = Literal["previous", "computed"]
GapNorm = Literal["rms", "l2"]
Border = Literal["counted", "ignored"]
Score = Literal["energy", "variance", "distance", "random"]


@dataclass(frozen=True)
class PictureSoFar:
    """What a policy may look at before scale k of one image.

    Attributes:
        schedule: of the image.
        scale: k, the scale about to run (>= 1).
        residual: R_{k-1} on the token grid [bits, h', w'], fills included.
        computed: True where a token of scale k-1 was computed [h', w'].
        energy: smoothed energy map that chose the tokens of scale k-1 [h', w'], or None.
        latent: F_{k-1} at the token grid of scale k [bits, h, w]: the scale's input.
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
        """Residual of the tokens that are not computed, on the token grid of scale k [bits, h, w]."""
        return torch.zeros_like(picture.latent)

    def watches_guidance(self, scale: int, schedule: ScaleSchedule) -> bool:
        """Whether the guidance gap of this scale will be asked for."""
        return False

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        """Stop the unconditional branch after scale k? `gaps` holds one entry per scale so far (None: not measured)."""
        return False


def _check_scales(name: str, scales: tuple[int, ...] | None, schedule: ScaleSchedule, first: int) -> None:
    wrong = [k for k in scales or () if not first <= k < len(schedule)]
    if wrong:
        raise ConfigError(
            f"{name} {wrong} do not exist: this schedule has scales {first} to {len(schedule) - 1}",
            hint="leave the scales out to derive them from the schedule",
        )


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass(frozen=True)
class LatentDiscrepancy(Policy):
    """LD-Pruning (arXiv 2606.00310): LHEP and SATS, with what the paper leaves open as explicit switches.

    Attributes:
        rho: share of the energy that the kept tokens must reach (Eq. 13); 1 keeps every token with any energy.
        prune_scales: scales that LHEP thins out; None derives them, () switches LHEP off.
        stop_threshold: delta; the branch stops once the gap changes by less. None switches SATS off.
        stop_scales: scales after which SATS may stop the branch; None derives them.
        skip_last: last scales that are not run at all (the paper's headline mode drops 2).
        fill: residual at pruned places: "repeat" up-samples the previous residual (Eq. 14), "zero" adds nothing.
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
        _check_choice("fill", self.fill, get_args(Fill))
        _check_choice("energy_from", self.energy_from, get_args(EnergyFrom))
        _check_choice("gap", self.gap, get_args(GapNorm))
        _check_choice("border", self.border, get_args(Border))

    def check(self, schedule: ScaleSchedule) -> None:
        _check_scales("prune_scales", self.prune_scales, schedule, first=1)
        _check_scales("stop_scales", self.stop_scales, schedule, first=1)
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
        energy = lhep.haar_energy(picture.residual)
        if self.energy_from == "computed" and picture.energy is not None:
            energy = _carry_energy(energy, picture)
        smoothed = lhep.smooth(energy, count_border=self.border == "counted")
        score = lhep.to_grid(smoothed, picture.schedule.grids[picture.scale])
        return Selection(lhep.keep_by_energy(score, self.rho), score)

    def fill_residual(self, picture: PictureSoFar) -> torch.Tensor:
        if self.fill == "zero":
            return torch.zeros_like(picture.latent)
        grid = picture.schedule.grids[picture.scale]
        return F.interpolate(picture.residual[None], size=grid, mode="nearest")[0]

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


def _carry_energy(energy: torch.Tensor, picture: PictureSoFar) -> torch.Tensor:
    """Energy of 2x2 patches, taken from the map of the scale before where none of the four was computed."""
    assert picture.energy is not None
    any_computed = lhep.any_in_patch(picture.computed)
    carried = F.interpolate(picture.energy[None, None], size=energy.shape, mode="bilinear", align_corners=False)[0, 0]
    return torch.where(any_computed, energy, carried)


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
        _check_scales("scale", (self.scale,), schedule, first=0)

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
        fill: as for LD-Pruning.
    """

    keep: float = 0.4
    score: Score = "energy"
    prune_scales: tuple[int, ...] | None = None
    fill: Fill = "repeat"

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise ConfigError(f"keep must lie in [0, 1], got {self.keep}")
        _check_choice("score", self.score, get_args(Score))
        _check_choice("fill", self.fill, get_args(Fill))

    def check(self, schedule: ScaleSchedule) -> None:
        _check_scales("prune_scales", self.prune_scales, schedule, first=1)

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        return LatentDiscrepancy(prune_scales=self.prune_scales).prunes(schedule)

    def select(self, picture: PictureSoFar) -> Selection | None:
        if picture.scale not in self.prunes(picture.schedule):
            return None
        score = self._score(picture)
        return Selection(lhep.keep_by_rank(score, round(self.keep * score.numel())), score)

    def _score(self, picture: PictureSoFar) -> torch.Tensor:
        grid = picture.schedule.grids[picture.scale]
        tokens = picture.latent
        if self.score == "energy":
            return lhep.to_grid(lhep.smooth(lhep.haar_energy(picture.residual)), grid)
        if self.score == "variance":
            mean, square = (F.avg_pool2d(t[None], 3, 1, 1, count_include_pad=False)[0] for t in (tokens, tokens**2))
            return (square - mean**2).sum(dim=0)
        if self.score == "distance":
            return (tokens - tokens.mean(dim=(1, 2), keepdim=True)).square().sum(dim=0)
        generator = torch.Generator().manual_seed((picture.seed * 64 + picture.scale) % 2**63)
        return torch.rand(grid, generator=generator).to(tokens.device)

    def fill_residual(self, picture: PictureSoFar) -> torch.Tensor:
        return LatentDiscrepancy(fill=self.fill).fill_residual(picture)


#: Policies by name. "ld" is the paper's setting without skipped scales, "ld-skip-2" its headline mode.
_NAMED: dict[str, Policy] = {
    "none": Policy(),
    "ld": LatentDiscrepancy(),
    "ld-skip-2": LatentDiscrepancy(skip_last=2),
    "skip": SkipLastScales(),
    "stop-guidance": StopGuidanceAfter(0),
    "fixed": FixedRatio(),
}


POLICY_NAMES: tuple[str, ...] = tuple(_NAMED)


def parse_policy(text: str) -> Policy | None:
    """A policy from its name and options, such as "ld", "ld:rho=0.4,fill=zero" or "skip:count=2".

    Lists are written with plus signs: "ld:prune_scales=5+6". "none" gives None, the full model.

    Raises:
        ConfigError: unknown name or option, or a value out of range.
    """
    name, _, options = text.strip().partition(":")
    if name not in _NAMED:
        raise ConfigError(f"unknown policy {name!r}", hint=f"one of {', '.join(_NAMED)}")
    base = _NAMED[name]
    fields = {f.name: f for f in dataclasses.fields(base)} if dataclasses.is_dataclass(base) else {}
    changes: dict[str, object] = {}
    for option in filter(None, options.split(",")):
        key, found, value = option.partition("=")
        if key not in fields or not found:
            raise ConfigError(f"policy {name!r} has no option {option!r}", hint=f"its options: {', '.join(fields)}")
        changes[key] = _parse_value(key, value, str(fields[key].type))
    if name == "none":
        return None
    return dataclasses.replace(base, **changes)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _parse_value(key: str, value: str, kind: str) -> object:
    try:
        if value in ("none", "None") and "None" in kind:
            return None
        if kind.startswith("tuple"):
            return tuple(int(part) for part in value.split("+") if part)
        if kind.startswith("float"):
            return float(value)
        return int(value) if kind == "int" else value
    except ValueError as error:
        raise ConfigError(f"{key}={value!r} is not of type {kind}") from error


def describe(policy: Policy | None) -> str:
    """One line for tables and traces, readable by `parse_policy` where the policy has a name."""
    if policy is None or type(policy) is Policy:
        return "none"
    for name, base in _NAMED.items():
        if type(base) is type(policy):
            changed = [
                f"{f.name}={_written(getattr(policy, f.name))}"
                for f in dataclasses.fields(policy)  # pyright: ignore[reportArgumentType]
                if getattr(policy, f.name) != getattr(base, f.name)
            ]
            return name + (":" + ",".join(changed) if changed else "")
    return repr(policy)


def _written(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
