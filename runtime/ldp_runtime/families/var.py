"""VAR's tokens: one codebook index each; codes are resized bicubically and pass a `phi` convolution.

Source: the VAR reference implementation (`VectorQuantizer2`, `autoregressive_infer_cfg`, `gumbel_softmax_with_rng`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from ldp_runtime.architecture.var import VarEntry
from ldp_runtime.arguments import is_list, number
from ldp_runtime.engines.blocks import Placement
from ldp_runtime.families.base import Constants
from ldp_runtime.guidance import per_scale, ramp
from ldp_runtime.noise import exponentials
from ldp_runtime.numerics import exact_convolutions
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import Grid, ScaleSchedule


@dataclass(frozen=True, eq=False)
class CodebookCodec:
    """The `Codec` of VAR: tokens are codebook indices, scores the logits over the codebook.

    Attributes:
        codebook: codes of all indices [V, C].
        phi_weight, phi_bias: weights [K, C, C, 3, 3] and biases [K, C] of the K convolutions that the scales share.
        phi_share: w in phi(h) = (1 - w) h + w conv(h).
        more_smooth: codes are Gumbel-softmax mixtures of the codebook, sharper with every scale, not single entries.
    """

    codebook: torch.Tensor
    phi_weight: torch.Tensor
    phi_bias: torch.Tensor
    phi_share: float = 0.5
    more_smooth: bool = False

    @property
    def channels(self) -> int:
        return self.codebook.shape[1]

    @property
    def gap_terms(self) -> int:
        return self.codebook.shape[0]

    def empty_latent(self, schedule: ScaleSchedule) -> torch.Tensor:
        return torch.zeros(self.channels, *schedule.final_grid, dtype=torch.float32, device="cpu")

    def noise(self, seed: int, schedule: ScaleSchedule) -> tuple[torch.Tensor, ...]:
        """Exponential variates [h*w, V] of every scale: those of the index, or with `more_smooth` of the mixture.

        The original draws an index even if it then mixes, so with `more_smooth` the index's variates are dropped.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        return tuple(self.draw_noise(generator, schedule, scale) for scale in range(len(schedule)))

    def draw_noise(self, generator: torch.Generator, schedule: ScaleSchedule, scale: int) -> torch.Tensor:
        """Next variates of the generator [tokens, V]."""
        drawn = torch.empty(schedule.tokens[scale], self.codebook.shape[0], dtype=torch.float32, device="cpu")
        drawn.exponential_(1, generator=generator)
        return drawn.exponential_(1, generator=generator) if self.more_smooth else drawn

    def residual_inputs(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, weight: float, guided: bool
    ) -> Mapping[str, torch.Tensor] | None:
        return None

    def mixing(self) -> CodebookCodec:
        return replace(self, more_smooth=True)

    def variates(self, scale: int, scales: int) -> int:
        return self.codebook.shape[0]

    def of_uniforms(self, uniform: torch.Tensor) -> torch.Tensor:
        return exponentials(uniform)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def gap(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """Twice the variance of l_cond - l_uncond over the codebook: the mean over pairs that `Codec.gap` defines."""
        return 2 * (conditional - unconditional).var(dim=-1)

    def draw(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, scale: int, scales: int, ended: bool
    ) -> torch.Tensor:
        if self.more_smooth:
            allowed = filter_logits(scores, rule.top_k, rule.top_p)
            return mixture_weights(allowed, noise, progress(scale, scales)) @ self.codebook
        return self.codes(self.index(scores, noise, rule))

    def index(self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter) -> torch.Tensor:
        """Indices [L] drawn from filtered scores."""
        return sample_index(filter_logits(scores, rule.top_k, rule.top_p), noise)

    def codes(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.codebook[tokens]

    def accumulate(self, latent: torch.Tensor, codes: torch.Tensor, scale: int, scales: int) -> torch.Tensor:
        size = (latent.shape[-2], latent.shape[-1])
        resized = codes.permute(2, 0, 1)[None]
        if tuple(codes.shape[:2]) != size:
            resized = F.interpolate(resized, size=size, mode="bicubic", align_corners=False)
        k, w = phi_index(scale, scales, len(self.phi_weight)), self.phi_share
        return latent + (resized * (1 - w) + _convolve(resized, self.phi_weight[k], self.phi_bias[k]) * w)[0]

    def next_input(self, latents: torch.Tensor, grid: Grid) -> torch.Tensor:
        return F.interpolate(latents, size=grid, mode="area").flatten(2).transpose(1, 2)


def progress(scale: int, scales: int) -> float:
    """Position of a scale between the first (0) and the last (1)."""
    return scale / (scales - 1) if scales > 1 else 0.0


def filter_logits(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Logits after top-k, then top-p, over the last axis: those filtered out are -inf. 0 switches either off."""
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p > 0:
        values, order = logits.sort(dim=-1)
        drop = values.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1] = False
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def sample_index(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Indices [L] drawn from filtered logits and exponential variates [L, V], as `torch.multinomial` draws one."""
    return (logits.softmax(dim=-1) / noise).argmax(dim=-1)


def mixture_weights(logits: torch.Tensor, noise: torch.Tensor, share: float) -> torch.Tensor:
    """Gumbel-softmax weights of `more_smooth`, from filtered logits and exponential variates, each [..., V]."""
    temperature = max(0.27 * (1 - share * 0.95), 0.005)
    return ((logits * (1 + share) - noise.log()) / temperature).softmax(dim=-1)


def phi_index(scale: int, scales: int, phis: int) -> int:
    """Index of the shared convolution that a scale uses: the nearest of `phis` evenly spread ticks, the first on ties.

    Seemingly exact ties (scales 2 and 7 of 10) are decided by rounding in float64, as in the original.
    """
    if scales == 1:
        return 0
    edge = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(edge, 1 - edge, phis)
    return int(np.argmin(np.abs(ticks - scale / (scales - 1))))


def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    with exact_convolutions(x.device):
        return F.conv2d(x, weight, bias, padding=1)


def codec(model: VarEntry, constants: Constants) -> CodebookCodec:
    """Codec of a model of this family.

    Codebook and phi convolutions are constants, not a graph: they are used between the engine calls, on residuals that
    the policy filled in. They take a fraction of a percent of a scale's work.
    """
    phis = constants["phi_weight"], constants["phi_bias"]
    return CodebookCodec(constants["codebook"], *phis, phi_share=model.phi_share)


def placement(constants: Constants, schedule: ScaleSchedule) -> Placement:
    """Scale embeddings, and learned positions of every token."""
    learned = constants["positions"].split(schedule.tokens)
    return Placement(constants["level_offsets"], tuple({"positions": positions} for positions in learned))


def guidance_weights(guidance: float | Sequence[float], scales: int) -> tuple[float, ...]:
    """Weight of the conditional branch at each scale.

    A number is the end of the original's ramp, which begins without guidance; a list holds the weights themselves.

    Raises:
        ConfigError: `guidance` is not made of numbers, has too few of them, or one is not finite.
    """
    if is_list(guidance):
        return per_scale(guidance, scales, "guidance_scale")
    return ramp(number("guidance_scale", guidance, hint="or give one number per scale"), scales)
