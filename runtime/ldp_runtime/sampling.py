"""Sampling of bits: one elementwise comparison per bit, with noise that belongs to positions.

The originals draw each bit by `multinomial(softmax(l0, l1))`, which picks argmax(p / E) with two exponential
variates. For two outcomes that is `l1 - l0 > log(E1 / E0)`: a logit difference against one logistic variate.
Drawing the variates for the full grid of every scale up front makes a position's outcome independent of which
other positions are computed, and (unbatched, unpruned) reproduces the originals' seeded draws exactly.
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
        top_k: 1 is greedy; 0 or anything above 1 leaves both outcomes.
        top_p: an outcome of probability <= 1 - top_p is impossible; 0 switches the filter off.
    """

    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.top_k, Integral) or self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (off) or a positive whole number, got {self.top_k!r}")
        if not 0.0 <= self.top_p <= 1.0:
            raise ConfigError(f"top_p must lie in [0, 1] (0 switches it off), got {self.top_p}")

    @property
    def decided_at(self) -> float:
        """Logit difference (absolute) from which the likelier outcome is certain."""
        if self.top_k == 1:
            return torch.finfo(torch.float32).tiny  # an exact tie still keeps both outcomes
        if self.top_p == 0.0 or self.top_p == 1.0:
            return math.inf
        return max(math.log(self.top_p / (1 - self.top_p)), torch.finfo(torch.float32).tiny)

    @cached_property
    def noise_bounds(self) -> tuple[float, float] | None:
        """Noise between these lets the likelier outcome win where it is certain and changes no other; None: as it is.

        A logit difference must exceed the noise: one at the limit must, one at minus the limit must not.
        """
        limit = self.decided_at
        if math.isinf(limit):
            return None
        return -limit, float(torch.tensor(limit).nextafter(torch.tensor(0.0)))


def logit_difference(logits: torch.Tensor) -> torch.Tensor:
    """Logit pairs [..., 2 * bits] (columns 2j, 2j+1 are bit j = 0, 1) to l1 - l0 [..., bits]."""
    zero, one = logits.view(*logits.shape[:-1], -1, 2).unbind(-1)
    return one - zero


def sample_bits(difference: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter) -> torch.Tensor:
    """Guided, tempered logit differences [..., bits] and noise of the same shape to bits (bool)."""
    bounds = rule.noise_bounds
    return difference > (noise if bounds is None else noise.clamp(*bounds))
