"""Numbers that calibration fits for one bundle, and that policies may ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.numerics import all_finite

#: Written digits of a fitted number: far below its own uncertainty.
_DIGITS = 6


@dataclass(frozen=True, eq=False)
class Fitted:
    """Least-squares fits of one bundle; what a fit lacks, a policy that needs it refuses.

    Attributes:
        fill: scale -> (kernel [C, 2 C, 3, 3], bias [C]) that guesses the residual from the up-sampled previous one and
            the accumulated latent; see `fills.linear`.
        guidance: scale -> (a, b) that guess l_cond - l_uncond as a times its last value plus b times l_cond; see
            `guidance_recall`.
        metric: what the decoder makes of a change of the latent, a symmetric matrix [C, C]; see `scores.decoder`.
        error: scale -> weights of `scores.FEATURES` and a constant that predict a token's error when it is filled.
    """

    fill: Mapping[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    guidance: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    metric: torch.Tensor | None = None
    error: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    _copies: dict[torch.device, Fitted] = field(default_factory=dict, init=False, repr=False)

    def on(self, device: torch.device) -> Fitted:
        """The same numbers on a device, copied there once: every pruned scale of every image asks for them."""
        if device not in self._copies:
            self._copies[device] = replace(
                self,
                fill={k: (kernel.to(device), bias.to(device)) for k, (kernel, bias) in self.fill.items()},
                metric=None if self.metric is None else self.metric.to(device),
            )
        return self._copies[device]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {
            "fill": {
                str(k): {"kernel": _rounded(kernel), "bias": _rounded(bias)} for k, (kernel, bias) in self.fill.items()
            },
            "guidance": {str(k): [round(v, _DIGITS) for v in pair] for k, pair in self.guidance.items()},
            "metric": None if self.metric is None else _rounded(self.metric),
            "error": {str(k): [round(v, _DIGITS) for v in weights] for k, weights in self.error.items()},
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Fitted:
        """Raises IntegrityError for anything that `to_json` does not write."""
        try:
            fitted = cls(
                {int(k): (torch.tensor(f["kernel"]), torch.tensor(f["bias"])) for k, f in plain["fill"].items()},
                {int(k): (float(a), float(b)) for k, (a, b) in plain["guidance"].items()},
                None if plain["metric"] is None else torch.tensor(plain["metric"]),
                {int(k): tuple(map(float, weights)) for k, weights in plain["error"].items()},
            )
            _check(fitted)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise IntegrityError(f"fitted numbers cannot be read: {error}", hint="calibrate again") from error
        return fitted


def _check(fitted: Fitted) -> None:
    """Raises ValueError for shapes that do not go together, and for NaN and infinity."""
    for kernel, bias in fitted.fill.values():
        C = bias.shape[0]
        if kernel.shape != (C, 2 * C, 3, 3):
            raise ValueError(f"a fill's kernel is {list(kernel.shape)}, its bias {list(bias.shape)}")
    metric = torch.empty(0, 0) if fitted.metric is None else fitted.metric
    if metric.dim() != 2 or metric.shape[0] != metric.shape[1]:
        raise ValueError(f"the metric is {list(metric.shape)}")
    tensors = [metric, *(tensor for fill in fitted.fill.values() for tensor in fill)]
    numbers = [number for row in (*fitted.guidance.values(), *fitted.error.values()) for number in row]
    if not all(map(all_finite, tensors)) or not all(map(math.isfinite, numbers)):
        raise ValueError("a number is NaN or infinite")


def required(fitted: Fitted | None, part: str, why: str) -> Any:
    """`fitted.part`, which the switch `why` needs.

    Raises:
        ConfigError: nothing was fitted.
    """
    found = None if fitted is None else getattr(fitted, part)
    if found is None or (isinstance(found, Mapping) and not found):
        raise ConfigError(
            f"{why} needs numbers that are fitted to one bundle, and this one has none",
            hint="`ldp-export calibrate BUNDLE --fit-only` fits them; a calibrated profile brings its own",
        )
    return found


def at_scale(fits: Mapping[int, Any], scale: int, why: str) -> Any:
    """The fit of one scale. Raises ConfigError where calibration, which fits the square schedule, fitted others."""
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


def check_fits(
    fitted: Fitted | None,
    fill: str,
    score: str,
    pruned: Iterable[int],
    after_stop: str = "conditional",
    stopped: Iterable[int] = (),
) -> None:
    """Raises ConfigError where a switch asks for numbers that were not fitted.

    Args:
        pruned: scales that `fill` and `score` serve; stopped: scales that `after_stop` may serve.
    """
    needs = {
        "fill=linear": ("fill", pruned),
        "score=decoder": ("metric", ()),
        "score=error": ("error", pruned),
        "after_stop=fitted": ("guidance", stopped),
    }
    for switch in (f"fill={fill}", f"score={score}", f"after_stop={after_stop}"):
        if switch in needs:
            part, scales = needs[switch]
            fits = required(fitted, part, switch)
            for scale in scales:
                at_scale(fits, scale, switch)


def needs_fits(policy: object) -> bool:
    """Whether a policy asks for fitted numbers and has none."""
    if getattr(policy, "fitted", policy) is not None:
        return False
    switches = {getattr(policy, name, None) for name in ("fill", "score", "after_stop")}
    return bool(switches & {"linear", "decoder", "error", "fitted"})
