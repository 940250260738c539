"""The blocks as a GPU likes them: three fused pieces with two attentions between, keys and values written in place.

The pieces compute what `BlocksGraph` computes, with its float32 islands. Between them stand only the two attentions, so
that no piece knows how many positions the past has: the pieces are compiled once for any number of rows and tokens, and
PyTorch chooses the attention kernel anew for every shape. Everything is sequence-major, [L, R, ...], as the arena is:
one kernel then rotates queries and keys and writes them where they are read. What a block can know before an image is
drawn (joined biases, temperatures in float32) is computed when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from gpu_arena import ArenaCache, Arenas
from gpu_graphs import CudaGraphs
from gpu_models import Model
from gpu_products import Matrix, activated, matrix, product
from ldp_runtime.blocks import PromptRows
from ldp_runtime.errors import NonFiniteError
from torch.nn import functional as F

from ldp_export.models.infinity import Block, modulate
from ldp_export.models.layers import linear

EPS = 1e-6
#: Calls of at most this many tokens times rows replay CUDA graphs: an H100 computes them faster than they are launched.
GRAPHED_ROW_TOKENS = 2560


class BlockWeights(NamedTuple):
    """Of one block, in the order of use; what is no matrix is float32."""

    modulation: torch.Tensor  # [1, 6, C]
    qkv: Matrix
    temperature: torch.Tensor  # [H, 1]
    out: Matrix
    norm: torch.Tensor
    norm_bias: torch.Tensor
    query: Matrix
    text_out: Matrix
    up: Matrix
    down: Matrix


def block_weights(block: Block, fp8: bool = False) -> BlockWeights:
    sa, ca, ffn = block.sa, block.ca, block.ffn
    weights = BlockWeights(
        modulation=block.ada_gss[0].detach().float(),
        qkv=matrix(sa.mat_qkv.weight, torch.cat((sa.q_bias, torch.zeros_like(sa.q_bias), sa.v_bias)), fp8),
        temperature=sa.scale_mul_1H11.detach().float().clamp(max=sa.MAX_LOG_SCALE).exp().view(-1, 1),
        out=matrix(sa.proj.weight, sa.proj.bias, fp8),
        norm=block.ca_norm.weight.detach().float(),
        norm_bias=block.ca_norm.bias.detach().float(),
        query=matrix(ca.mat_q.weight, ca.mat_q.bias, fp8),
        text_out=matrix(ca.proj.weight, ca.proj.bias, fp8),
        up=matrix(ffn.fc1.weight, ffn.fc1.bias, fp8),
        down=matrix(ffn.fc2.weight, ffn.fc2.bias, fp8),
    )
    for part in weights:
        for tensor in part if isinstance(part, Matrix) else (part,):
            torch._dynamo.mark_static(tensor)  # rows and tokens vary; widths that varied too would cost speed
    return weights


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`models.infinity.rotate` without joining two halves, so that it fuses into what reads it; x [L, R, H, c]."""
    cos, sin = (t[:, None, None, :, None] for t in (cos, sin))
    pairs = x.unflatten(-1, (-1, 2))
    sign = 2.0 * torch.arange(2, device=x.device) - 1
    return (pairs * cos + pairs.flip(-1) * (sign * sin)).flatten(-2)


def project(
    x: torch.Tensor,
    modulation: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    w: BlockWeights,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """x [L, R, C] to the query [L, R, H, c]; writes keys and values [L, R, H, c] where they belong."""
    _, _, scale, _, shift, _ = (w.modulation + modulation).unbind(1)
    heads = w.temperature.shape[0]
    q, k, v = product(modulate(x, scale, shift, EPS), w.qkv).unflatten(-1, (3, heads, -1)).unbind(2)
    q = rotate(F.normalize(q.float(), dim=-1) * w.temperature, cos, sin).to(v.dtype)
    keys.copy_(rotate(F.normalize(k.float(), dim=-1), cos, sin).to(v.dtype))
    values.copy_(v)
    return q


def ask_text(
    x: torch.Tensor, attended: torch.Tensor, modulation: torch.Tensor, w: BlockWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """After self-attention [L, R, C]: the stream, and the query to the text [L, R, H, c]."""
    gate = w.modulation[:, 0] + modulation[:, 0]
    x = x + gate * product(attended, w.out).float()
    normed = F.layer_norm(x, x.shape[-1:], w.norm, w.norm_bias, EPS)
    return x, product(normed, w.query).unflatten(-1, (w.temperature.shape[0], -1))


def feed_forward(x: torch.Tensor, attended: torch.Tensor, modulation: torch.Tensor, w: BlockWeights) -> torch.Tensor:
    """After attention to the text [L, R, C]: the stream at the end of the block."""
    _, gate, _, scale, _, shift = (w.modulation + modulation).unbind(1)
    x = x + product(attended, w.text_out).float()
    hidden = activated(modulate(x, scale, shift, EPS), w.up)
    return x + gate * product(hidden, w.down).float()


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """q [L, R, H, c] to keys and values [R, H, S, c] whose last axis is contiguous -> [L, R, C]; no mask, no copy."""
    out = F.scaled_dot_product_attention(q.permute(1, 2, 0, 3), keys, values, scale=scale)
    # Kernels lay their output out as the query. Detached, it is no view of it, and fits code compiled for any kernel's.
    return out.permute(2, 0, 1, 3).flatten(2).detach()


def _compiled(piece: Callable[..., Any]) -> Callable[..., Any]:
    """For any number of rows and tokens; one of either is a case of its own, in every width and precision.

    Arenas keep positions aligned, which the compiler cannot see for itself.
    """
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(piece, dynamic=True, fullgraph=True, options={"assume_aligned_inputs": True})


class GpuBlocks:
    """All blocks and the head, as the scale loop calls them (`ldp_runtime.blocks.Blocks`).

    Rows of a call have one text length: there is no text mask. Whether logits are finite is asked once an image, by
    `check_finite`: asking after every scale would keep the host from launching the next one ahead.

    Args:
        compiled: the pieces by torch.compile; False runs them as they are.
        graphs: replay CUDA graphs of small calls.
        fp8: the blocks' matrix products in 8-bit floats.
    """

    def __init__(self, model: Model, *, compiled: bool, graphs: bool, fp8: bool = False) -> None:
        config, schedule = model.spec.transformer, model.schedule
        assert config.norm_eps == EPS
        self.config, self.device = config, model.device
        self.embedding, self.head = model.transformer.word_embed.weight, model.transformer.head
        self.weights = [block_weights(block, fp8) for block in model.transformer.layers]
        self.arenas = Arenas(config, schedule.offsets[-1], schedule.tokens[-1], model.device, self.embedding.dtype)
        self.graphs = CudaGraphs() if graphs else None
        pieces = (project, ask_text, feed_forward)
        self.project, self.ask_text, self.feed_forward = map(_compiled, pieces) if compiled else pieces
        self._extremes: list[torch.Tensor] = []
        if compiled:
            for rows in (2, 1):
                self._compile_for(schedule.tokens[-1], rows)

    @torch.no_grad()
    def _compile_for(self, tokens: int, rows: int) -> None:
        """One block at the largest shape: the compiler tunes its kernels for the first that it sees."""
        w, C, H, c = self.weights[0], self.config.width, self.config.heads, self.config.head_dim
        x, modulation = (torch.randn(*shape, C, device=self.device) for shape in ((tokens, rows), (rows, 6)))
        cos, sin = (torch.ones(tokens, c // 2, device=self.device) for _ in range(2))
        room = (torch.empty(tokens + 1, rows, H, c, device=self.device, dtype=self.embedding.dtype) for _ in "kv")
        keys, values = (flat[1:].detach() for flat in room)
        q = self.project(x, modulation, cos, sin, w, keys, values)
        x, q = self.ask_text(x, q.flatten(2).detach(), modulation, w)
        self.feed_forward(x, q.flatten(2).detach(), modulation, w)

    def new_cache(self, capacity: int, rows: int) -> ArenaCache:
        return self.arenas.cache(rows)

    @torch.no_grad()
    def run(
        self,
        latents: torch.Tensor,  # [R, L, bits]
        offset: torch.Tensor,  # [R, C]
        places: Mapping[str, torch.Tensor],
        prompt: PromptRows,
        cache: ArenaCache,
        *,
        scale: int,
        remember: bool = True,
    ) -> torch.Tensor:
        """One scale: logits [R, L, 2 * bits]."""
        R, L, _ = latents.shape
        first, end = cache.length, cache.length + L
        assert end <= cache.arena.capacity or not remember
        tensors = prompt.inputs
        text = [tensors[f"text_{kind}_{i}"] for i in range(self.config.depth) for kind in "kv"]
        given = [
            latents,
            offset,
            places["cos"],
            places["sin"],
            tensors["modulation"],
            tensors["head_modulation"],
            *text,
        ]

        def call(*copied: torch.Tensor) -> torch.Tensor:
            return self._call(cache, first, end, *copied)

        if self.graphs is not None and R * L <= GRAPHED_ROW_TOKENS:
            logits = self.graphs.run(call, given, cache.arena.positions(0, first, end))[0].clone()
        else:
            logits = call(*given)
        cache.length = end
        self._extremes.append(torch.stack(torch.aminmax(logits)))
        return logits

    def _call(
        self,
        cache: ArenaCache,
        first: int,
        end: int,
        latents: torch.Tensor,
        offset: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        modulation: torch.Tensor,
        head_modulation: torch.Tensor,
        *text: torch.Tensor,
    ) -> torch.Tensor:
        x = linear(latents.transpose(0, 1), self.embedding).float() + offset  # [L, R, C]
        for i, w in enumerate(self.weights):
            q = self.project(x, modulation, cos, sin, w, *cache.arena.positions(i, first, end))
            seen = (t.permute(1, 2, 0, 3) for t in cache.arena.positions(i, 0, end))
            x, q = self.ask_text(x, attend(q, *seen, 1.0), modulation, w)
            attended = attend(q, text[2 * i], text[2 * i + 1], self.config.head_dim**-0.5)
            x = self.feed_forward(x, attended, modulation, w)
        scale, shift = head_modulation.unbind(1)
        return self.head(modulate(x, scale, shift, EPS)).transpose(0, 1).contiguous()

    def check_finite(self) -> None:
        """Raises NonFiniteError where logits of this image held NaN or infinity."""
        extremes, self._extremes = self._extremes, []
        if not bool(torch.stack(extremes).isfinite().all()):
            raise NonFiniteError("the blocks gave NaN or infinity", hint="random weights of this shape overflow")

    def clear(self) -> None:
        """Gives back arenas and graphs."""
        self.arenas.clear()
        if self.graphs is not None:
            self.graphs.clear()
