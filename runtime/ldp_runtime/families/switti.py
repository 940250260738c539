"""Switti's tokens: VAR's codebook, drawn from texts; guidance, smoothing and temperature change where guidance ends.

Source: yandex-research/switti (`SwittiPipeline.__call__`, `gumbel_softmax_with_rng`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ldp_runtime.architecture.switti import SwittiEntry
from ldp_runtime.arguments import is_list, number
from ldp_runtime.engines.blocks import Placement
from ldp_runtime.families.base import Constants
from ldp_runtime.families.var import CodebookCodec, mixture_weights, progress
from ldp_runtime.guidance import per_scale, ramp
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule, relative_rope_table


@dataclass(frozen=True, eq=False)
class SwittiCodec(CodebookCodec):
    """The `Codec` of Switti: VAR's, but mixtures take all logits, from `first_smooth` on, while guidance lasts."""

    first_smooth: int = 0

    def draw_noise(self, generator: torch.Generator, schedule: ScaleSchedule, scale: int) -> torch.Tensor:
        """Next variates of the generator [tokens, V]: one block a scale, for an index or for a mixture."""
        drawn = torch.empty(schedule.tokens[scale], self.codebook.shape[0], dtype=torch.float32, device="cpu")
        return drawn.exponential_(1, generator=generator)

    def draw(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, scale: int, scales: int, ended: bool
    ) -> torch.Tensor:
        if self.more_smooth and not ended and scale >= self.first_smooth:
            return mixture_weights(scores, noise, progress(scale, scales)) @ self.codebook
        return self.codes(self.index(scores, noise, rule))


def codec(model: SwittiEntry, constants: Constants) -> SwittiCodec:
    """Codec of a model of this family."""
    phis = constants["phi_weight"], constants["phi_bias"]
    return SwittiCodec(constants["codebook"], *phis, phi_share=model.phi_share, first_smooth=model.first_smooth)


def placement(model: SwittiEntry, constants: Constants, schedule: ScaleSchedule) -> Placement:
    """Scale embeddings, and rotary tables of every token, whose positions begin anew at each scale."""
    offsets = constants["level_offsets"]
    rotary = relative_rope_table(schedule, model.width // model.heads, model.rope_theta, model.rope_size)
    tables = tuple({"cos": cos.to(offsets.device), "sin": sin.to(offsets.device)} for cos, sin in rotary)
    return Placement(offsets, tables)


def guidance_weights(model: SwittiEntry, guidance: float | Sequence[float], scales: int) -> tuple[float, ...]:
    """Weight of the conditional branch at each scale.

    A number is the end of VAR's ramp, which holds within the model's window of scales; a list holds the weights.

    Raises:
        ConfigError: `guidance` is not made of numbers, has too few of them, or one is not finite.
    """
    if is_list(guidance):
        return per_scale(guidance, scales, "guidance_scale")
    weights = ramp(number("guidance_scale", guidance, hint="or give one number per scale"), scales)
    return tuple(w if model.first_guided <= k < model.first_unguided else 1.0 for k, w in enumerate(weights))


def guidance_end(model: SwittiEntry, guidance: float | Sequence[float], scales: int) -> int:
    """Scale at which guidance ends: that of the model's window, or the first one after which a list holds ones."""
    if not is_list(guidance):
        return max(model.first_guided, model.first_unguided)
    weights = per_scale(guidance, scales, "guidance_scale")
    return 1 + max((k for k, weight in enumerate(weights) if weight != 1), default=-1)


def temperatures(value: float | Sequence[float], scales: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Temperatures while guidance lasts and once it has ended; a number is of the latter alone, a list of both."""
    given = per_scale(value, scales, "temperature")
    return (given if is_list(value) else (1.0,) * scales), given
