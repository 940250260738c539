"""Choice of codec, placement and guidance by family; `pipeline/conditions.py` chooses between texts and classes."""

from __future__ import annotations

from collections.abc import Sequence

from ldp_runtime.architecture.choose import ModelEntry
from ldp_runtime.architecture.hart import HartEntry
from ldp_runtime.architecture.infinity import InfinityEntry
from ldp_runtime.architecture.switti import SwittiEntry
from ldp_runtime.architecture.var import VarEntry
from ldp_runtime.engines.blocks import Placement
from ldp_runtime.families import hart, infinity, switti, var
from ldp_runtime.families.base import Codec, Constants
from ldp_runtime.guidance import per_scale
from ldp_runtime.schedule import ScaleSchedule


def codec_of(model: ModelEntry, constants: Constants) -> Codec:
    """Codec of a model."""
    if isinstance(model, InfinityEntry):
        return infinity.codec(model)
    if isinstance(model, HartEntry):
        return hart.codec(model, constants)
    return var.codec(model, constants) if isinstance(model, VarEntry) else switti.codec(model, constants)


def placement(model: ModelEntry, constants: Constants, schedule: ScaleSchedule) -> Placement:
    """Scale embeddings, and rotary tables or learned positions (VAR) of every token."""
    if isinstance(model, VarEntry):
        return var.placement(constants, schedule)
    if isinstance(model, SwittiEntry):
        return switti.placement(model, constants, schedule)
    if isinstance(model, HartEntry):
        return hart.placement(model, constants, schedule)
    return infinity.placement(model, constants, schedule)


def guidance_weights(model: ModelEntry, guidance: float | Sequence[float], scales: int) -> tuple[float, ...]:
    """Weight of the conditional branch at each scale; 1 is no guidance.

    A single number has the meaning of the family's original code. Infinity: the weight of every scale. VAR: the end of
    a ramp that begins without guidance, so that 0 is no guidance at all. Switti: as VAR, within the model's window of
    scales. HART: as VAR, with the ramp's end at the last scale but one. A list holds the weights themselves, in
    all of them.

    Raises:
        ConfigError: `guidance` is not made of numbers, has too few of them, or one is not finite.
    """
    if isinstance(model, SwittiEntry):
        return switti.guidance_weights(model, guidance, scales)
    if isinstance(model, HartEntry):
        return hart.guidance_weights(guidance, scales)
    family = var if isinstance(model, VarEntry) else infinity
    return family.guidance_weights(guidance, scales)


def guidance_end(model: ModelEntry, guidance: float | Sequence[float], scales: int) -> int:
    """First scale at which guidance has ended, which changes how Switti draws; other families draw as before."""
    return switti.guidance_end(model, guidance, scales) if isinstance(model, SwittiEntry) else scales


def temperatures(
    model: ModelEntry, value: float | Sequence[float], scales: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Temperature of each scale while guidance lasts, and once it has ended.

    A single number is that of all scales; of Switti, that of the scales without guidance. A list holds one each.

    Raises:
        ConfigError: `value` is not made of numbers, has too few of them, or one is not finite.
    """
    if isinstance(model, SwittiEntry):
        return switti.temperatures(value, scales)
    given = per_scale(value, scales, "temperature")
    return given, given
