"""Classifier-free guidance at the logits, and the gap between its two branches, which SATS watches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldp_runtime.arguments import is_list, listed, number
from ldp_runtime.errors import ConfigError
from ldp_runtime.numerics import scalar

#: Longest list of numbers per scale that is read.
_MOST_SCALES = 1000
_LARGEST = torch.finfo(torch.float32).max


def per_scale(value: float | Sequence[float], scales: int, name: str) -> tuple[float, ...]:
    """Tuple of `scales` numbers, from one number for all scales or one number per scale.

    Raises:
        ConfigError: the value is not made of numbers, has too few of them, or one is not finite.
    """
    if not is_list(value):
        return (number(name, value, hint="or give one number per scale"),) * scales
    values = tuple(number(name, each) for each in listed(name, value, _MOST_SCALES))
    if len(values) < scales:
        raise ConfigError(
            f"{name} has {len(values)} values, the schedule has {scales} scales", hint="one number, or one per scale"
        )
    return values[:scales]


def check_weights(weights: Sequence[float]) -> None:
    """Raises ConfigError for weights that float32, in which logits are mixed, does not hold."""
    beyond = [weight for weight in weights if max(abs(weight), abs(1 - weight)) > _LARGEST]
    if beyond:
        raise ConfigError(
            f"guidance_scale {beyond[0]:g} is beyond float32, in which logits are mixed", hint="7 is strong already"
        )


def ramp(end: float, scales: int) -> tuple[float, ...]:
    """VAR's guidance: weights of the conditional branch, from 1 (none) at the first scale to 1 + end at the last."""
    return tuple(1 + end * (k / (scales - 1) if scales > 1 else 0.0) for k in range(scales))


def last_guided_scale(guidance: Sequence[float]) -> int:
    """The last scale whose guidance differs from 1, or -1: after it the unconditional branch has no effect."""
    return max((k for k, g in enumerate(guidance) if g != 1), default=-1)


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Guided logits g * l_cond + (1 - g) * l_uncond, g being `scale`; any shape, the same for both branches."""
    return scalar(scale) * conditional + scalar(1 - scale) * unconditional


def gap_per_token(conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
    """Mean over bits of the squared difference of per-bit logit differences: [L, bits] twice -> [L].

    A bit's softmax depends on the difference l1 - l0 alone; raw logits carry an arbitrary shift.
    """
    difference = conditional - unconditional
    return (difference * difference).mean(dim=-1)
