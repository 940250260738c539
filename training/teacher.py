"""The transformer's teacher-forced pass as training wants it: the same numbers as the model's own forward, cheaper.

Two savings. Attention is done scale by scale over the prefix each scale may see, so no masked half is computed; and
a batch may hold the coarse scales alone: what a scene contains is decided there.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from ldp_runtime.schedule import ScaleSchedule, rope_table
from torch.nn import functional as F

from ldp_export.models.infinity import InfinityBlock, InfinityPrompt, InfinityTransformer, modulate


@dataclass(frozen=True)
class Tokens:
    """The tokens of a schedule's first scales.

    Attributes:
        counts: how many there are of each scale; they sum to L.
        scale: the scale of each [L].
        rope: cosines and sines, each [L, head_dim / 2].
    """

    counts: tuple[int, ...]
    scale: torch.Tensor
    rope: tuple[torch.Tensor, torch.Tensor]


@lru_cache(maxsize=8)
def choose_tokens(schedule: ScaleSchedule, scales: int, head_dim: int, device: str) -> Tokens:
    """All tokens of the first `scales` scales."""
    counts = schedule.tokens[:scales]
    scale = torch.repeat_interleave(torch.arange(scales), torch.tensor(counts))
    cos, sin = (torch.cat(parts[:scales]) for parts in zip(*rope_table(schedule, head_dim), strict=True))
    return Tokens(counts, scale.to(device), (cos.to(device), sin.to(device)))


def teacher_logits(
    model: InfinityTransformer,
    features: torch.Tensor,  # [B, T, Ct]
    text_mask: torch.Tensor,  # [B, T]
    inputs: torch.Tensor,  # [B, total - 1, bits], of which the first L - 1 are read
    tokens: Tokens,
) -> torch.Tensor:
    """Logits of those tokens [B, L, 2 * bits]."""
    prompt = model.encode_prompt(features, text_mask)
    embedded = model.word_embed(inputs[:, : sum(tokens.counts) - 1]) + model.lvl_embed(tokens.scale[1:])
    x = torch.cat((model.start_token(prompt).float(), embedded.float()), dim=1)  # [B, L, C]
    text_bias = torch.where(text_mask, 0.0, float("-inf"))[:, None, None, :]
    for block in model.blocks:
        x = run_block(block, x, prompt, text_bias, tokens.rope, tokens.counts)
    return model.logits(x, prompt)


def run_block(
    block: InfinityBlock,
    x: torch.Tensor,  # [B, L, C]
    prompt: InfinityPrompt,
    text_bias: torch.Tensor,  # [B, 1, 1, T]
    rope: tuple[torch.Tensor, torch.Tensor],
    counts: tuple[int, ...],
) -> torch.Tensor:
    gate1, gate2, scale1, scale2, shift1, shift2 = (block.ada_gss[0] + prompt.modulation).split(1, dim=1)
    q, k, v = block.sa.project(modulate(x, scale1, shift1, block.eps), rope)
    x = x + gate1 * block.sa.proj(attend_by_scale(q.to(v.dtype), k.to(v.dtype), v, counts))
    k, v = block.ca.text_kv(prompt.text)
    q = block.ca.mat_q(block.ca_norm(x)).unflatten(-1, (block.ca.heads, -1)) * k.shape[-1] ** -0.5
    x = x + block.ca.proj(attend_densely(*(t.transpose(1, 2) for t in (q, k, v)), text_bias))
    return x + gate2 * block.ffn(modulate(x, scale2, shift2, block.eps))


def attend_by_scale(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    """Each scale's queries over the tokens up to its end; all [B, L, H, c] -> [B, L, C]."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, L, c]
    parts, start = [], 0
    for count in counts:
        end = start + count
        parts.append(attend_densely(q[:, :, start:end], k[:, :, :end], v[:, :, :end]))
        start = end
    return torch.cat(parts, dim=1)


def attend_densely(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax attention with unit scale, [B, H, L, c] -> [B, L, C]; on CPUs in bf16 the plain one is the faster."""
    if q.is_cuda:
        mask = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0).transpose(1, 2).flatten(2)
    scores = q @ k.transpose(-1, -2)
    weights = (scores if bias is None else scores + bias).float().softmax(-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)
