"""Choice of codec, placement and guidance by family; `pipeline/conditions.py` chooses between texts and classes."""

from __future__ import annotations

from collections.abc import Sequence

from ldp_runtime.architecture.choose import ModelEntry
from ldp_runtime.architecture.var import VarEntry
from ldp_runtime.engines.blocks import Placement
from ldp_runtime.families import infinity, var
from ldp_runtime.families.base import Codec, Constants
from ldp_runtime.schedule import ScaleSchedule


def codec_of(model: ModelEntry, constants: Constants) -> Codec:
    """Codec of a model."""
    return var.codec(model, constants) if isinstance(model, VarEntry) else infinity.codec(model)


def placement(model: ModelEntry, constants: Constants, schedule: ScaleSchedule) -> Placement:
    """Scale embeddings, and rotary tables (Infinity) or learned positions (VAR) of every token."""
    if isinstance(model, VarEntry):
        return var.placement(constants, schedule)
    return infinity.placement(model, constants, schedule)


def guidance_weights(model: ModelEntry, guidance: float | Sequence[float], scales: int) -> tuple[float, ...]:
    """Weight of the conditional branch at each scale; 1 is no guidance.

    A single number has the meaning of the family's original code. Infinity: the weight of every scale. VAR: the end of
    a ramp that begins without guidance, so that 0 is no guidance at all. A list holds the weights themselves, in both.

    Raises:
        ConfigError: `guidance` is not made of numbers, has too few of them, or one is not finite.
    """
    family = var if isinstance(model, VarEntry) else infinity
    return family.guidance_weights(guidance, scales)
