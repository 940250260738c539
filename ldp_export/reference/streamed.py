"""Streamed weights: a memory-mapped model runs with the weights of one block in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from ldp_runtime.bundle.manifest import Precision
from torch import nn


class Streamable(Protocol):
    """A transformer whose blocks can be loaded in turn.

    Attributes:
        streamed: modules whose weights are loaded as each is called: blocks, and parts of them that are called alone.
        float32_islands: names of parameters that stay float32 in every precision.
    """

    @property
    def streamed(self) -> Sequence[nn.Module]: ...

    @property
    def float32_islands(self) -> re.Pattern[str]: ...


@contextmanager
def streamed_weights(model: Streamable, precision: Precision = "float32") -> Generator[None]:
    """Lets a memory-mapped transformer compute, within a scope, in `precision`, whatever its files hold.

    The weights of each block are converted just before it runs and dropped afterwards; those outside the blocks stay.
    """
    assert isinstance(model, nn.Module)
    wanted: torch.dtype = getattr(torch, precision)
    islands = model.float32_islands
    dtypes = {p: torch.float32 if islands.match(name) else wanted for name, p in model.named_parameters()}
    inside = {parameter for module in model.streamed for parameter in module.parameters()}
    outside = {parameter: parameter.data for parameter in dtypes if parameter not in inside}
    for parameter in outside:
        parameter.data = parameter.data.to(dtypes[parameter])
    hooks = [hook for module in model.streamed for hook in _convert_in_turn(module, dtypes)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, mapped in outside.items():
            parameter.data = mapped


def _convert_in_turn(
    module: nn.Module, dtypes: dict[nn.Parameter, torch.dtype]
) -> list[torch.utils.hooks.RemovableHandle]:
    mapped = {parameter: parameter.data for parameter in module.parameters()}

    def load(*_: object) -> None:
        for parameter in mapped:
            parameter.data = parameter.data.to(dtypes[parameter])

    def drop(*_: object) -> None:
        for parameter, data in mapped.items():
            parameter.data = data

    return [module.register_forward_pre_hook(load), module.register_forward_hook(drop, always_call=True)]
