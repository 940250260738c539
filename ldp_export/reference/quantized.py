"""Reference models whose blocks multiply 8-bit numbers, to measure the cost of quantized last scales."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from ldp_runtime.bundle.manifest import Precision, QuantizedPrecision
from ldp_runtime.engines.torch_compiled.fused.products import KINDS, Matrix, product, rounded
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization
from torch.overrides import TorchFunctionMode

from ldp_export.quantization.formats import Format, quantized_product, rounded_weight
from ldp_export.quantization.ranges import Ranges, quantized_layers


@dataclass(frozen=True)
class StaticProducts:
    """Products of 8-bit numbers whose inputs have ranges that were measured beforehand."""

    form: Format
    ranges: Ranges


@dataclass(frozen=True)
class RoundedWeights:
    """Weights in 8 bits at all scales; products are as before, in the precision of the graphs."""

    form: Format


#: What is in 8 bits: the products of some scales, whose inputs are measured row by row in each call or have static
#: ranges; or the weights alone, which are then those of the model.
EightBits = QuantizedPrecision | StaticProducts | RoundedWeights
#: Product of inputs [.., K] with the weight [N, K] and the bias [N] or None of a layer.
_Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def round_weights(blocks: nn.Module, weights: RoundedWeights, precision: Precision, mapped: bool) -> None:
    """Rounds the weights of the blocks' layers as they are stored: in that precision, then in 8 bits.

    Args:
        mapped: they are views of files, which cannot be changed: they are rounded each time they are read.
    """
    rounding = _RoundedWhenRead(weights.form, getattr(torch, precision))
    for layer in quantized_layers(blocks).values():
        if mapped:
            register_parametrization(layer, "weight", rounding, unsafe=True)
        else:
            layer.weight.data = rounding(layer.weight.data)


class _RoundedWhenRead(nn.Module):
    """Rounding of a weight, whatever arithmetic is imitated outside."""

    def __init__(self, form: Format, dtype: torch.dtype) -> None:
        super().__init__()
        self.form, self.dtype = form, dtype

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
            stored = weight.to(self.dtype).float()
            used = rounded_weight(stored, self.form).used(stored)
            return used.to(self.dtype) if weight.dtype == self.dtype else used


@contextmanager
def products_in_8_bits(blocks: nn.Module, products: EightBits) -> Generator[None]:
    """Rounds, within its scope, both factors of the products in the linear layers of `blocks` to 8 bits.

    Raises:
        TypeError: weights alone are in 8 bits: no product rounds anything, see `round_weights`.
    """
    if isinstance(products, RoundedWeights):
        raise TypeError("weights alone are rounded before a run, not in its products")
    layers = quantized_layers(blocks)
    if isinstance(products, StaticProducts):
        by_weight = {id(layer.weight): _static(products, name) for name, layer in layers.items()}
    else:
        by_weight = dict.fromkeys((id(layer.weight) for layer in layers.values()), _measured(KINDS[products]))
    with _Rounded(by_weight):
        yield


def _measured(kind: torch.dtype) -> _Product:
    def compute(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        empty = weight.new_empty(0, dtype=torch.float32)
        matrix = Matrix(weight, weight.new_zeros(len(weight)) if bias is None else bias, empty)
        return product(x, rounded(matrix, kind))

    return compute


def _static(products: StaticProducts, name: str) -> _Product:
    def compute(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        layer = quantized_product(weight, products.ranges.magnitudes[name], products.form)
        out = F.linear(layer.inputs(x), layer.used(weight)).to(weight.dtype)
        return out if bias is None else out + bias

    return compute


class _Rounded(TorchFunctionMode):
    """Quantizes the products of some weights by intercepting every PyTorch call.

    Weights are recognised by their parameter, because `streamed_weights` may replace the data meanwhile.
    """

    def __init__(self, products: Mapping[int, _Product]) -> None:
        super().__init__()
        self.products = products

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.linear or (compute := self.products.get(id(args[1]))) is None:
            return func(*args, **(kwargs or {}))
        return compute(*args)
