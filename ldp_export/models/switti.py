"""The Switti transformer: next-scale prediction of codebook indices from text, with attention inside a scale.

Source: the released code of Switti (yandex-research/switti). Beside VAR it reads text by
cross-attention, and its blocks have three branches, with an RMS norm before and after each. Scales communicate through
the accumulated latent; the autoregressive variant also keeps the keys and values of earlier scales.
Parameter names are the original checkpoints' names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from ldp_runtime.schedule import relative_rope_table
from torch import nn
from torch.nn import functional as F

from ldp_export.models.infinity import KeyValue, RmsNorm, Rope, attend, modulate, rotate
from ldp_export.models.layers import Linear
from ldp_export.models.sizes import SwittiConfig

#: Names of parameters that stay float32 in every precision: the crop's phases reach thousands of radians, and the
#: logits decide draws.
FLOAT32_ISLANDS = re.compile(
    r"(pos_start|lvl_embed|crop_embed|crop_proj|head_nm|head|text_pooler)\b|.*_norm[12]?\.|.*crop_cond_scales"
)


def centred(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm over all channels, heads not yet split, without weights: [..., C] float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


class SelfAttention(nn.Module):
    """Attention inside a scale, or to all scales so far; queries and keys are normalised over the full width."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        self.heads, self.eps = config.heads, config.norm_eps
        self.to_qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)

    def project(self, x: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Projects x [R, L, C] to rotated queries and keys, and to values, [R, L, H, c] each."""
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (centred(q, self.eps), centred(k, self.eps), v))
        return rotate(q, rope), rotate(k, rope), v

    def forward(
        self, x: torch.Tensor, rope: Rope, past: KeyValue | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, KeyValue]:
        q, k, v = self.project(x, rope)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=1), torch.cat((past[1], v), dim=1)
        return self.proj(attend(q, k, v, q.shape[-1] ** -0.5, mask)), (k, v)


class CrossAttention(nn.Module):
    """Attention of image tokens to the row's text: no positions, queries and keys normalised over the full width."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        self.heads, self.eps = config.heads, config.norm_eps
        self.to_q = Linear(config.width, config.width)
        self.to_kv = Linear(config.text_channels, 2 * config.width)
        self.proj = Linear(config.width, config.width)

    def text_kv(self, text: torch.Tensor) -> KeyValue:
        """Normalised text [R, T, Ct] to keys and values [R, T, H, c]; they are the same at every scale."""
        k, v = self.to_kv(text).chunk(2, dim=-1)
        k = centred(k, self.eps).to(v.dtype)
        return k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1))

    def forward(self, x: torch.Tensor, text_kv: KeyValue, mask: torch.Tensor | None) -> torch.Tensor:
        q = centred(self.to_q(x), self.eps).to(text_kv[0].dtype).unflatten(-1, (self.heads, -1))
        return self.proj(attend(q, *text_kv, q.shape[-1] ** -0.5, mask))


class FeedForward(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        self.up_proj = Linear(config.width, config.ffn, bias=False)
        self.gate_proj = Linear(config.width, config.ffn, bias=False)
        self.down_proj = Linear(config.ffn, config.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SwittiBlock(nn.Module):
    """Self-attention and feed-forward under AdaLN, cross-attention between them without; each branch is normalised."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        C, eps = config.width, config.norm_eps
        self.crop_cond_scales = nn.Parameter(torch.ones(1, C))
        self.attn, self.cross_attn, self.ffn = SelfAttention(config), CrossAttention(config), FeedForward(config)
        self.self_attention_norm1, self.self_attention_norm2 = RmsNorm(C, eps), RmsNorm(C, eps)
        self.cross_attention_norm1, self.cross_attention_norm2 = RmsNorm(C, eps), RmsNorm(C, eps)
        self.ffn_norm1, self.ffn_norm2 = RmsNorm(C, eps), RmsNorm(C, eps)
        self.attention_y_norm = RmsNorm(config.text_channels, eps)
        self.ada_lin = nn.Sequential(nn.SiLU(), Linear(C, 6 * C))

    def modulation(self, condition: torch.Tensor, crop: torch.Tensor) -> torch.Tensor:
        """AdaLN of this block [R, 6, C] in the order gate1, gate2, scale1, scale2, shift1, shift2."""
        return self.ada_lin(condition + self.crop_cond_scales.float() * crop).float().unflatten(-1, (6, -1))

    def text_kv(self, text: torch.Tensor) -> KeyValue:
        """Text features [R, T, Ct] to keys and values of this block's cross-attention [R, T, H, c]."""
        return self.cross_attn.text_kv(self.attention_y_norm(text))

    def forward(
        self,
        x: torch.Tensor,  # [R, L, C]
        modulation: torch.Tensor,  # [R, 6, C]
        rope: Rope,
        text_kv: KeyValue,
        text_mask: torch.Tensor | None,
        past: KeyValue | None = None,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.split(1, dim=1)
        attended, cache = self.attn(self.self_attention_norm1(x) * (1 + scale1) + shift1, rope, past, mask)
        x = x + gate1 * self.self_attention_norm2(attended)
        x = x + self.cross_attention_norm2(self.cross_attn(self.cross_attention_norm1(x), text_kv, text_mask))
        return x + gate2 * self.ffn_norm2(self.ffn(self.ffn_norm1(x) * (1 + scale2) + shift2)), cache


class _HeadNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))


class _CropFrequencies(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count))


def _crop_waves(crop: Sequence[int], frequencies: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of the crop's numbers [C]; by NumPy, so that no precision of the rest can reach them."""
    if frequencies.is_meta:
        return frequencies.new_empty(8 * len(frequencies))
    phases = np.asarray(crop, np.float32)[:, None] * frequencies.detach().float().numpy().astype(np.float32)
    phases = phases * np.float32(2) * np.float32(np.pi)  # [4, C/8]
    return torch.from_numpy(np.concatenate((np.sin(phases), np.cos(phases)), axis=1).ravel())


@dataclass(frozen=True)
class SwittiPrompt:
    """Tensors computed once from a prompt; none of them depends on the scale.

    Attributes:
        condition: pooled text [R, C]: the start token, and the head's condition.
        modulations: AdaLN of every block, [R, 6, C] each.
        text_kv: keys and values of the text for every block, [R, T, H, c] each.
        mask: True at real text tokens [R, T].
    """

    condition: torch.Tensor
    modulations: list[torch.Tensor]
    text_kv: list[KeyValue]
    mask: torch.Tensor

    def first(self, rows: int) -> SwittiPrompt:
        """The first rows alone."""
        kv = [(k[:rows], v[:rows]) for k, v in self.text_kv]
        return SwittiPrompt(self.condition[:rows], [m[:rows] for m in self.modulations], kv, self.mask[:rows])

    @property
    def attention_mask(self) -> torch.Tensor:
        return self.mask[:, None, None, :]


class SwittiTransformer(nn.Module):
    """Transformer from text features and the image so far to logits over the codebook."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        self.config = config
        C = config.width
        self.pos_start = nn.Parameter(torch.randn(1, 1, C) * 0.02)
        self.word_embed = Linear(config.channels, C)
        self.text_pooler = Linear(config.pooled_channels, C)
        self.lvl_embed = nn.Embedding(len(config.grids), C)
        self.crop_embed = _CropFrequencies(C // 8)
        self.crop_proj = Linear(C, C)
        self.blocks = nn.ModuleList(SwittiBlock(config) for _ in range(config.depth))
        self.head_nm = _HeadNorm(C)
        self.head = Linear(C, config.codes)

    @property
    def layers(self) -> list[SwittiBlock]:
        return cast(list[SwittiBlock], list(self.blocks))

    def crop_condition(self) -> torch.Tensor:
        """Crop of the training pictures as a condition [C]: a constant of the model, the same at every size.

        Each of height, width, top and left becomes sines, then cosines, of its multiples of fixed frequencies. It is
        computed in float32, as in training: in bfloat16 the phases would be lost.
        """
        waves = _crop_waves(self.config.crop, self.crop_embed.weight)
        return F.linear(waves, self.crop_proj.weight.float(), self.crop_proj.bias.float())

    def encode_prompt(self, features: torch.Tensor, pooled: torch.Tensor, mask: torch.Tensor) -> SwittiPrompt:
        """Text features [R, T, Ct], their pooled vectors [R, P] and mask [R, T] to the tensors that scales share."""
        condition, crop = self.text_pooler(pooled).float(), self.crop_condition()
        return SwittiPrompt(
            condition=condition,
            modulations=[block.modulation(condition, crop) for block in self.layers],
            text_kv=[block.text_kv(features) for block in self.layers],
            mask=mask,
        )

    def start_tokens(self, condition: torch.Tensor) -> torch.Tensor:
        """The only token of scale 0: [R, 1, C]."""
        return condition[:, None] + self.pos_start + self.lvl_embed.weight[0]

    def embed(self, latents: torch.Tensor, scale: int) -> torch.Tensor:
        """Down-sampled latents [R, L, channels] of a scale >= 1, embedded as tokens [R, L, C]."""
        return self.word_embed(latents) + self.lvl_embed.weight[scale]

    def head_modulation(self, condition: torch.Tensor) -> torch.Tensor:
        """Scale and shift before the head [R, 2, C]."""
        return self.head_nm.ada_lin(condition).float().unflatten(-1, (2, -1))

    def logits(self, hidden: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Logits over the codebook [R, L, codes] of hidden tokens [R, L, C]; the crop is no part of the condition."""
        scale, shift = self.head_modulation(condition).split(1, dim=1)
        return self.head(modulate(hidden.float(), scale, shift, self.config.norm_eps))

    def forward(self, prompt: SwittiPrompt, latents: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Runs all scales at once, teacher-forced: tokens attend to their own scale, or also to earlier ones.

        Args:
            latents: inputs of scales 1.. concatenated [R, total - 1, channels].
            keep: keep mask [total]; tokens marked False are hidden from every token, as if never computed.

        Returns:
            Logits [R, total, codes]; those of hidden tokens have no meaning.
        """
        tokens = self.config.schedule.tokens
        scale_of = torch.repeat_interleave(torch.arange(len(tokens)), torch.tensor(tokens))
        embedded = self.word_embed(latents) + self.lvl_embed(scale_of[1:])
        x = torch.cat((self.start_tokens(prompt.condition), embedded), dim=1)
        visible = scale_of[:, None] >= scale_of if self.config.keeps_past else scale_of[:, None] == scale_of
        if keep is not None:
            visible = visible & keep | torch.eye(len(scale_of), dtype=torch.bool)  # who sees nothing would be NaN
        config = self.config
        table = relative_rope_table(config.schedule, config.head_dim, config.rope_theta, config.rope_size)
        rope = torch.cat([cos for cos, _ in table]), torch.cat([sin for _, sin in table])
        for block, modulation, text_kv in zip(self.layers, prompt.modulations, prompt.text_kv, strict=True):
            x, _ = block(x, modulation, rope, text_kv, prompt.attention_mask, mask=visible)
        return self.logits(x, prompt.condition)
