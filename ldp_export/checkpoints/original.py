"""Contents of an architecture's released files: name and shape of every tensor, without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ldp_export.checkpoints.files.tensors import State
from ldp_export.checkpoints.hart import original_hart_state
from ldp_export.checkpoints.infinity import original_infinity_state, original_infinity_vae_state
from ldp_export.checkpoints.switti import original_switti_state
from ldp_export.checkpoints.var import original_var_state, original_var_vae_state
from ldp_export.models.choose import Config, empty_model
from ldp_export.models.sizes import HartConfig, InfinityConfig, InfinityVaeConfig, SwittiConfig, VarConfig, VarVaeConfig


def original_state(config: Config) -> State:
    """Tensors under their original names, buffers included: on the meta device, but for buffers that loaders read."""
    layouts: dict[type, Callable[[Any], State]] = {
        InfinityConfig: original_infinity_state,
        InfinityVaeConfig: original_infinity_vae_state,
        VarConfig: original_var_state,
        SwittiConfig: original_switti_state,
        HartConfig: original_hart_state,
        VarVaeConfig: original_var_vae_state,
    }
    return layouts[type(config)](empty_model(config))
