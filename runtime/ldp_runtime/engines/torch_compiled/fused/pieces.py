"""A transformer block in three pieces with two attentions between them.

The pieces compute what the exported `blocks` graph computes, with its float32 islands (residual stream, normalisations,
rotation, modulation). Only the attentions stand between them, so no piece knows how many positions the past has. Each
piece is compiled once for any number of rows and tokens, and PyTorch chooses the attention kernel anew for every shape.

Everything is sequence-major, [L, R, ...], as the KV cache is. One kernel then rotates queries and keys and writes them
where they are read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from ldp_runtime.engines.torch_compiled.fused.products import Matrix, activated, product

EPS = 1e-6


class BlockWeights(NamedTuple):
    """Weights of one transformer block, in order of use; everything but matrices is float32.

    Everything that does not depend on the call is already joined or converted.

    Attributes:
        modulation: AdaLN's own part [1, 6, C], in the order gate1, gate2, scale1, scale2, shift1, shift2.
        qkv, out: matrices of self-attention.
        temperature: factor of the cosine attention, one for each head [H, 1].
        norm, norm_bias: affine weights of the normalisation before attention to the text [C].
        query, text_out: matrices of attention to the text.
        up, down: matrices of the feed-forward.
    """

    modulation: torch.Tensor
    qkv: Matrix
    temperature: torch.Tensor
    out: Matrix
    norm: torch.Tensor
    norm_bias: torch.Tensor
    query: Matrix
    text_out: Matrix
    up: Matrix
    down: Matrix


def project(
    x: torch.Tensor,
    modulation: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    w: BlockWeights,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Query [L, R, H, c] of the residual stream x [L, R, C]; writes keys and values [L, R, H, c] where they belong.

    The modulation is [R, 6, C], the rotation (cos, sin) [L, c/2] each.
    """
    _, _, scale, _, shift, _ = (w.modulation + modulation).unbind(1)
    heads = w.temperature.shape[0]
    q, k, v = product(modulate(x, scale, shift), w.qkv).unflatten(-1, (3, heads, -1)).unbind(2)
    q = rotate(F.normalize(q.float(), dim=-1) * w.temperature, cos, sin).to(v.dtype)
    keys.copy_(rotate(F.normalize(k.float(), dim=-1), cos, sin).to(v.dtype))
    values.copy_(v)
    return q


def ask_text(
    x: torch.Tensor, attended: torch.Tensor, modulation: torch.Tensor, w: BlockWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual stream after self-attention [L, R, C], and the query to the text [L, R, H, c]."""
    gate = w.modulation[:, 0] + modulation[:, 0]
    x = x + gate * product(attended, w.out).float()
    normed = F.layer_norm(x, x.shape[-1:], w.norm, w.norm_bias, EPS)
    return x, product(normed, w.query).unflatten(-1, (w.temperature.shape[0], -1))


def feed_forward(x: torch.Tensor, attended: torch.Tensor, modulation: torch.Tensor, w: BlockWeights) -> torch.Tensor:
    """Residual stream [L, R, C] at the end of the block, from attention to the text [L, R, C]."""
    _, gate, _, scale, _, shift = (w.modulation + modulation).unbind(1)
    x = x + product(attended, w.text_out).float()
    hidden = activated(modulate(x, scale, shift), w.up)
    return x + gate * product(hidden, w.down).float()


def modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Applies AdaLN: x [L, R, C] normalised without affine weights, then scale and shift, each [R, C]."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Applies rotary embedding of interleaved pairs to x [L, R, H, c]; joins no halves, so it fuses into its reader."""
    cos, sin = (t[:, None, None, :, None] for t in (cos, sin))
    pairs = x.unflatten(-1, (-1, 2))
    sign = 2.0 * torch.arange(2, dtype=torch.float32, device=x.device) - 1
    return (pairs * cos + pairs.flip(-1) * (sign * sin)).flatten(-2)


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of q [L, R, H, c] to keys and values [R, H, S, c] -> [L, R, C]; copies nothing.

    The last axis of keys and values is contiguous.
    """
    out = F.scaled_dot_product_attention(q.permute(1, 2, 0, 3), keys, values, attn_mask=mask, scale=scale)
    # Kernels lay out their output like the query. Detached, it is no view of the query, and fits code compiled for any
    # kernel's output.
    return out.permute(2, 0, 1, 3).flatten(2).detach()
