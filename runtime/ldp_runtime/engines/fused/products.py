"""Matrix products of the blocks: in the precision of the weights, or in 8-bit floats with a scale a row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

FLOAT8 = torch.float8_e4m3fn


class Matrix(NamedTuple):
    """A linear layer.

    Attributes:
        weight: [N, K]. bias: [N].
        step: of an 8-bit weight, what one unit of each row is worth [1, N] in float32; else empty.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    step: torch.Tensor


def float8(m: Matrix) -> Matrix:
    """The layer with its weight rounded to 8-bit floats."""
    rounded, step = rounded_rows(m.weight)
    return Matrix(rounded, m.bias, step.T.contiguous())


def rounded_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] to 8-bit floats, and what one unit of each row is worth [M, 1]: its largest value takes the largest."""
    largest = torch.finfo(FLOAT8).max
    step = x.float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / largest
    return (x.float() / step).clamp(-largest, largest).to(FLOAT8), step


def product(x: torch.Tensor, m: Matrix) -> torch.Tensor:
    """x [L, R, K] to [L, R, N] in the type of the bias."""
    return F.linear(x.to(m.weight.dtype), m.weight, m.bias) if m.weight.dtype != FLOAT8 else _float8(x, m)


def activated(x: torch.Tensor, m: Matrix) -> torch.Tensor:
    """`product` and the tanh form of GELU; on a GPU in one kernel, whose GELU reads the sum before it is rounded."""
    if m.weight.dtype == FLOAT8 or not x.is_cuda:
        return F.gelu(product(x, m), approximate="tanh")
    flat = torch._addmm_activation(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        m.bias, x.flatten(0, 1).to(m.weight.dtype), m.weight.t(), use_gelu=True
    )
    return flat.unflatten(0, x.shape[:2])


def _float8(x: torch.Tensor, m: Matrix) -> torch.Tensor:
    rounded, step = rounded_rows(x.flatten(0, 1))
    if x.is_cuda:
        out = torch._scaled_mm(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            rounded, m.weight.t(), step, m.step, out_dtype=m.bias.dtype, use_fast_accum=True
        )
    else:  # what the unit computes, but for the order of its sums
        out = ((rounded.float() @ m.weight.float().t()) * step * m.step).to(m.bias.dtype)
    return (out + m.bias).unflatten(0, x.shape[:2])
