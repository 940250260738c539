"""Contents of an architecture's released files: name and shape of every tensor, without values."""

from __future__ import annotations

import torch

from ldp_export.checkpoints.infinity import original_infinity_state, original_infinity_vae_state
from ldp_export.checkpoints.tensor_files import State
from ldp_export.models.choose import Config, empty_model
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.registry import NamedModel
from ldp_export.models.var import VarConfig, VarTransformer


def levels(config: VarConfig) -> torch.Tensor:
    """Values of VAR's buffer `lvl_1L`: the scale of each token [1, tokens]."""
    tokens = torch.tensor(config.schedule.tokens)
    return torch.repeat_interleave(torch.arange(len(tokens)), tokens)[None]


def original_state(config: Config) -> State:
    """Tensors on the meta device under their original names, buffers included."""
    model = empty_model(config)
    with torch.device("meta"):
        if isinstance(model, InfinityTransformer):
            return original_infinity_state(model)
        if isinstance(model, InfinityVae):
            return original_infinity_vae_state(model)
        if isinstance(model, VarTransformer):
            return _var_state(model)
        hits = torch.empty(len(VarConfig(1, 1, 1, 1).grids), model.get_parameter("quantize.embedding.weight").shape[0])
        return model.state_dict() | {"quantize.ema_vocab_hit_SV": hits}


def _var_state(model: VarTransformer) -> State:
    """Parameters, zero key biases, and the buffers `lvl_1L` and the training mask."""
    state: State = {}
    for key, value in model.state_dict().items():
        state[key] = value
        if key.endswith(".v_bias"):
            state[key.removesuffix("v_bias") + "zero_k_bias"] = torch.empty_like(value)
    total = model.config.schedule.total_tokens
    state["lvl_1L"] = torch.empty(1, total, dtype=torch.int64)
    state["attn_bias_for_masking"] = torch.empty(1, 1, total, total)
    return state


def released_bytes(spec: NamedModel) -> dict[str, int]:
    """Bytes of each released part, counted from the architecture's float32 tensors.

    `HubFiles.vae_bytes` replaces the count of the VAE where it is given.
    """
    parts = {"transformer": spec.transformer, "vae": spec.vae}
    sizes = {part: sum(4 * t.numel() for t in original_state(config).values()) for part, config in parts.items()}
    if spec.hub is not None and spec.hub.vae_bytes is not None:
        sizes["vae"] = spec.hub.vae_bytes
    return sizes if spec.text_encoder is None else sizes | {"text_encoder": 4 * spec.text_encoder.parameters}
