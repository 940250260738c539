"""Formats of a product of 8-bit numbers with static ranges: steps and factors that an engine is built with.

Inputs x [.., K] and weights W [N, K] of a linear layer are rounded as

    x / factor ~ input_step * q(x),    W * factor ~ weight_step * q(W)

TensorRT takes one step for all inputs of a layer, whereas some channels are hundreds of times wider than the median.
The factors move a part of that width into the weights (SmoothQuant, arXiv 2211.10438, equation 4). They are powers of
two, so that neither the division nor the product rounds. Steps are numbers that bfloat16 holds, so that a graph in
bfloat16 and its float32 twin round alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from ldp_runtime.bundle.manifest import QuantizedPrecision

#: Exponent of the inputs' width in the factors. On the embedded model's last scales, 0.7 in 8-bit integers gave 40.3 dB
#: against float32, 0.5 gave 39.6 and none 39.3; in 8-bit floats 37.7, 37.0 and 36.2. From 0.8 to 0.9 nothing is gained.
SMOOTHING = 0.7

#: Least width of a channel: one that no prompt used divides by no zero.
_LEAST = 1e-5


@dataclass(frozen=True)
class Format:
    """An 8-bit element type, and the numbers that are used of it.

    Attributes:
        dtype: element type.
        inputs: number that the widest input becomes.
        weights: number that the widest weight becomes.
        by_channel: each of the N rows of the weight has a step of its own.
    """

    dtype: torch.dtype
    inputs: float
    weights: float
    by_channel: bool


_FLOAT8_LARGEST = torch.finfo(torch.float8_e4m3fn).max

#: Formats that TensorRT multiplies. 8-bit floats have one step a weight: with one a channel, libraries are known to
#: fall back to half precision without a word.
FORMATS: Mapping[QuantizedPrecision, Format] = {
    "int8": Format(torch.int8, 127, 127, by_channel=True),
    "float8": Format(torch.float8_e4m3fn, _FLOAT8_LARGEST, _FLOAT8_LARGEST, by_channel=False),
}

#: Integers for processors without VNNI, whose sums of two products saturate at 16 bits: weights take 7 bits.
SEVEN_BITS = Format(torch.int8, 127, 63, by_channel=True)


@dataclass(frozen=True)
class QuantizedProduct:
    """Rounding of one linear layer.

    Attributes:
        form: element type of both sides.
        factor: divides the inputs and multiplies the weights, by channel [K]; powers of two.
        input_step: value of one unit of the inputs.
        weight_step: value of one unit of the weights, by output [N] or for all of them [1].
    """

    form: Format
    factor: torch.Tensor
    input_step: float
    weight_step: torch.Tensor

    def weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Weight [N, K] in units of its steps, in the 8-bit element type."""
        units = weight.float() * self.factor / self.weight_step[:, None]
        return _rounded(units, self.form, self.form.weights).to(self.form.dtype)

    def used(self, weight: torch.Tensor) -> torch.Tensor:
        """Weight [N, K] as the engine computes with it, in float32; the factors are still in it."""
        return self.weight(weight).float() * self.weight_step[:, None]

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [.., K] as the engine reads them: divided by the factors, rounded, in float32."""
        largest = self.form.inputs
        return _rounded(x.float() / self.factor / self.input_step, self.form, largest) * self.input_step


def _rounded(units: torch.Tensor, form: Format, largest: float) -> torch.Tensor:
    """Nearest numbers of the format, in float32. Integers reach one further down, as the operators' do."""
    if form.dtype == torch.int8:
        return units.round().clamp(-largest - 1 if largest == form.inputs else -largest, largest)
    return units.clamp(-largest, largest).to(form.dtype).float()


def quantized_product(
    weight: torch.Tensor, magnitudes: torch.Tensor, form: Format, smoothing: float = SMOOTHING
) -> QuantizedProduct:
    """Rounding of a linear layer, from its weight [N, K] and the largest magnitudes of its inputs' channels [K]."""
    widths = weight.float().abs()
    wide = magnitudes.float().clamp(min=_LEAST)
    factor = wide**smoothing / widths.amax(dim=0).clamp(min=_LEAST) ** (1 - smoothing) if smoothing else wide / wide
    factor = torch.exp2((factor.log2() - factor.log2().mean()).round())
    smoothed = (widths * factor).amax(dim=1) if form.by_channel else (widths * factor).amax()[None]
    input_step = _short((magnitudes.float() / factor).amax().clamp(min=_LEAST) / form.inputs)
    return QuantizedProduct(form, factor, float(input_step), _short(smoothed.clamp(min=1e-12) / form.weights))


def rounded_weight(weight: torch.Tensor, form: Format) -> QuantizedProduct:
    """Rounding of a weight [N, K] alone: products with it are as before, in the graph's precision."""
    return quantized_product(weight, torch.ones(weight.shape[1]), form, smoothing=0)


def _short(step: torch.Tensor) -> torch.Tensor:
    """The smallest number of bfloat16 that is not below a positive step: the widest value is not clipped."""
    short = step.bfloat16()
    return torch.where(short.float() < step, torch.nextafter(short, torch.full_like(short, torch.inf)), short).float()
