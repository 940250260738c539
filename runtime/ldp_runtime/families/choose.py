"""Families told apart: codec, placement and guidance of each (`conditions.py` holds what they draw)."""

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

#: Tensors that belong to a bundle, by name, on the device of its engines.
Constants = Mapping[str, torch.Tensor]


def codec_of(model: ModelEntry, constants: Constants) -> Codec:
    """The tokens of a model. Codebook and phi convolutions are constants, not a graph: they are used between the
    engine calls, on whatever the policy filled in, and amount to a fraction of a percent of a scale's work."""
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

    A number means what it means in the family's original code: the weight of every scale (Infinity), or the end of a
    ramp from no guidance at all (VAR, whose 0 is no guidance). A list holds the weights themselves, in both.

    Raises:
        ConfigError: no numbers, too few of them, or values that are not finite.
    """
    if isinstance(model, VarEntry) and not isinstance(guidance, Iterable):
        (end,) = per_scale(guidance, 1, "guidance_scale")
        return ramp(end, scales)
    return per_scale(guidance, scales, "guidance_scale")
