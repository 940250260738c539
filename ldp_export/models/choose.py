"""Empty models of any family from their configuration, and counts of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from ldp_export.models.hart import HartTransformer
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.sizes import HartConfig, InfinityConfig, InfinityVaeConfig, SwittiConfig, VarConfig, VarVaeConfig
from ldp_export.models.switti import SwittiTransformer
from ldp_export.models.var import VarTransformer
from ldp_export.models.var_vae import VarVae

Config = HartConfig | InfinityConfig | InfinityVaeConfig | SwittiConfig | VarConfig | VarVaeConfig


@cache
def empty_model(config: Config) -> nn.Module:
    """The model of a configuration on the meta device."""
    kinds: dict[type, Callable[[Any], nn.Module]] = {
        InfinityConfig: InfinityTransformer,
        InfinityVaeConfig: InfinityVae,
        VarConfig: VarTransformer,
        SwittiConfig: SwittiTransformer,
        HartConfig: HartTransformer,
        VarVaeConfig: VarVae,
    }
    with torch.device("meta"):
        return kinds[type(config)](config)


def count_parameters(config: Config) -> int:
    """Number of the model's parameters; buffers in its files are not counted."""
    return sum(p.numel() for p in empty_model(config).parameters())
