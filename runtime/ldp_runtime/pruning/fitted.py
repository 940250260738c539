"""Fitted numbers: calibration fits them for one bundle, and policies may need them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.numerics import all_finite

#: Decimal places that fitted numbers are written with; their own uncertainty is far larger than the rounding.
_DIGITS = 6


@dataclass(frozen=True, eq=False)
class Fitted:
    """Least-squares fits for one bundle; a policy raises an error if it needs one that is missing.

    Attributes:
        fill: scale -> (kernel [C, 2 C, 3, 3], bias [C]). They predict the residual from the up-sampled previous one and
            the accumulated latent; see `fills.linear`.
        error: scale -> weights of `scores.FEATURES`, and a constant, that predict a token's error if it is filled.
    """

    fill: Mapping[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    error: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    _copies: dict[torch.device, Fitted] = field(default_factory=dict, init=False, repr=False)

    def on(self, device: torch.device) -> Fitted:
        """The same numbers on a device, copied there only once: every pruned scale of every image needs them."""
        if device not in self._copies:
            self._copies[device] = replace(
                self,
                fill={k: (kernel.to(device), bias.to(device)) for k, (kernel, bias) in self.fill.items()},
            )
        return self._copies[device]

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain floats and lists."""
        return {
            "fill": {
                str(k): {"kernel": _rounded(kernel), "bias": _rounded(bias)} for k, (kernel, bias) in self.fill.items()
            },
            "error": {str(k): [round(v, _DIGITS) for v in weights] for k, weights in self.error.items()},
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Fitted:
        """Reads what `to_json` writes; what older files hold beside it is passed over.

        Raises:
            IntegrityError: anything else.
        """
        try:
            fitted = cls(
                {int(k): (_tensor(f["kernel"]), _tensor(f["bias"])) for k, f in plain["fill"].items()},
                {int(k): tuple(map(float, weights)) for k, weights in plain["error"].items()},
            )
            _check(fitted)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise IntegrityError(f"fitted numbers cannot be read: {error}", hint="calibrate again") from error
        return fitted


def _tensor(numbers: Any) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")


def _check(fitted: Fitted) -> None:
    """Raises ValueError for shapes that do not match, and for NaN and infinity."""
    for kernel, bias in fitted.fill.values():
        C = bias.shape[0]
        if kernel.shape != (C, 2 * C, 3, 3):
            raise ValueError(f"a fill's kernel is {list(kernel.shape)}, its bias {list(bias.shape)}")
    tensors = [tensor for fill in fitted.fill.values() for tensor in fill]
    numbers = [number for row in fitted.error.values() for number in row]
    if not all(map(all_finite, tensors)) or not all(map(math.isfinite, numbers)):
        raise ValueError("a number is NaN or infinite")


def required(fitted: Fitted | None, part: str, why: str) -> Any:
    """The attribute `part` of the fitted numbers, which the policy option `why` needs.

    Raises:
        ConfigError: nothing was fitted.
    """
    fits = None if fitted is None else getattr(fitted, part)
    if fits is None or (isinstance(fits, Mapping) and not fits):
        raise ConfigError(
            f"{why} needs numbers that are fitted to one bundle, and this one has none",
            hint="`ldp-export calibrate BUNDLE --fit-only` fits them; a calibrated profile brings its own",
        )
    return fits


def at_scale(fits: Mapping[int, Any], scale: int, why: str) -> Any:
    """The fit of one scale, which the policy option `why` needs.

    Raises:
        ConfigError: calibration, which fits the square schedule, fitted other scales only.
    """
    if scale not in fits:
        raise ConfigError(
            f"{why} was fitted for scales {sorted(fits)}, not for scale {scale}",
            hint="choose among these with prune_scales and stop_scales, or do without it",
        )
    return fits[scale]


def _rounded(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _rounded(value.tolist())
    return [_rounded(part) for part in value] if isinstance(value, list) else round(value, _DIGITS)


def check_fits(fitted: Fitted | None, fill: str, score: str, pruned: Iterable[int]) -> None:
    """Raises ConfigError if an option of a token rule needs numbers that were not fitted.

    Args:
        pruned: scales that `fill` and `score` are used at.
    """
    parts = {"fill=linear": "fill", "score=error": "error"}
    for switch in (f"fill={fill}", f"score={score}"):
        if switch in parts:
            fits = required(fitted, parts[switch], switch)
            for scale in pruned:
                at_scale(fits, scale, switch)


def needs_fits(policy: object) -> bool:
    """True if the token rule of a policy needs fitted numbers and has none."""
    rule = getattr(policy, "tokens", None)
    if rule is None or getattr(rule, "fitted", rule) is not None:
        return False
    return getattr(rule, "fill", None) == "linear" or getattr(rule, "score", None) == "error"
