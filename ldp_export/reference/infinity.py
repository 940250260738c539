"""The original generation loop of Infinity in eager PyTorch: the reference for parity and latency.

It follows the released code step by step. Both branches run in one batch, the KV cache grows by concatenation, and
every block projects the text again at every scale. `ldp_runtime` must draw the same images from engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from ldp_runtime.errors import ConfigError
from ldp_runtime.families.infinity import accumulate, bits_to_codes, next_input, tokens_to_latent
from ldp_runtime.noise import draw_noise
from ldp_runtime.sampling import SamplingFilter, logit_difference, sample_bits
from ldp_runtime.schedule import ScaleSchedule, rope_table
from ldp_runtime.token_layout import LatentLayout

from ldp_export.models.infinity import InfinityPrompt, InfinityTransformer, KeyValue, Rope

#: Points at which guidance mixes the branches: 0 is the logits, n < 0 the hidden states after block depth + n.
AT_LOGITS = (0,)


@dataclass(frozen=True)
class InfinitySettings:
    """Settings of the loop; guidance and temperature are a number, or one number per scale."""

    guidance: float | Sequence[float] = 3.0
    temperature: float | Sequence[float] = 1.0
    filter: SamplingFilter = field(default_factory=SamplingFilter)
    seed: int = 0
    insertion: tuple[int, ...] = AT_LOGITS

    def per_scale(self, name: str, scales: int) -> list[float]:
        value = getattr(self, name)
        values = [float(value)] * scales if isinstance(value, int | float) else [float(v) for v in value]
        if len(values) < scales:
            raise ConfigError(
                f"{name} has {len(values)} values for {scales} scales", hint="give one number, or one per scale"
            )
        return values[:scales]


@dataclass
class InfinityRun:
    """Results of the loop; lists are indexed by scale.

    Attributes:
        bits: sampled bits [B, h*w, bits], bool.
        raw_logits: logits [rows, h*w, 2*bits] before temperature and guidance; conditional rows come first.
        guided: logit pairs [B, h*w, 2*bits] after temperature and guidance.
        inputs: input of the *next* scale [B, h'*w', bits].
        accumulated: F_k, the latent summed up to scale k [B, d, H, W].
        latent: final latent [B, d, H, W].
    """

    bits: list[torch.Tensor] = field(default_factory=list)
    raw_logits: list[torch.Tensor] = field(default_factory=list)
    guided: list[torch.Tensor] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    accumulated: list[torch.Tensor] = field(default_factory=list)
    latent: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def pad_rows(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pads texts [T_i, Ct] to [R, T, Ct], with a mask [R, T] (None if all lengths are equal)."""
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    if bool((lengths == padded.shape[1]).all()):
        return padded, None
    return padded, torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]


def text_rows(
    model: InfinityTransformer,
    texts: Sequence[torch.Tensor],
    negatives: Sequence[torch.Tensor] | None,
    guided: bool,
) -> list[torch.Tensor]:
    """Conditional rows, followed (if guided) by the negative prompts or the learned unconditional rows."""
    if not guided:
        return list(texts)
    others = negatives if negatives is not None else [model.unconditional_text(len(t)) for t in texts]
    return [*texts, *others]


@torch.no_grad()
def generate(
    model: InfinityTransformer,
    texts: Sequence[torch.Tensor],
    schedule: ScaleSchedule,
    layout: LatentLayout,
    settings: InfinitySettings,
    *,
    negatives: Sequence[torch.Tensor] | None = None,
    forced_bits: Sequence[torch.Tensor] | None = None,
    noise: Sequence[torch.Tensor] | None = None,
    keep_trace: bool = True,
    on_scale: Callable[[int], None] | None = None,
) -> InfinityRun:
    """Draws one latent per text.

    Args:
        texts: text features [T_i, Ct] of each prompt.
        negatives: one negative prompt per text, or None for the learned unconditional rows.
        forced_bits: bits of each scale [B, h*w, bits] that replace the sampled ones (teacher forcing).
        noise: noise of each scale [B, h*w, bits] on the model's device; None draws it from the seed on the CPU, as the
            original does.
        keep_trace: keep logits, inputs and accumulated latents of every scale.
    """
    S, B = len(schedule), len(texts)
    guidance, temperature = settings.per_scale("guidance", S), settings.per_scale("temperature", S)
    doubled = any(g != 1 for g in guidance)
    prompt = model.encode_prompt(*pad_rows(text_rows(model, texts, negatives, doubled)))
    device = prompt.start.device
    ropes = _ropes(schedule, model.config.head_dim, device)
    generator = torch.Generator().manual_seed(settings.seed)
    caches: list[KeyValue | None] = [None] * model.config.depth
    latent = torch.zeros(B, layout.channels, *layout.latent_grid(schedule.final_grid), device=device)
    x, run = model.start_token(prompt), InfinityRun()
    for k, (h, w) in enumerate(schedule.grids):
        hidden = _run_blocks(model, x, prompt, ropes[k], caches, guidance[k], settings.insertion)
        raw = model.logits(hidden, prompt)
        logits = raw / temperature[k]
        if guidance[k] != 1 and 0 in settings.insertion:
            logits = guidance[k] * logits[:B] + (1 - guidance[k]) * logits[B:]
        logits = logits[:B]
        if noise is None:
            drawn = draw_noise(generator, B * h * w, layout.bits).view(B, h * w, layout.bits).to(device)
        else:
            drawn = noise[k]
        bits = sample_bits(logit_difference(logits), drawn, settings.filter)
        if forced_bits is not None:
            bits = forced_bits[k].to(device).bool()
        codes = tokens_to_latent(bits_to_codes(bits, layout).view(B, h, w, -1), layout)
        latent = accumulate(latent, codes)
        run.bits.append(bits)
        if k + 1 < S:
            step = next_input(latent, schedule.grids[k + 1], layout)
            x = model.embed(step.repeat(x.shape[0] // B, 1, 1), k + 1)
            if keep_trace:
                run.inputs.append(step)
        if keep_trace:
            run.raw_logits.append(raw)
            run.guided.append(logits)
            run.accumulated.append(latent)
        if on_scale is not None:
            on_scale(k)
    run.latent = latent
    return run


@lru_cache(maxsize=8)
def _ropes(schedule: ScaleSchedule, head_dim: int, device: torch.device) -> tuple[Rope, ...]:
    """Rotations (RoPE) of every scale, cached because they are the same for every image."""
    return tuple((cos.to(device), sin.to(device)) for cos, sin in rope_table(schedule, head_dim))


def _run_blocks(
    model: InfinityTransformer,
    x: torch.Tensor,
    prompt: InfinityPrompt,
    rope: Rope,
    caches: list[KeyValue | None],
    guidance: float,
    insertion: tuple[int, ...],
) -> torch.Tensor:
    """Runs all blocks on the tokens of one scale; mixes guidance into hidden states as `insertion` says."""
    depth = model.config.depth
    mixed_after = {depth + n for n in insertion if n < 0}
    if any(not 0 < after < depth for after in mixed_after) or any(n > 1 for n in insertion):
        raise ConfigError(
            f"cannot insert guidance at {insertion} in {depth} blocks", hint=f"a block from 0 to {depth - 1}"
        )
    for index, block in enumerate(model.layers):
        x, caches[index] = block(x, prompt.modulation, rope, prompt.text, prompt.attention_mask, caches[index])
        if index in mixed_after and guidance != 1:
            half = x.shape[0] // 2
            mixed = guidance * x[:half] + (1 - guidance) * x[half:]
            x = torch.cat((mixed, mixed))
    return x
