"""The original generation loop of HART in eager PyTorch; its transformer is in `ldp_export.models.hart`.

Scale 0 is the text itself. The last scale keeps the guidance and smoothing of the one before it. Its codes pass no phi,
and the residual head adds to them, guided by both branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from ldp_runtime.families.hart import ramp_share, residual_weights
from ldp_runtime.families.var import filter_logits, mixture_weights, sample_index
from torch.nn import functional as F

from ldp_export.models.hart import HartTransformer
from ldp_export.models.infinity import KeyValue
from ldp_export.models.var_vae import VarVae


@dataclass(frozen=True)
class HartSettings:
    """Settings of the loop.

    Attributes:
        guidance: end of the ramp, which the last two scales share.
        top_k, late_top_k: likeliest codes that are drawn from, and from scale `first_late` on.
        more_smooth: codes are mixtures of the codebook.
        has_residual: the residual head adds to the codes of the last scale.
    """

    guidance: float = 4.5
    top_k: int = 600
    late_top_k: int = 300
    first_late: int = 7
    top_p: float = 0.0
    seed: int = 0
    more_smooth: bool = True
    has_residual: bool = True

    def top_k_at(self, scale: int) -> int:
        return self.top_k if scale < self.first_late else self.late_top_k


@dataclass(frozen=True)
class HartText:
    """Encoded texts: features [n, T, Ct] with the rows of padding, and the positions of all rows [n, T]."""

    features: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, mask: torch.Tensor) -> HartText:
        """Texts from their features and masks [n, T], True at real tokens: padding takes the position before it."""
        return cls(features, mask.long().cumsum(dim=-1) - 1)

    def guided(self) -> HartText:
        """Rows of these texts, then as many unconditional ones: features of zeros at position 0."""
        both = (torch.cat((each, torch.zeros_like(each))) for each in (self.features, self.positions))
        return HartText(*both)


@dataclass
class HartRun:
    """Results of the loop; lists are indexed by scale, and empty unless the trace is kept.

    Attributes:
        indices: codebook indices [B, L], drawn also where codes are mixtures.
        raw_logits: logits [R, L, V] before guidance; conditional rows come first.
        guided: logits [B, L, V] after guidance.
        codes: codes [B, C, h, w] before the residual.
        accumulated: F_k, the latent summed up to scale k [B, C, H, W].
        inputs: input of the *next* scale [B, C, h', w'].
        hidden: of the last scale, both branches, before any norm of the head [R, L, C].
        condition: of the residual head [R, L, C].
        residual: what the residual head adds [B, C, H, W].
        latent: final latent [B, C, H, W].
    """

    indices: list[torch.Tensor] = field(default_factory=list)
    raw_logits: list[torch.Tensor] = field(default_factory=list)
    guided: list[torch.Tensor] = field(default_factory=list)
    codes: list[torch.Tensor] = field(default_factory=list)
    accumulated: list[torch.Tensor] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    condition: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    residual: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    latent: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def residual_noise(seed: int, images: int, tokens: int, channels: int, steps: int) -> torch.Tensor:
    """Noise [images, tokens, steps, channels] as the original takes it from PyTorch's generator, seeded with `seed`.

    Each step draws for both branches and uses the first one's; the last step's draw is not used at all.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(images * tokens, channels, generator=generator)]
    drawn += [torch.randn(2 * images * tokens, channels, generator=generator)[: images * tokens] for _ in range(steps)]
    return torch.stack(drawn[:steps], dim=1).unflatten(0, (images, tokens))


@torch.no_grad()
def generate(
    model: HartTransformer,
    vae: VarVae,
    text: HartText,
    settings: HartSettings,
    noise: torch.Tensor,
    *,
    forced_codes: Sequence[torch.Tensor] | None = None,
    keep_trace: bool = True,
    on_scale: Callable[[int], None] | None = None,
) -> HartRun:
    """Draws one latent per text.

    Args:
        noise: of the residual head [B, L, steps, channels]; see `residual_noise`.
        forced_codes: codes of each scale [B, C, h, w] that replace the drawn ones (teacher forcing).
        keep_trace: keep indices, logits, codes, inputs and accumulated latents of every scale.
    """
    config, schedule = model.config, model.config.schedule
    S, B, full = len(schedule), len(text.features), schedule.final_grid
    rows = text.guided()
    context = model.context(rows.features)
    modulation, origin = model.head_modulation(context), rows.positions[:, -1]
    generator = torch.Generator().manual_seed(settings.seed)
    caches: list[KeyValue | None] = [None] * config.depth
    latent, run = torch.zeros(B, config.channels, *full, device=context.device), HartRun()
    x, angle = context + model.levels()[0], model.text_angles(rows.positions)
    for k, grid in enumerate(schedule.grids):
        x, caches = _run_blocks(model, x, angle, caches)
        x = x[:, -1:] if k == 0 else x
        raw = model.logits(x, modulation)
        t = settings.guidance * ramp_share(k, S)
        logits = (1 + t) * raw[:B] - t * raw[B:]
        indices, codes = _draw(vae, logits, k, S, settings, generator)
        codes = codes.transpose(1, 2).unflatten(2, grid) if forced_codes is None else forced_codes[k]
        if k + 1 < S:
            latent = latent + vae.residual(codes, full, k, S)
            step = F.interpolate(latent, size=schedule.grids[k + 1], mode="area")
            x = model.embed(step.flatten(2).transpose(1, 2), k + 1).repeat(2, 1, 1)
            angle = model.image_angles(k + 1, origin)
            if keep_trace:
                run.inputs.append(step)
        else:
            run.hidden, run.residual = x, torch.zeros_like(latent)
            if settings.has_residual:
                run.condition, added = _residual(model, vae, x, indices, t, noise)
                run.residual = added.transpose(1, 2).unflatten(2, grid)
            latent = latent + codes + run.residual
        if keep_trace:
            run.indices.append(indices)
            run.raw_logits.append(raw)
            run.guided.append(logits)
            run.codes.append(codes)
            run.accumulated.append(latent)
        if on_scale is not None:
            on_scale(k)
    run.latent = latent
    return run


def _run_blocks(
    model: HartTransformer, x: torch.Tensor, angle: torch.Tensor, caches: Sequence[KeyValue | None]
) -> tuple[torch.Tensor, list[KeyValue | None]]:
    """Hidden rows [R, L, C] behind all blocks, and the keys and values that later scales see."""
    kept: list[KeyValue | None] = []
    for block, past in zip(model.layers, caches, strict=True):
        x, cache = block(x, angle, past)
        kept.append(cache)
    return x, kept


def _draw(
    vae: VarVae,
    logits: torch.Tensor,
    scale: int,
    scales: int,
    settings: HartSettings,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices [B, L] drawn from filtered logits, and codes [B, L, C]: those of the indices, or mixtures."""
    allowed = filter_logits(logits, settings.top_k_at(scale), settings.top_p)
    noise = torch.empty(logits.shape).exponential_(1, generator=generator).to(logits.device)
    indices = sample_index(allowed, noise)
    if not settings.more_smooth:
        return indices, vae.codes(indices)
    noise = torch.empty(logits.shape).exponential_(1, generator=generator).to(logits.device)
    return indices, mixture_weights(allowed, noise, ramp_share(scale, scales)) @ vae.quantize.embedding.weight


def _residual(
    model: HartTransformer,
    vae: VarVae,
    hidden: torch.Tensor,
    indices: torch.Tensor,
    t: float,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Condition of the residual head [R, L, C], and the residual [B, L, C] of each image."""
    B = len(indices)
    condition = model.residual_condition(hidden, vae.codes(indices).repeat(2, 1, 1))
    weights = residual_weights(1 + t, guided=True)
    branches = [condition[i::B][: len(weights)] for i in range(B)]
    added = [
        model.residual(branch, noise[i], torch.tensor(weights, dtype=torch.float32))
        for i, branch in enumerate(branches)
    ]
    return condition, torch.stack(added)
