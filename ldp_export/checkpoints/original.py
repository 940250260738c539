"""Contents of an architecture's released files: name and shape of every tensor, without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ldp_export.checkpoints.infinity import original_infinity_state, original_infinity_vae_state
from ldp_export.checkpoints.tensor_files import State
from ldp_export.checkpoints.var import original_var_state, original_var_vae_state
from ldp_export.models.choose import Config, empty_model
from ldp_export.models.infinity import InfinityConfig
from ldp_export.models.infinity_vae import InfinityVaeConfig
from ldp_export.models.registry import NamedModel
from ldp_export.models.var import VarConfig
from ldp_export.models.var_vae import VarVaeConfig


def original_state(config: Config) -> State:
    """Tensors under their original names, buffers included: on the meta device, but for buffers that loaders read."""
    layouts: dict[type, Callable[[Any], State]] = {
        InfinityConfig: original_infinity_state,
        InfinityVaeConfig: original_infinity_vae_state,
        VarConfig: original_var_state,
        VarVaeConfig: original_var_vae_state,
    }
    return layouts[type(config)](empty_model(config))


def released_bytes(spec: NamedModel) -> dict[str, int]:
    """Bytes of each released part, counted from the architecture's float32 tensors.

    `HubFiles.vae_bytes` replaces the count of the VAE where it is given.
    """
    parts = {"transformer": spec.transformer, "vae": spec.vae}
    sizes = {part: sum(4 * t.numel() for t in original_state(config).values()) for part, config in parts.items()}
    if spec.hub is not None and spec.hub.vae_bytes is not None:
        sizes["vae"] = spec.hub.vae_bytes
    return sizes if spec.text_encoder is None else sizes | {"text_encoder": 4 * spec.text_encoder.parameters}
