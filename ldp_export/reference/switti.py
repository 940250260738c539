"""The original generation loop of Switti in eager PyTorch; its transformer is in `ldp_export.models.switti`.

Beside VAR's loop, guidance has a window of scales. From its end on the unconditional branch is not run, a temperature
divides the logits, and codes are no longer smoothed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from ldp_runtime.families.var import filter_logits, mixture_weights, progress, sample_index
from ldp_runtime.schedule import relative_rope_table
from torch.nn import functional as F

from ldp_export.models.infinity import KeyValue
from ldp_export.models.switti import SwittiPrompt, SwittiTransformer
from ldp_export.models.var_vae import VarVae


@dataclass(frozen=True)
class SwittiSettings:
    """Settings of the loop.

    Attributes:
        guidance: end of the ramp; its weight at scale k of S is `guidance * k / (S - 1)` within the window.
        first_guided: first scale of the window.
        first_unguided: first scale after the window; from it on only the conditional branch runs.
        last_temperature: temperature of the logits from `first_unguided` on.
        more_smooth: codes are mixtures of the codebook, from scale `first_smooth` to the end of the window.
    """

    guidance: float = 6.0
    top_k: int = 400
    top_p: float = 0.95
    seed: int = 0
    first_guided: int = 0
    first_unguided: int = 10
    last_temperature: float = 1.0
    more_smooth: bool = False
    first_smooth: int = 0

    def is_guided(self, scale: int) -> bool:
        return self.first_guided <= scale < self.first_unguided

    def is_smooth(self, scale: int) -> bool:
        return self.more_smooth and self.first_smooth <= scale < self.first_unguided


@dataclass
class SwittiRun:
    """Results of the loop; lists are indexed by scale, and empty unless the trace is kept.

    Attributes:
        indices: codebook indices [B, L], where one is drawn; None at smooth scales.
        mixtures: weights of the codebook [B, L, V] at smooth scales, else None.
        raw_logits: logits [R, L, V] before guidance; conditional rows come first. R falls from 2B to B.
        guided: logits [B, L, V] after guidance and temperature.
        codes: codes [B, C, h, w].
        accumulated: F_k, the latent summed up to scale k [B, C, H, W].
        inputs: input of the *next* scale [B, C, h', w'].
        latent: final latent [B, C, H, W].
    """

    indices: list[torch.Tensor | None] = field(default_factory=list)
    mixtures: list[torch.Tensor | None] = field(default_factory=list)
    raw_logits: list[torch.Tensor] = field(default_factory=list)
    guided: list[torch.Tensor] = field(default_factory=list)
    codes: list[torch.Tensor] = field(default_factory=list)
    accumulated: list[torch.Tensor] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    latent: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class SwittiText:
    """Encoded texts: features [n, T, Ct], pooled vectors [n, P], and masks [n, T], True at real tokens."""

    features: torch.Tensor
    pooled: torch.Tensor
    mask: torch.Tensor

    def beside(self, null: SwittiText) -> SwittiText:
        """Rows of these texts, then as many of the unconditional text; a single one serves every image."""
        longest = max(self.mask.shape[1], null.mask.shape[1])
        mine, other = self._padded(longest), null._padded(longest)
        both = ((a, b.expand(len(a), *b.shape[1:])) for a, b in zip(mine, other, strict=True))
        return SwittiText(*(torch.cat(pair) for pair in both))

    def _padded(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rest = tokens - self.mask.shape[1]
        return F.pad(self.features, (0, 0, 0, rest)), self.pooled, F.pad(self.mask, (0, rest))


@torch.no_grad()
def generate(
    model: SwittiTransformer,
    vae: VarVae,
    text: SwittiText,
    null: SwittiText,
    settings: SwittiSettings,
    *,
    forced_codes: Sequence[torch.Tensor] | None = None,
    keep_trace: bool = True,
    on_scale: Callable[[int], None] | None = None,
) -> SwittiRun:
    """Draws one latent per text.

    As in the released code, both branches run in one batch from scale 0 to the end of the window, even before guidance
    begins.

    Args:
        null: the unconditional text, one for all images or one each.
        forced_codes: codes of each scale [B, C, h, w] that replace the drawn ones (teacher forcing).
        keep_trace: keep indices, logits, codes, inputs and accumulated latents of every scale.
    """
    config, schedule = model.config, model.config.schedule
    S, B, full = len(schedule), len(text.features), schedule.final_grid
    rows = text.beside(null)
    prompt = model.encode_prompt(rows.features, rows.pooled, rows.mask)
    ropes = relative_rope_table(schedule, config.head_dim, config.rope_theta, config.rope_size)
    generator = torch.Generator().manual_seed(settings.seed)
    caches: list[KeyValue | None] = [None] * config.depth
    latent, run = torch.zeros(B, config.channels, *full, device=prompt.condition.device), SwittiRun()
    embedded = model.start_tokens(prompt.condition)
    for k, grid in enumerate(schedule.grids):
        R = 2 * B if k < settings.first_unguided else B
        prompt, caches = prompt.first(R), [_first(cache, R) for cache in caches]
        raw, caches = _run_blocks(model, embedded[:R], prompt, ropes[k], caches)
        logits = _guided(raw, B, k, S, settings)
        indices, mixture = _draw(logits, k, S, settings, generator)
        codes = _codes(vae, indices, mixture)
        codes = codes.transpose(1, 2).unflatten(2, grid) if forced_codes is None else forced_codes[k]
        latent = latent + vae.residual(codes, full, k, S)
        if k + 1 < S:
            step = F.interpolate(latent, size=schedule.grids[k + 1], mode="area")
            embedded = model.embed(step.flatten(2).transpose(1, 2), k + 1).repeat(2, 1, 1)
            if keep_trace:
                run.inputs.append(step)
        if keep_trace:
            run.indices.append(indices)
            run.mixtures.append(mixture)
            run.raw_logits.append(raw)
            run.guided.append(logits)
            run.codes.append(codes)
            run.accumulated.append(latent)
        if on_scale is not None:
            on_scale(k)
    run.latent = latent
    return run


def _first(cache: KeyValue | None, rows: int) -> KeyValue | None:
    return None if cache is None else (cache[0][:rows], cache[1][:rows])


def _run_blocks(
    model: SwittiTransformer,
    x: torch.Tensor,
    prompt: SwittiPrompt,
    rope: tuple[torch.Tensor, torch.Tensor],
    caches: Sequence[KeyValue | None],
) -> tuple[torch.Tensor, list[KeyValue | None]]:
    """Logits of a scale [R, L, codes], and the keys and values that later scales see: none without a past."""
    rope = rope[0].to(x.device), rope[1].to(x.device)
    kept: list[KeyValue | None] = []
    for i, block in enumerate(model.layers):
        x, cache = block(x, prompt.modulations[i], rope, prompt.text_kv[i], prompt.attention_mask, caches[i])
        kept.append(cache if model.config.keeps_past else None)
    return model.logits(x, prompt.condition), kept


def _guided(raw: torch.Tensor, B: int, scale: int, scales: int, settings: SwittiSettings) -> torch.Tensor:
    """Logits after guidance within its window, or divided by the temperature after it."""
    if settings.is_guided(scale):
        t = settings.guidance * progress(scale, scales)
        return (1 + t) * raw[:B] - t * raw[B:]
    ended = scale >= max(settings.first_guided, settings.first_unguided)
    return raw[:B] / settings.last_temperature if ended else raw[:B]


def _codes(vae: VarVae, indices: torch.Tensor | None, mixture: torch.Tensor | None) -> torch.Tensor:
    """Codes [B, L, C] of drawn indices, or of weights of the codebook."""
    if indices is not None:
        return vae.codes(indices)
    assert mixture is not None
    return mixture @ vae.quantize.embedding.weight


def _draw(
    logits: torch.Tensor, scale: int, scales: int, settings: SwittiSettings, generator: torch.Generator
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Indices [B, L] drawn from filtered logits, or the weights [B, L, V] of a mixture from all logits."""
    noise = torch.empty(logits.shape).exponential_(1, generator=generator).to(logits.device)
    if settings.is_smooth(scale):
        return None, mixture_weights(logits, noise, progress(scale, scales))
    return sample_index(filter_logits(logits, settings.top_k, settings.top_p), noise), None
