"""A reference model whose blocks multiply 8-bit numbers, as late scales do: what this costs is measured on it."""

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

#: Ends the names of a block's layers that the prompt graph computes, once an image and in full precision.
_OF_THE_PROMPT = ("mat_kv", "ada_lin.1")


@contextmanager
def products_in_8_bits(blocks: nn.Module, precision: QuantizedPrecision) -> Generator[None]:
    """For the duration, the linear layers of `blocks` round both sides of their products to 8 bits, row by row."""
    weights = {
        id(layer.weight)
        for name, layer in blocks.named_modules()
        if isinstance(layer, nn.Linear) and not name.endswith(_OF_THE_PROMPT)
    }
    with _Rounded(weights, KINDS[precision]):
        yield


class _Rounded(TorchFunctionMode):
    """Sees every call of PyTorch: weights may be converted and dropped meanwhile, but stay the same parameters."""

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
