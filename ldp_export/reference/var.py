"""The VAR transformer: class-conditional next-scale prediction of codebook indices, and its original loop.

It differs from Infinity in what surrounds the blocks: a class table instead of text, learned absolute positions
instead of RoPE, AdaLN per block (shared in d36 only), a head over the codebook, guidance that ramps up with the scale.
Parameter names are the original checkpoints' names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from ldp_runtime.families.var import filter_logits, mixture_weights, sample_index
from torch.nn import functional as F

from ldp_export.models.infinity import KeyValue
from ldp_export.models.var import VarTransformer
from ldp_export.models.var_vae import VarVae


@dataclass(frozen=True)
class VarSettings:
    """How to run the loop; guidance is the ramp's end: its weight at scale k is `guidance * k / (S - 1)`.

    Temperature is not the original's: it divides the guided logits, 1 leaves them.
    """

    guidance: float = 1.5
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 0
    more_smooth: bool = False
    temperature: float = 1.0


@dataclass
class VarRun:
    """What the loop produced: the final latent [B, C, H, W] and, by scale, where they are kept, indices [B, L], raw
    logits [2B, L, V], guided [B, L, V], F_k [B, C, H, W], and the inputs of the next scale [B, C, h', w']."""

    indices: list[torch.Tensor] = field(default_factory=list)
    raw_logits: list[torch.Tensor] = field(default_factory=list)
    guided: list[torch.Tensor] = field(default_factory=list)
    accumulated: list[torch.Tensor] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    latent: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@torch.no_grad()
def generate(
    model: VarTransformer,
    vae: VarVae,
    labels: Sequence[int],
    settings: VarSettings,
    *,
    forced_indices: Sequence[torch.Tensor] | None = None,
    keep_trace: bool = True,
    on_scale: Callable[[int], None] | None = None,
) -> VarRun:
    """Draws one latent per class label; a label outside the table (or < 0) is unconditional.

    As in the released code both branches run in one batch at every scale, and so does each block's AdaLN projection.

    Args:
        forced_indices: teacher forcing: indices of each scale [B, h*w] that replace the drawn ones.
        keep_trace: keep what every scale produced.
    """
    config, schedule = model.config, model.config.schedule
    S, B, full = len(schedule), len(labels), schedule.final_grid
    known = torch.tensor([label if 0 <= label < config.classes else config.classes for label in labels])
    rows = torch.cat((known, torch.full_like(known, config.classes)))
    condition = model.class_emb(rows.to(model.class_emb.weight.device))
    shared = model.shared_modulation(condition)
    generator = torch.Generator().manual_seed(settings.seed)
    caches: list[KeyValue | None] = [None] * config.depth
    latent, run = torch.zeros(B, config.channels, *full, device=condition.device), VarRun()
    x = model.start_tokens(condition)
    for k, grid in enumerate(schedule.grids):
        for i, block in enumerate(model.layers):
            x, caches[i] = block(x, block.modulation(condition, shared), caches[i])
        raw = model.logits(x, condition)
        share = k / (S - 1) if S > 1 else 0.0
        t = settings.guidance * share
        logits = ((1 + t) * raw[:B] - t * raw[B:]) / settings.temperature
        filtered = filter_logits(logits, settings.top_k, settings.top_p)
        indices = sample_index(filtered, _noise(filtered, generator))
        if forced_indices is not None:
            indices = forced_indices[k]
        codes = vae.codes(indices)
        if settings.more_smooth:
            codes = mixture_weights(filtered, _noise(filtered, generator), share) @ vae.quantize.embedding.weight
        latent = latent + vae.residual(codes.transpose(1, 2).unflatten(2, grid), full, k, S)
        if k + 1 < S:
            step = F.interpolate(latent, size=schedule.grids[k + 1], mode="area")
            embedded = model.word_embed(step.flatten(2).transpose(1, 2)) + model.positions(k + 1)
            x = embedded.repeat(2, 1, 1)
            if keep_trace:
                run.inputs.append(step)
        if keep_trace:
            run.indices.append(indices)
            run.raw_logits.append(raw)
            run.guided.append(logits)
            run.accumulated.append(latent)
        if on_scale is not None:
            on_scale(k)
    run.latent = latent
    return run


def _noise(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Exponential variates like logits [B, L, V], as `torch.multinomial` draws them; on the CPU whatever the device."""
    return torch.empty(logits.shape).exponential_(1, generator=generator).to(logits.device)
