"""What the released files of an architecture hold: every tensor's name and shape, without values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from ldp_export.models.bsq_vae import BsqVae, VaeConfig
from ldp_export.models.checkpoints import original_transformer_state, original_vae_state
from ldp_export.models.infinity import InfinityConfig, InfinityTransformer
from ldp_export.models.state_files import State
from ldp_export.models.var import VarConfig, VarTransformer
from ldp_export.models.vq_vae import VqVae, VqVaeConfig

Config = InfinityConfig | VaeConfig | VarConfig | VqVaeConfig


@cache
def empty_model(config: Config) -> nn.Module:
    """The model of a configuration on the meta device."""
    kinds: dict[type, Callable[[Any], nn.Module]] = {
        InfinityConfig: InfinityTransformer,
        VaeConfig: BsqVae,
        VarConfig: VarTransformer,
        VqVaeConfig: VqVae,
    }
    with torch.device("meta"):
        return kinds[type(config)](config)


def levels(config: VarConfig) -> torch.Tensor:
    """VAR's buffer `lvl_1L`: the scale of each token [1, tokens]."""
    tokens = torch.tensor(config.schedule.tokens)
    return torch.repeat_interleave(torch.arange(len(tokens)), tokens)[None]


def count_parameters(config: Config) -> int:
    """Numbers that are parameters of the model: buffers of its files are not counted."""
    return sum(p.numel() for p in empty_model(config).parameters())


def original_state(config: Config) -> State:
    """Tensors on the meta device under their original names, buffers included."""
    model = empty_model(config)
    with torch.device("meta"):
        if isinstance(model, InfinityTransformer):
            return original_transformer_state(model)
        if isinstance(model, BsqVae):
            return original_vae_state(model)
        if isinstance(model, VarTransformer):
            return _var_state(model)
        hits = torch.empty(len(VarConfig(1, 1, 1, 1).grids), model.get_parameter("quantize.embedding.weight").shape[0])
        return model.state_dict() | {"quantize.ema_vocab_hit_SV": hits}


def _var_state(model: VarTransformer) -> State:
    """Parameters, zero key biases, and the buffers of levels and of the training mask."""
    state: State = {}
    for key, value in model.state_dict().items():
        state[key] = value
        if key.endswith(".v_bias"):
            state[key.removesuffix("v_bias") + "zero_k_bias"] = torch.empty_like(value)
    total = model.config.schedule.total_tokens
    state["lvl_1L"] = torch.empty(1, total, dtype=torch.int64)
    state["attn_bias_for_masking"] = torch.empty(1, 1, total, total)
    return state
