"""The text stack of Qwen2-VL, as HART reads it: behind an instruction, padded to one length, padding's rows included.

Source: `Qwen2Model` of transformers, and the released code of HART. Parameter names are its checkpoints', without the
leading `model.`. Positions count all rows, those of the instruction and of padding too; padding is hidden from others.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from ldp_export.models.infinity import RmsNorm
from ldp_export.models.layers import Linear
from ldp_export.models.sizes import Qwen2Sizes


def _turned(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [R, L, H, c] whose pairs are channels e and e + c/2; angle [L, c/2]."""
    cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class _Attention(nn.Module):
    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        C, shared = sizes.width, sizes.kv_heads * sizes.head_dim
        self.head_dim, self.groups = sizes.head_dim, sizes.heads // sizes.kv_heads
        self.q_proj, self.k_proj, self.v_proj = Linear(C, C), Linear(C, shared), Linear(C, shared)
        self.o_proj = Linear(C, C, bias=False)

    def forward(self, x: torch.Tensor, angle: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _turned(q, angle).to(v.dtype), _turned(k, angle).to(v.dtype)
        k, v = (t.repeat_interleave(self.groups, dim=2).transpose(1, 2) for t in (k, v))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=visible)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.gate_proj = Linear(sizes.width, sizes.ffn, bias=False)
        self.up_proj = Linear(sizes.width, sizes.ffn, bias=False)
        self.down_proj = Linear(sizes.ffn, sizes.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(sizes.width, sizes.norm_eps)
        self.post_attention_layernorm = RmsNorm(sizes.width, sizes.norm_eps)
        self.self_attn, self.mlp = _Attention(sizes), _Mlp(sizes)

    def forward(self, x: torch.Tensor, angle: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angle, visible).float()
        return x + self.mlp(self.post_attention_layernorm(x)).float()


class Qwen2Text(nn.Module):
    """Token ids [R, T] of padded texts to features [R, T, C + 1], the position of each row in the last channel."""

    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.norm = RmsNorm(sizes.width, sizes.norm_eps)

    def forward(self, ids: torch.Tensor, before: torch.Tensor, padding: int) -> torch.Tensor:
        """Features of texts.

        Args:
            before: embedded instruction that stands before every text [n, C]; its rows are dropped.
            padding: id of the padding token.
        """
        real = ids != padding
        positions = real.long().cumsum(dim=1) - 1
        seen = F.pad(real, (before.shape[0], 0), value=True)
        x = torch.cat((before.float()[None].expand(ids.shape[0], -1, -1), self.embed_tokens(ids).float()), dim=1)
        at = torch.arange(x.shape[1], device=ids.device)
        visible = (at[:, None] >= at)[None, None] & seen[:, None, None]
        half = torch.arange(0, self.sizes.head_dim, 2, dtype=torch.float32, device=ids.device)
        angle = at.float()[:, None] / self.sizes.rope_theta ** (half / self.sizes.head_dim)
        for layer in cast(list[_Layer], list(self.layers)):
            x = layer(x, angle, visible)
        features = self.norm(x)[:, before.shape[0] :]
        return torch.cat((features, positions[..., None].float()), dim=-1)
