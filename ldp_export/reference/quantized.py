"""Reference models whose blocks multiply 8-bit numbers, to measure the cost of quantized last scales."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ldp_runtime.bundle.manifest import QuantizedPrecision
from ldp_runtime.engines.torch_compiled.fused.products import KINDS, Matrix, product, rounded
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

#: Endings of the names of layers that the prompt graph computes, once per image and unquantized.
_OF_THE_PROMPT = ("mat_kv", "ada_lin.1")


@contextmanager
def products_in_8_bits(blocks: nn.Module, precision: QuantizedPrecision) -> Generator[None]:
    """Rounds, within its scope, both factors of the products in the linear layers of `blocks` to 8 bits, row by row."""
    weights = {
        id(layer.weight)
        for name, layer in blocks.named_modules()
        if isinstance(layer, nn.Linear) and not name.endswith(_OF_THE_PROMPT)
    }
    with _Rounded(weights, KINDS[precision]):
        yield


class _Rounded(TorchFunctionMode):
    """Quantizes the products of some weights by intercepting every PyTorch call.

    Weights are recognised by their parameter, because `streamed_weights` may replace the data meanwhile.
    """

    def __init__(self, weights: set[int], kind: torch.dtype) -> None:
        super().__init__()
        self.weights, self.kind = weights, kind

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.linear or id(args[1]) not in self.weights:
            return func(*args, **(kwargs or {}))
        x, weight, bias = args
        empty = weight.new_empty(0, dtype=torch.float32)
        matrix = Matrix(weight, weight.new_zeros(len(weight)) if bias is None else bias, empty)
        return product(x, rounded(matrix, self.kind))
