"""The Infinity transformer: next-scale prediction of bits, conditioned on text by cross-attention and AdaLN.

Tensors are [rows, tokens, channels]; a *row* is one conditional or unconditional branch of one image. Parameter
names are the original checkpoints' names, with the block chunks flattened to `blocks.{k}`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from ldp_runtime.schedule import ScaleSchedule, rope_table
from torch import nn
from torch.nn import functional as F

from ldp_export.models.layers import LayerNorm, Linear, linear
from ldp_export.models.sizes import InfinityConfig

#: Parameters that the original's inference keeps in float32, whatever the precision of the rest.
FLOAT32_ISLANDS = re.compile(r"(text_norm|shared_ada_lin|head_nm|head|pos_start|lvl_embed|cfg_uncond)\b")

Rope = tuple[torch.Tensor, torch.Tensor]
KeyValue = tuple[torch.Tensor, torch.Tensor]


class BlockSizes(Protocol):
    """Sizes that the layers shared by all families need."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def ffn(self) -> int: ...


def rotate(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotary embedding of interleaved pairs; x [R, L, H, c], rope = (cos, sin), each [L, c/2]."""
    cos, sin = (t[None, :, None, :] for t in rope)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention; q [R, L, H, c], k and v [R, S, H, c], boolean mask broadcastable to [R, H, L, S]."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale
    )
    return out.transpose(1, 2).flatten(2)  # [R, L, C]


class RmsNorm(nn.Module):
    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps)


class SelfAttention(nn.Module):
    """Cosine attention with a learned temperature per head; each scale sees all tokens drawn so far."""

    MAX_LOG_SCALE = math.log(100)

    def __init__(self, config: BlockSizes) -> None:
        super().__init__()
        C, H = config.width, config.heads
        self.heads = H
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, H, 1, 1), math.log(4.0)))
        self.q_bias = nn.Parameter(torch.zeros(C))
        self.v_bias = nn.Parameter(torch.zeros(C))
        self.mat_qkv = Linear(C, 3 * C, bias=False)
        self.proj = Linear(C, C)

    def project(self, x: torch.Tensor, rope: Rope | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Projects x [R, L, C] to q, k, v [R, L, H, c].

        q and k have unit norm and are rotated where `rope` is given; q is multiplied by the temperature.
        """
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        q, k, v = linear(x, self.mat_qkv.weight, bias).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        temperature = self.scale_mul_1H11.float().clamp(max=self.MAX_LOG_SCALE).exp().view(1, 1, -1, 1)
        q = F.normalize(q.float(), dim=-1) * temperature
        k = F.normalize(k.float(), dim=-1)
        return (q, k, v) if rope is None else (rotate(q, rope), rotate(k, rope), v)

    def forward(
        self, x: torch.Tensor, rope: Rope | None, past: KeyValue | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, KeyValue]:
        q, k, v = self.project(x, rope)
        q, k = q.to(v.dtype), k.to(v.dtype)  # before they are cached: the same values in half the memory
        if past is not None:
            k, v = torch.cat((past[0], k), dim=1), torch.cat((past[1], v), dim=1)
        return self.proj(attend(q, k, v, 1.0, mask)), (k, v)


class CrossAttention(nn.Module):
    """Ordinary attention of image tokens to the row's text."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        C = config.width
        self.heads = config.heads
        self.mat_q = Linear(C, C)
        self.mat_kv = Linear(C, 2 * C, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(C))
        self.proj = Linear(C, C)

    def text_kv(self, text: torch.Tensor) -> KeyValue:
        """Projected text [R, T, C] to keys and values [R, T, H, c]; they are the same at every scale."""
        bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
        k, v = linear(text, self.mat_kv.weight, bias).chunk(2, dim=-1)
        return k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1))

    def forward(self, x: torch.Tensor, text_kv: KeyValue, mask: torch.Tensor | None) -> torch.Tensor:
        q = self.mat_q(x).unflatten(-1, (self.heads, -1))
        return self.proj(attend(q, *text_kv, q.shape[-1] ** -0.5, mask))


class FeedForward(nn.Module):
    def __init__(self, config: BlockSizes) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.ffn)
        self.fc2 = Linear(config.ffn, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class InfinityBlock(nn.Module):
    """Self-attention and feed-forward, both under AdaLN with gates; between them cross-attention to the text."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, config.width) / config.width**0.5)
        self.sa = SelfAttention(config)
        self.ca_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.ca = CrossAttention(config)
        self.ffn = FeedForward(config)

    def forward(
        self,
        x: torch.Tensor,  # [R, L, C]
        modulation: torch.Tensor,  # [R, 6, C]
        rope: Rope,
        text: KeyValue | torch.Tensor,  # keys and values of the text, or the projected text [R, T, C]
        text_mask: torch.Tensor | None = None,
        past: KeyValue | None = None,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        gate1, gate2, scale1, scale2, shift1, shift2 = (self.ada_gss[0].float() + modulation).split(1, dim=1)
        text_kv = self.ca.text_kv(text) if isinstance(text, torch.Tensor) else text
        attended, cache = self.sa(modulate(x, scale1, shift1, self.eps), rope, past, mask)
        x = x + gate1 * attended.float()
        x = x + self.ca(self.ca_norm(x), text_kv, text_mask).float()
        x = x + gate2 * self.ffn(modulate(x, scale2, shift2, self.eps)).float()
        return x, cache


def modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """AdaLN: normalise x [R, L, C] without affine weights, then scale and shift, each [R, 1, C]."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class TextPooler(nn.Module):
    """Attention pooling of the text into one vector; the query is a parameter, the same for all prompts."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        C, heads = config.width, config.pool_heads
        self.mat_q = nn.Parameter(torch.randn(1, heads, C // heads) * (C // heads) ** -0.5)
        self.mat_kv = Linear(config.text_channels, 2 * C, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(C))
        self.proj = Linear(C, C)

    def forward(self, text: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:  # [R, T, Ct] -> [R, C]
        heads, head_dim = self.mat_q.shape[1:]
        bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
        k, v = linear(text, self.mat_kv.weight, bias).chunk(2, dim=-1)
        k, v = (t.unflatten(-1, (heads, head_dim)) for t in (k, v))
        q = self.mat_q[:, None].expand(text.shape[0], 1, heads, head_dim)
        return self.proj(attend(q, k, v, head_dim**-0.5, mask)).squeeze(1)


class _Pooling(nn.Module):
    """Holds the pooler under the name the checkpoints use, `text_proj_for_sos.ca`."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.ca = TextPooler(config)


class _HeadNorm(nn.Module):
    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), Linear(config.width, 2 * config.width))


@dataclass(frozen=True)
class InfinityPrompt:
    """Tensors computed once from a prompt; none of them depends on the scale.

    Attributes:
        condition: pooled text [R, C].
        start: first token [R, C], before its scale embedding is added.
        modulation: AdaLN of the blocks [R, 6, C] in the order gate1, gate2, scale1, scale2, shift1, shift2.
        head_modulation: scale and shift before the head [R, 2, C].
        text: projected text [R, T, C], input of every block's cross-attention.
        mask: True at real text tokens [R, T], or None where all rows have the same length.
    """

    condition: torch.Tensor
    start: torch.Tensor
    modulation: torch.Tensor
    head_modulation: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor | None

    @property
    def attention_mask(self) -> torch.Tensor | None:
        return None if self.mask is None else self.mask[:, None, None, :]


class InfinityTransformer(nn.Module):
    """Transformer from text features and the image so far to logits of the next scale's bits."""

    float32_islands = FLOAT32_ISLANDS

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config = config
        C, Ct = config.width, config.text_channels
        self.cfg_uncond = nn.Parameter(torch.randn(config.text_tokens, Ct) / Ct**0.5)
        self.pos_start = nn.Parameter(torch.randn(1, 1, C) * 0.02)
        self.text_norm = RmsNorm(Ct, config.norm_eps)
        self.text_proj_for_sos = _Pooling(config)
        self.text_proj_for_ca = nn.Sequential(Linear(Ct, C), nn.GELU(approximate="tanh"), Linear(C, C))
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), Linear(C, 6 * C))
        self.lvl_embed = nn.Embedding(config.levels, C)
        self.word_embed = Linear(config.bits, C)
        self.blocks = nn.ModuleList(InfinityBlock(config) for _ in range(config.depth))
        self.head_nm = _HeadNorm(config)
        self.head = Linear(C, 2 * config.bits)

    @property
    def layers(self) -> list[InfinityBlock]:
        """The blocks as a typed list."""
        return cast(list[InfinityBlock], list(self.blocks))

    @property
    def streamed(self) -> list[InfinityBlock]:
        """The blocks; see `Streamable`."""
        return self.layers

    def encode_prompt(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> InfinityPrompt:
        """Text features [R, T, Ct] (mask [R, T], True at real tokens) to the tensors that all scales share."""
        text = self.text_norm(features)
        pooled_mask = None if mask is None else mask[:, None, None, :]
        condition = self.text_proj_for_sos.ca(text, pooled_mask).float()  # [R, C]
        return InfinityPrompt(
            condition=condition,
            start=condition + self.pos_start[0],
            modulation=self.shared_ada_lin(condition).unflatten(-1, (6, -1)),
            head_modulation=self.head_nm.ada_lin(condition).unflatten(-1, (2, -1)),
            text=self.text_proj_for_ca(text),
            mask=mask,
        )

    def unconditional_text(self, tokens: int) -> torch.Tensor:
        """First `tokens` unconditional text rows [tokens, Ct]; `tokens` is the length of the paired prompt."""
        return self.cfg_uncond[:tokens]

    def embed(self, latents: torch.Tensor, scale: int) -> torch.Tensor:
        """Down-sampled latents [R, L, bits] of a scale >= 1, embedded as tokens [R, L, C]."""
        return self.word_embed(latents) + self.lvl_embed.weight[scale]

    def start_token(self, prompt: InfinityPrompt) -> torch.Tensor:
        """The only token of scale 0: [R, 1, C]."""
        return prompt.start[:, None] + self.lvl_embed.weight[0]

    def logits(self, hidden: torch.Tensor, prompt: InfinityPrompt) -> torch.Tensor:
        """Hidden tokens [R, L, C] to logit pairs [R, L, 2 * bits]; columns 2j, 2j+1 are bit j = 0, 1."""
        scale, shift = prompt.head_modulation.split(1, dim=1)
        return self.head(modulate(hidden.float(), scale, shift, self.config.norm_eps))

    def forward(
        self,
        features: torch.Tensor,
        text_mask: torch.Tensor | None,
        latents: torch.Tensor,
        schedule: ScaleSchedule,
        keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs all scales at once, teacher-forced: tokens of scale a attend to all scales up to a.

        Args:
            features: text features [R, T, Ct].
            text_mask: True at real text tokens [R, T], or None.
            latents: inputs of scales 1.. concatenated [R, total - 1, bits].
            keep: keep mask [total] or [R, total]; tokens marked False are hidden from all tokens, as if never computed.

        Returns:
            Logits [R, total, 2 * bits]; those of hidden tokens have no meaning.
        """
        prompt = self.encode_prompt(features, text_mask)
        scale_of = torch.tensor([k for k, count in enumerate(schedule.tokens) for _ in range(count)])
        scale_of = scale_of.to(features.device)
        embedded = self.word_embed(latents) + self.lvl_embed(scale_of[1:])
        x = torch.cat((self.start_token(prompt), embedded.to(prompt.start.dtype)), dim=1)
        table = rope_table(schedule, self.config.head_dim)
        cos, sin = (torch.cat(parts).to(features.device) for parts in zip(*table, strict=True))
        visible = scale_of[:, None] >= scale_of[None, :]  # [query, key]
        if keep is not None:
            visible = visible & torch.atleast_2d(keep)[:, None, None, :]
        for block in self.layers:
            x, _ = block(
                x,
                prompt.modulation,
                (cos, sin),
                prompt.text,
                prompt.attention_mask,
                mask=visible,
            )
        return self.logits(x, prompt)
