"""Sampling of bits: one elementwise comparison per bit, with noise that is fixed for each position.

The originals draw each bit by `multinomial(softmax(l0, l1))`, which picks argmax(p / E) with two exponential
variates. For two outcomes that is `l1 - l0 > log(E1 / E0)`: a logit difference against one logistic variate.

The variates are drawn up front, for the full grid of every scale. The outcome at a position is then independent of
which other positions are computed. Without batches and pruning, the originals' seeded draws are reproduced exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import torch

from ldp_runtime.errors import ConfigError


@dataclass(frozen=True)
class SamplingFilter:
    """Top-k and top-p as the originals apply them to the two outcomes of a bit.

    Attributes:
        top_k: 1 is greedy; 0 or anything above 1 leaves both outcomes possible.
        top_p: an outcome of probability <= 1 - top_p is impossible; 0 switches the filter off.
    """

    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.top_k, Integral) or self.top_k < 0:
            raise ConfigError(
                f"top_k must be 0 (off) or a positive whole number, got {self.top_k!r}",
                hint="leave it out for the bundle's default",
            )
        if not 0.0 <= self.top_p <= 1.0:
            raise ConfigError(
                f"top_p must lie in [0, 1] (0 switches it off), got {self.top_p}",
                hint="leave it out for the bundle's default",
            )

    @property
    def decided_at(self) -> float:
        """Absolute logit difference from which on the likelier outcome is certain."""
        if self.top_k == 1:
            return torch.finfo(torch.float32).tiny  # an exact tie still keeps both outcomes
        if self.top_p == 0.0 or self.top_p == 1.0:
            return math.inf
        return max(math.log(self.top_p / (1 - self.top_p)), torch.finfo(torch.float32).tiny)

    @cached_property
    def noise_bounds(self) -> tuple[float, float] | None:
        """Bounds to clamp the noise to, so that an outcome that is certain always wins; None: no clamping.

        No other outcome changes. A bit is 1 if its logit difference exceeds the noise. A difference at the limit must
        therefore exceed the upper bound; one at minus the limit must not exceed the lower.
        """
        limit = self.decided_at
        if math.isinf(limit):
            return None
        return -limit, float(torch.tensor(limit).nextafter(torch.tensor(0.0)))


def logit_difference(logits: torch.Tensor) -> torch.Tensor:
    """Differences l1 - l0 [..., bits] of logit pairs [..., 2 * bits]; columns 2j and 2j+1 say that bit j is 0 or 1."""
    zero, one = logits.view(*logits.shape[:-1], -1, 2).unbind(-1)
    return one - zero


def sample_bits(difference: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter) -> torch.Tensor:
    """Bits (bool) from guided logit differences [..., bits], divided by temperature, and noise of the same shape."""
    bounds = rule.noise_bounds
    return difference > (noise if bounds is None else noise.clamp(*bounds))
