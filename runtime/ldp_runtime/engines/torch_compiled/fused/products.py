"""Matrix products of the blocks: in the precision of the weights, or in 8 bits with a step per row of both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ldp_runtime.bundle.manifest import QuantizedPrecision

INT8, FLOAT8 = torch.int8, torch.float8_e4m3fn


KINDS: Mapping[QuantizedPrecision, torch.dtype] = {"int8": INT8, "float8": FLOAT8}


#: Largest number of each 8-bit type.
_LARGEST = {INT8: 127.0, FLOAT8: torch.finfo(FLOAT8).max}


#: Fewest rows that CUDA's integer products take.
_LEAST_ROWS = 17


class Matrix(NamedTuple):
    """A linear layer.

    Attributes:
        weight: [N, K].
        bias: [N].
        step: value of one unit of each row of an 8-bit weight [1, N], in float32; empty for other weights.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    step: torch.Tensor


def rounded(m: Matrix, kind: torch.dtype) -> Matrix:
    """The layer with its weight quantized to 8 bits."""
    weight, step = rounded_rows(m.weight, kind)
    return Matrix(weight, m.bias, step.T.contiguous())


def rounded_rows(x: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes x [M, K] to 8 bits; also returns the value of one unit of each row [M, 1].

    A row's largest value takes the largest number of the type.
    """
    largest = _LARGEST[kind]
    step = x.float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / largest
    units = (x.float() / step).clamp(-largest, largest)
    return (units.round() if kind == INT8 else units).to(kind), step


def product(x: torch.Tensor, m: Matrix) -> torch.Tensor:
    """Maps x [L, R, K] to [L, R, N] in the type of the bias."""
    return _in_8_bits(x, m) if m.weight.dtype in _LARGEST else F.linear(x.to(m.weight.dtype), m.weight, m.bias)


def activated(x: torch.Tensor, m: Matrix) -> torch.Tensor:
    """Applies `product` and the tanh form of GELU; on a GPU in one kernel, whose GELU reads the sum before rounding."""
    if m.weight.dtype in _LARGEST or not x.is_cuda:
        return F.gelu(product(x, m), approximate="tanh")
    flat = torch._addmm_activation(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        m.bias, x.flatten(0, 1).to(m.weight.dtype), m.weight.t(), use_gelu=True
    )
    return flat.unflatten(0, x.shape[:2])


def _in_8_bits(x: torch.Tensor, m: Matrix) -> torch.Tensor:
    units, step = rounded_rows(x.flatten(0, 1), m.weight.dtype)
    if m.weight.dtype == INT8:
        out = (_int8(units, m.weight).float() * step * m.step).to(m.bias.dtype)
    elif x.is_cuda:
        out = torch._scaled_mm(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            units, m.weight.t(), step, m.step, out_dtype=m.bias.dtype, use_fast_accum=True
        )
    else:  # as on a GPU, but for the order of its sums
        out = ((units.float() @ m.weight.float().t()) * step * m.step).to(m.bias.dtype)
    return (out + m.bias).unflatten(0, x.shape[:2])


def _int8(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Product of [M, K] and [N, K] in 8-bit integers -> [M, N] in 32-bit ones."""
    rows = x.shape[0]
    if x.is_cuda and rows < _LEAST_ROWS:
        x = F.pad(x, (0, 0, 0, _LEAST_ROWS - rows))
    return torch._int_mm(x, weight.t())[:rows]  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
