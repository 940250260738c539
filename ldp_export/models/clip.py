"""CLIP's text towers, as Switti reads them: all tokens after the final norm, without any projection.

Source: `CLIPTextModel` of transformers. Parameter names are its checkpoints'. The attention is causal, so a token does
not depend on those behind it: texts need no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from ldp_export.models.infinity import attend
from ldp_export.models.layers import LayerNorm, Linear
from ldp_export.models.sizes import ClipSizes


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """Approximation of GELU that the first CLIP models were trained with: x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class _Embeddings(nn.Module):
    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embedding = nn.Embedding(sizes.positions, sizes.width)


class _Attention(nn.Module):
    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.k_proj, self.v_proj = Linear(sizes.width, sizes.width), Linear(sizes.width, sizes.width)
        self.q_proj, self.out_proj = Linear(sizes.width, sizes.width), Linear(sizes.width, sizes.width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, q.shape[-1] ** -0.5, mask))


class _Mlp(nn.Module):
    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[sizes.activation]
        self.fc1, self.fc2 = Linear(sizes.width, sizes.ffn), Linear(sizes.ffn, sizes.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class _Layer(nn.Module):
    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(sizes), _Mlp(sizes)
        self.layer_norm1 = LayerNorm(sizes.width, eps=sizes.norm_eps)
        self.layer_norm2 = LayerNorm(sizes.width, eps=sizes.norm_eps)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask).float()
        return x + self.mlp(self.layer_norm2(x)).float()


class _Encoder(nn.Module):
    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))


class _TextModel(nn.Module):
    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.embeddings, self.encoder = _Embeddings(sizes), _Encoder(sizes)
        self.final_layer_norm = LayerNorm(sizes.width, eps=sizes.norm_eps)


class ClipTextTower(nn.Module):
    """Token ids [R, T] of equally long texts to features [R, T, C]."""

    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text_model = _TextModel(sizes)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        model, at = self.text_model, torch.arange(ids.shape[1], device=ids.device)
        embeddings = model.embeddings
        x = embeddings.token_embedding(ids).float() + embeddings.position_embedding(at).float()
        causal = at[:, None] >= at
        for layer in cast(list[_Layer], list(model.encoder.layers)):
            x = layer(x, causal)
        return model.final_layer_norm(x)


class ClipTowers(nn.Module):
    """Both towers of Switti: features of each token side by side, the smaller tower's first."""

    def __init__(self, clip_l: ClipSizes, clip_bigg: ClipSizes) -> None:
        super().__init__()
        self.clip_l, self.clip_bigg = ClipTextTower(clip_l), ClipTextTower(clip_bigg)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.clip_l(ids), self.clip_bigg(ids)), dim=-1)
