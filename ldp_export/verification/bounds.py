"""Bounds that a model itself shows: its outputs in float64, and how far float32 computations may be from them.

Both are computed from the recorded inputs, per output and per scale. The recorded outputs become those of float64. The
distance of unfavourable float32 computations (`reference/arithmetic.py`) is the rounding of this model, and an engine
may err by `FACTOR` times as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from ldp_runtime.errors import VerificationError
from ldp_runtime.families.base import Codec
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.reference.arithmetic import ComputedIn, Unfavourable
from ldp_export.verification.cases import RESIDUAL, Case, ReferenceCases

_T = TypeVar("_T")

#: Engines in float32 may err by this many times the rounding of the reference model. Correct engines of 41 models erred
#: by at most 2.3 times as much (`benchmarks/study/planted_errors.py`); where logits are few, chance decides.
FACTOR = 8.0

#: Operations in float64 after which no further case is computed: seconds on two cores. The first case always is.
_OPERATIONS = 3e10


@dataclass(frozen=True)
class Outputs:
    """Functions that compute outputs of a reference model again, from recorded inputs.

    Attributes:
        logits: logits of every scale of a case, teacher-forced [rows, computed, V].
        image: image [B, 3, H, W] of latents [B, d, H, W].
        features: features [T, Ct] of token ids [T]; None without a text encoder.
        codec: the family's tokens.
        schedule: scale schedule of a case.
        operations: arithmetic operations that one token of one row takes.
        residual: output of the `residual` graph from the recorded inputs; None for models that have none.
    """

    logits: Callable[[Case], Sequence[torch.Tensor]]
    image: Callable[[torch.Tensor], torch.Tensor]
    features: Callable[[torch.Tensor], torch.Tensor] | None
    codec: Codec
    schedule: Callable[[Case], ScaleSchedule]
    operations: float
    residual: Callable[[], torch.Tensor] | None = None

    def latent(self, cases: ReferenceCases, case: Case) -> torch.Tensor:
        """Latent [d, H, W] of a case's tokens."""
        schedule, codec = self.schedule(case), self.codec
        latent = codec.empty_latent(schedule)
        for k, tokens in enumerate(cases.tokens(case, len(schedule))):
            codes = codec.codes(tokens).unflatten(0, schedule.grids[k])
            latent = codec.accumulate(latent, codes, k, len(schedule))
        return latent


def scale_rounding(scale: int) -> str:
    """Key of the rounding of a scale's logits, in `ReferenceCases.rounding`."""
    return f"logits_{scale}"


def text_rounding(text: str) -> str:
    """Key of the rounding of an encoded text's features."""
    return f"features_{text}"


@torch.no_grad()
def with_bounds(cases: ReferenceCases, outputs: Outputs) -> ReferenceCases:
    """The recorded runs with outputs of float64, and with the rounding of each output and scale.

    Recorded runs are in float32. Those that are not computed again (see `_OPERATIONS`) stay so.

    Raises:
        VerificationError: a recorded output differs from float64 by more than rounding explains.
    """
    bounds = _Bounds(cases)
    for case in _affordable(cases, outputs):
        logits = _twice(lambda case=case: [*outputs.logits(case)])
        for k, (exact, rough) in enumerate(zip(*logits, strict=True)):
            bounds.note(scale_rounding(k), f"{case.name}.logits_{k}", exact, rough)
    for case in cases.cases:
        if f"{case.name}.latent" in cases.tensors:
            exact, rough = _twice(lambda case=case: outputs.latent(cases, case))
            bounds.note("latent", f"{case.name}.latent", exact, rough, replaces=False)
        if f"{case.name}.image" in cases.tensors and "image" not in bounds.rounding:
            latent = bounds.tensors[f"{case.name}.latent"][None]
            exact, rough = _twice(lambda latent=latent: outputs.image(latent)[0])
            bounds.note("image", f"{case.name}.image", exact, rough)
    features = outputs.features
    if (features := outputs.features) is not None:
        for text in cases.texts:
            exact, rough = _twice(lambda ids=cases.tensors[f"{text}.ids"]: features(ids))
            bounds.note(text_rounding(text), f"{text}.features", exact, rough)
    if outputs.residual is not None:
        exact, rough = _twice(outputs.residual)
        bounds.note(RESIDUAL, f"{RESIDUAL}.residual", exact, rough)
    return replace(cases, tensors=bounds.tensors, rounding=with_neighbours(bounds.rounding))


def limit(rounding: float, expected: torch.Tensor, factor: float = FACTOR) -> float:
    """Largest error of an engine's output: no less than some units in the last place of its largest value."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return factor * max(rounding, torch.finfo(torch.float32).eps * largest)


class _Bounds:
    """Outputs in float64 and roundings, as they are gathered."""

    def __init__(self, cases: ReferenceCases) -> None:
        self.tensors, self.rounding = dict(cases.tensors), dict(cases.rounding)

    def note(self, key: str, name: str, exact: torch.Tensor, rough: torch.Tensor, replaces: bool = True) -> None:
        """Replaces a recorded output (or checks it only), and widens the rounding that `key` names."""
        recorded, error = self.tensors[name], distance(rough, exact)
        allowed, found = limit(error, exact), distance(recorded, exact)
        if not (math.isfinite(error) and found <= allowed):
            raise VerificationError(
                f"the reference model's {name}, in float32 and in float64, differ by {found:.3g}; "
                f"rounding explains {allowed:.3g}",
                hint="this is no fault of the engines; the checkpoint may hold values that float32 cannot carry",
            )
        if replaces:
            self.tensors[name] = exact.to(recorded.dtype)
        self.rounding[key] = max(self.rounding.get(key, 0.0), error)


def _affordable(cases: ReferenceCases, outputs: Outputs) -> list[Case]:
    """The first case, and further ones while they take few operations."""
    chosen, spent = [], 0.0
    for case in cases.cases:
        rows = len(cases.tensors[f"{case.name}.logits_0"])
        takes = rows * outputs.schedule(case).total_tokens * outputs.operations
        if not chosen or spent + takes <= _OPERATIONS:
            chosen.append(case)
            spent += takes
    return chosen


def _twice(compute: Callable[[], _T]) -> tuple[_T, _T]:
    """Result in float64, and in unfavourable float32."""
    with ComputedIn(torch.float64):
        exact = compute()
    with Unfavourable():
        return exact, compute()


def with_neighbours(rounding: dict[str, float]) -> dict[str, float]:
    """Roundings in which a scale's logits have the largest of it and the scales beside it.

    The first scale is a single token: its few logits alone would say little about how a model rounds.
    """
    near = dict(rounding)
    for k in range(sum(key.startswith("logits_") for key in rounding)):
        beside = [rounding[key] for j in (k - 1, k, k + 1) if (key := scale_rounding(j)) in rounding]
        near[scale_rounding(k)] = max(beside)
    return near


def distance(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest absolute difference; infinite if either is not finite."""
    if not exact.numel():
        return 0.0
    error = float((got.double() - exact.double()).abs().max())
    return error if math.isfinite(error) else math.inf
