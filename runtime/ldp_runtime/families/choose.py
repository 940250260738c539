"""Choice of codec, placement and guidance by family; `pipeline/conditions.py` chooses between texts and classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from ldp_runtime.bundle.manifest import ModelEntry, VarEntry
from ldp_runtime.engines.blocks import Placement
from ldp_runtime.families.base import Codec
from ldp_runtime.families.infinity import BitCodec
from ldp_runtime.families.var import CodebookCodec
from ldp_runtime.guidance import per_scale, ramp
from ldp_runtime.schedule import ScaleSchedule, rope_table

#: Tensors of a bundle by name, on the device of its engines.
Constants = Mapping[str, torch.Tensor]


def codec_of(model: ModelEntry, constants: Constants) -> Codec:
    """Codec of a model.

    Codebook and phi convolutions are constants, not a graph: they are used between the engine calls, on residuals that
    the policy filled in. They take a fraction of a percent of a scale's work.
    """
    if isinstance(model, VarEntry):
        return CodebookCodec(
            constants["codebook"], constants["phi_weight"], constants["phi_bias"], phi_share=model.phi_share
        )
    return BitCodec(model.layout)


def placement(model: ModelEntry, constants: Constants, schedule: ScaleSchedule) -> Placement:
    """Scale embeddings, and rotary tables (Infinity) or learned positions (VAR) of every token."""
    offsets = constants["level_offsets"]
    if isinstance(model, VarEntry):
        learned = constants["positions"].split(schedule.tokens)
        return Placement(offsets, tuple({"positions": positions} for positions in learned))
    rotary = rope_table(schedule, model.width // model.heads)
    return Placement(
        offsets, tuple({"cos": cos.to(offsets.device), "sin": sin.to(offsets.device)} for cos, sin in rotary)
    )


def guidance_weights(model: ModelEntry, guidance: float | Sequence[float], scales: int) -> tuple[float, ...]:
    """Weight of the conditional branch at each scale; 1 is no guidance.

    A single number has the meaning of the family's original code. Infinity: the weight of every scale. VAR: the end of
    a ramp that begins without guidance, so that 0 is no guidance at all. A list holds the weights themselves, in both.

    Raises:
        ConfigError: `guidance` is not made of numbers, has too few of them, or one is not finite.
    """
    if isinstance(model, VarEntry) and not isinstance(guidance, Iterable):
        (end,) = per_scale(guidance, 1, "guidance_scale")
        return ramp(end, scales)
    return per_scale(guidance, scales, "guidance_scale")
