"""The original generation loop of VAR in eager PyTorch; its transformer is in `ldp_export.models.var`.

It differs from Infinity's loop in that it draws codebook indices for classes, and guidance ramps up with the scale.
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
    """Settings of the loop.

    Guidance ramps up: its weight at scale k of S is `guidance * k / (S - 1)`. The original has no temperature; here
    it divides the guided logits, and 1 leaves them unchanged.
    """

    guidance: float = 1.5
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 0
    more_smooth: bool = False
    temperature: float = 1.0


@dataclass
class VarRun:
    """Results of the loop; lists are indexed by scale, and empty unless the trace is kept.

    Attributes:
        indices: codebook indices [B, L].
        raw_logits: logits [2B, L, V] before guidance; conditional rows come first.
        guided: logits [B, L, V] after guidance and temperature.
        accumulated: F_k, the latent summed up to scale k [B, C, H, W].
        inputs: input of the *next* scale [B, C, h', w'].
        latent: final latent [B, C, H, W].
    """

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

    As in the released code, both branches run in one batch at every scale, and every block projects its AdaLN again at
    every scale.

    Args:
        forced_indices: indices of each scale [B, h*w] that replace the drawn ones (teacher forcing).
        keep_trace: keep indices, logits, inputs and accumulated latents of every scale.
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
    """Exponential variates [B, L, V] as `torch.multinomial` draws them; drawn on the CPU whatever the device."""
    return torch.empty(logits.shape).exponential_(1, generator=generator).to(logits.device)
