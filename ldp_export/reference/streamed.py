"""Streamed weights: a memory-mapped model runs with the weights of one block in memory at a time."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from ldp_runtime.bundle.manifest import Precision
from torch import nn

from ldp_export.models.infinity import FLOAT32_ISLANDS, InfinityTransformer


@contextmanager
def streamed_weights(model: InfinityTransformer, precision: Precision = "float32") -> Generator[None]:
    """Lets a memory-mapped transformer compute, within a scope, in `precision`, whatever its files hold.

    The weights of each block are converted just before it runs and dropped afterwards; those outside the blocks stay.
    """
    dtype: torch.dtype = getattr(torch, precision)
    outside = {name: p for name, p in model.named_parameters() if not name.startswith("blocks.")}
    mapped = {name: parameter.data for name, parameter in outside.items()}
    for name, parameter in outside.items():
        parameter.data = parameter.data.to(torch.float32 if FLOAT32_ISLANDS.match(name) else dtype)
    hooks = [hook for block in model.layers for hook in _convert_in_turn(block, dtype)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in outside.items():
            parameter.data = mapped[name]


def _convert_in_turn(block: nn.Module, dtype: torch.dtype) -> list[torch.utils.hooks.RemovableHandle]:
    mapped = {name: parameter.data for name, parameter in block.named_parameters()}

    def load(*_: object) -> None:
        for parameter in block.parameters():
            parameter.data = parameter.data.to(dtype)

    def drop(*_: object) -> None:
        for name, parameter in block.named_parameters():
            parameter.data = mapped[name]

    return [block.register_forward_pre_hook(load), block.register_forward_hook(drop, always_call=True)]
