"""HART's tokens: VAR's codebook, with a continuous residual on the codes of the last scale.

Source: mit-han-lab/hart (`HARTForT2I.autoregressive_infer_cfg`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ldp_runtime.architecture.hart import HartEntry
from ldp_runtime.arguments import is_list, number
from ldp_runtime.engines.blocks import Placement
from ldp_runtime.families.base import Constants
from ldp_runtime.families.var import CodebookCodec, filter_logits, mixture_weights
from ldp_runtime.guidance import per_scale
from ldp_runtime.noise import exponentials
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule, corner_places


@dataclass(frozen=True, eq=False)
class HartCodec(CodebookCodec):
    """The `Codec` of HART: VAR's, but late scales draw from fewer codes, and the last one's codes pass no phi.

    Noise of a token is one variate for each code: of the mixture with `more_smooth`, else of the index. At the last
    scale those of the index follow a mixture's, since the residual needs both. Then come normal variates for each step
    of the residual.

    Attributes:
        first_late, late_top_k: see `HartEntry`.
        steps: steps in which the residual is denoised.
        last_scale: index of the scale that the residual belongs to.
    """

    first_late: int = 7
    late_top_k: int = 300
    steps: int = 8
    last_scale: int = 13

    def draw_noise(self, generator: torch.Generator, schedule: ScaleSchedule, scale: int) -> torch.Tensor:
        """Next variates of the generator: as the original draws them, but the residual's are of this image alone."""
        shape = schedule.tokens[scale], self.codebook.shape[0]
        index = torch.empty(*shape, dtype=torch.float32, device="cpu").exponential_(1, generator=generator)
        parts = [index]
        if self.more_smooth:
            mixture = torch.empty(*shape, dtype=torch.float32, device="cpu").exponential_(1, generator=generator)
            parts = [mixture, index]
        if scale + 1 < len(schedule):
            return parts[0]
        parts += [
            torch.empty(shape[0], self.channels, dtype=torch.float32, device="cpu").normal_(generator=generator)
            for _ in range(self.steps)
        ]
        return torch.cat(parts, dim=1)

    def variates(self, scale: int, scales: int) -> int:
        codes = self.codebook.shape[0]
        return codes if scale + 1 < scales else codes * (1 + self.more_smooth) + self.steps * self.channels

    def of_uniforms(self, uniform: torch.Tensor) -> torch.Tensor:
        if uniform.shape[1] == self.codebook.shape[0]:
            return exponentials(uniform)
        normals = self.steps * self.channels
        return torch.cat((exponentials(uniform[:, :-normals]), torch.special.ndtri(uniform[:, -normals:]).float()), 1)

    def draw(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, scale: int, scales: int, ended: bool
    ) -> torch.Tensor:
        rule, noise = self._at(rule, scale), noise[:, : self.codebook.shape[0]]
        if self.more_smooth:
            allowed = filter_logits(scores, rule.top_k, rule.top_p)
            return mixture_weights(allowed, noise, ramp_share(scale, scales)) @ self.codebook
        return self.codes(self.index(scores, noise, rule))

    def _at(self, rule: SamplingFilter, scale: int) -> SamplingFilter:
        """Filter of a scale: late ones draw from no more than `late_top_k` codes, unless there is no limit at all."""
        late = scale >= self.first_late and rule.top_k > self.late_top_k
        return replace(rule, top_k=self.late_top_k) if late else rule

    def residual_inputs(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, weight: float, guided: bool
    ) -> Mapping[str, torch.Tensor] | None:
        codes, normals = self.codebook.shape[0], self.steps * self.channels
        index = self.index(scores, noise[:, -normals - codes : -normals], self._at(rule, self.last_scale))
        weights = residual_weights(weight, guided)
        return {
            "codes": self.codes(index),
            "noise": noise[:, -normals:].unflatten(1, (self.steps, -1)).contiguous(),
            "weights": torch.tensor(weights, dtype=torch.float32, device=scores.device),
        }

    def accumulate(self, latent: torch.Tensor, codes: torch.Tensor, scale: int, scales: int) -> torch.Tensor:
        if scale + 1 == scales:
            return latent + codes.permute(2, 0, 1)
        return super().accumulate(latent, codes, scale, scales)


def ramp_share(scale: int, scales: int) -> float:
    """Share of a scale in the ramps of guidance and smoothing; the last scale has that of the one before it."""
    return min(scale, scales - 2) / (scales - 1)


def residual_weights(weight: float, guided: bool) -> tuple[float, ...]:
    """Weights of the branches in the noise that the residual's graph takes off.

    They are those of the logits. Without an unconditional branch there is one, and so it is at a weight of exactly 2:
    there the original guides nothing.
    """
    return (weight, 1 - weight) if guided and weight != 2 else (1.0,)


def codec(model: HartEntry, constants: Constants) -> HartCodec:
    """Codec of a model of this family."""
    return HartCodec(
        constants["codebook"],
        constants["phi_weight"],
        constants["phi_bias"],
        phi_share=model.phi_share,
        first_late=model.first_late,
        late_top_k=model.late_top_k,
        steps=model.residual_steps,
        last_scale=len(model.grids) - 1,
    )


def placement(model: HartEntry, constants: Constants, schedule: ScaleSchedule) -> Placement:
    """Scale embeddings, and every token's place and frequencies; a prompt's length moves all places."""
    offsets = constants["level_offsets"]
    tables = corner_places(schedule, model.width // model.heads)
    return Placement(
        offsets,
        tuple(
            {"places": places.to(offsets.device), "frequencies": frequencies.to(offsets.device)}
            for places, frequencies in tables
        ),
    )


def guidance_weights(guidance: float | Sequence[float], scales: int) -> tuple[float, ...]:
    """Weight of the conditional branch at each scale.

    A number is the end of the original's ramp, which begins without guidance and ends one scale before the last. The
    last scale has that one's weight. A list holds the weights.

    Raises:
        ConfigError: `guidance` is not made of numbers, has too few of them, or one is not finite.
    """
    if is_list(guidance):
        return per_scale(guidance, scales, "guidance_scale")
    end = number("guidance_scale", guidance, hint="or give one number per scale")
    return tuple(1 + end * ramp_share(k, scales) for k in range(scales))
