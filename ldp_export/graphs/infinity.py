"""Infinity's graphs: `prompt`, `blocks` and `decoder`.

The `prompt` graph computes once everything that depends on the prompt but not on the scale. The text projections (two
matrix products per block and scale) thus leave the scale loop. Rows of one call have the same text length, so the
`prompt` graph needs no mask. A large model's `prompt` graph is split into chunks like its blocks. The first chunk also
returns the projected text, from which the others compute the keys and values of their layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import nn

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.kv_cache import DynamicKeyValues, KeyValues, StaticKeyValues, attention, static_signature
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.infinity import FLOAT32_ISLANDS, InfinityBlock, InfinityTransformer, KeyValue, Rope, modulate
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.layers import linear
from ldp_export.models.sizes import InfinityConfig, InfinityVaeConfig


def infinity_prompt_signature(
    config: InfinityConfig, first: int = 0, last: int | None = None, precision: Precision = "float32"
) -> GraphSignature:
    """Inputs and outputs of the chunk of the `prompt` graph that serves blocks [first, last)."""
    last = config.depth if last is None else last
    R, T, C, H, c = Axis.ROWS, Axis.TEXT, config.width, config.heads, config.head_dim
    whole, text = (first, last) == (0, config.depth), TensorSpec("text", (R, T, C), precision)
    outputs = []
    if first == 0:
        outputs += [
            TensorSpec("start", (R, C)),
            TensorSpec("modulation", (R, 6, C)),
            TensorSpec("head_modulation", (R, 2, C)),
        ]
        outputs += [] if whole else [text]
    for i in range(first, last):
        outputs += [
            TensorSpec(f"text_k_{i}", (R, H, T, c), precision),
            TensorSpec(f"text_v_{i}", (R, H, T, c), precision),
        ]
    source = TensorSpec("features", (R, T, config.text_channels)) if first == 0 else text
    return GraphSignature("prompt" if whole else f"prompt_{first}_{last}", (source,), tuple(outputs))


class InfinityPromptGraph(Graph):
    """Text features [R, T, Ct] to the start token with its scale embedding, the AdaLN modulation, and text K/V."""

    ISLANDS = re.compile(rf"model\.{FLOAT32_ISLANDS.pattern}")

    def __init__(
        self,
        model: InfinityTransformer,
        first: int = 0,
        last: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(infinity_prompt_signature(model.config, first, last, precision), precision)
        self.model = model
        self.first, self.last = first, model.config.depth if last is None else last

    def uses(self, name: str) -> bool:
        block = re.match(r"model\.blocks\.(\d+)\.ca\.(mat_kv|v_bias)", name)
        if block:
            return self.first <= int(block[1]) < self.last
        return self.first == 0 and re.match(r"model\.(blocks|head\.|word_embed|cfg_uncond)", name) is None

    def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs, text = [], given
        if self.first == 0:
            prompt = self.model.encode_prompt(given)
            text = prompt.text
            outputs = [self.model.start_token(prompt)[:, 0], prompt.modulation, prompt.head_modulation]
            outputs += [text] if self.last < self.model.config.depth else []
        for block in self.model.layers[self.first : self.last]:
            outputs += [t.transpose(1, 2) for t in block.ca.text_kv(text)]
        return tuple(outputs)


def level_offsets(model: InfinityTransformer) -> torch.Tensor:
    """Offsets that `blocks` adds to every token of scale k >= 1: embedding bias plus scale embedding [levels, C]."""
    return (model.word_embed.bias.float() + model.lvl_embed.weight.float()).detach()


def infinity_blocks_signature(
    config: InfinityConfig, first: int, last: int, precision: Precision = "float32"
) -> GraphSignature:
    """Inputs and outputs of blocks [first, last), in the graph's order; keys and values have the graph's precision."""
    R, L, P, T = Axis.ROWS, Axis.TOKENS, Axis.PAST, Axis.TEXT
    H, c, C = config.heads, config.head_dim, config.width
    inputs = (
        [TensorSpec("latents", (R, L, config.bits)), TensorSpec("offset", (R, C))]
        if first == 0
        else [TensorSpec("hidden", (R, L, C))]
    )
    inputs += [TensorSpec("cos", (L, c // 2)), TensorSpec("sin", (L, c // 2)), TensorSpec("modulation", (R, 6, C))]
    if last == config.depth:
        inputs.append(TensorSpec("head_modulation", (R, 2, C)))
    inputs.append(TensorSpec("text_mask", (R, T), "bool"))
    has_head = last == config.depth
    outputs = [TensorSpec("logits", (R, L, 2 * config.bits)) if has_head else TensorSpec("hidden_out", (R, L, C))]
    for i in range(first, last):
        for kind in "kv":
            inputs.append(TensorSpec(f"text_{kind}_{i}", (R, H, T, c), precision))
        for kind in "kv":
            inputs.append(TensorSpec(f"past_{kind}_{i}", (P, R, H, c), precision))
            outputs.append(TensorSpec(f"new_{kind}_{i}", (L, R, H, c), precision))
    name = "blocks" if (first, last) == (0, config.depth) else f"blocks_{first}_{last}"
    return GraphSignature(name, tuple(inputs), tuple(outputs))


class InfinityBlocksGraph(Graph):
    """Blocks [first, last) of the transformer; `infinity_blocks_signature` is its calling convention.

    Keys and values are sequence-major, [tokens, rows, heads, head_dim]. A prefix of a preallocated cache is then one
    contiguous piece of memory and binds by pointer. The residual stream, normalisations, rotation, modulation and the
    head are float32 in every precision, as in the original's inference. Products and attention have the graph's
    precision.
    """

    ISLANDS = FLOAT32_ISLANDS

    def __init__(
        self,
        model: InfinityTransformer,
        first: int = 0,
        last: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        config = model.config
        last = config.depth if last is None else last
        super().__init__(infinity_blocks_signature(config, first, last, precision), precision)
        self.first, self.last = first, last
        self.eps = config.norm_eps
        self.memory: KeyValues = DynamicKeyValues()
        self.blocks = nn.ModuleList(model.layers[self.first : self.last])
        if self.first == 0:
            self.word_embed = model.word_embed
        if self.last == config.depth:
            self.head = model.head

    def with_static_cache(self, capacity: int) -> InfinityBlocksGraph:
        """Switches the graph to a static KV cache of `capacity` positions, and returns it."""
        self.memory = StaticKeyValues(capacity)
        self.signature = static_signature(self.signature, capacity)
        return self

    def with_fused_attention(self) -> InfinityBlocksGraph:
        """Switches the graph to self-attention that keeps no scores, and returns it; see `fused_attention`."""
        self.memory = DynamicKeyValues(fused=True)
        return self

    @property
    def opset(self) -> int:
        return self.memory.opset

    def uses(self, name: str) -> bool:
        # The `prompt` graph holds the projections to the text's K/V; `level_offsets` include the embedding's bias.
        return not name.endswith(("ca.mat_kv.weight", "ca.v_bias", "word_embed.bias"))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = dict(zip(self.signature.input_names, tensors, strict=True))
        if self.first == 0:
            # `offset` is the start token at scale 0, and else includes the embedding's bias (see `level_offsets`).
            x = linear(inputs["latents"], self.word_embed.weight).float() + inputs["offset"][:, None]
        else:
            x = inputs["hidden"]
        rope = (inputs["cos"], inputs["sin"])
        text_mask = inputs["text_mask"][:, None, None, :].expand(-1, 1, x.shape[1], -1)
        caches: list[torch.Tensor] = []
        for i, block in enumerate(self.layers, start=self.first):
            text = (inputs[f"text_k_{i}"], inputs[f"text_v_{i}"])
            attend = partial(self.memory.attend, inputs, i)
            x, kept = self._block(block, x, inputs["modulation"], rope, text, text_mask, attend)
            caches += kept
        if self.last_is_head:
            scale, shift = inputs["head_modulation"].split(1, dim=1)
            x = self.head(modulate(x, scale, shift, self.eps))
        return (x, *caches)

    @property
    def layers(self) -> list[InfinityBlock]:
        """The blocks as a typed list."""
        return cast(list[InfinityBlock], list(self.blocks))

    @property
    def last_is_head(self) -> bool:
        return hasattr(self, "head")

    def _block(
        self,
        block: InfinityBlock,
        x: torch.Tensor,
        modulation: torch.Tensor,
        rope: Rope,
        text: KeyValue,
        text_mask: torch.Tensor,
        attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, KeyValue]],
    ) -> tuple[torch.Tensor, KeyValue]:
        """Runs a block like `InfinityBlock.forward`, but with `attend`; also returns the K/V outputs of its layer."""
        gate1, gate2, scale1, scale2, shift1, shift2 = (block.ada_gss[0].float() + modulation).split(1, dim=1)
        q, k, v = block.sa.project(modulate(x, scale1, shift1, self.eps), None)  # [R, L, H, c]
        q, k = rotated(q, rope).to(v.dtype), rotated(k, rope).to(v.dtype)
        attended, kept = attend(q, k, v)
        x = x + gate1 * block.sa.proj(attended).float()
        q = block.ca.mat_q(block.ca_norm(x)).unflatten(-1, (block.ca.heads, -1))
        x = x + block.ca.proj(attention(q, *text, q.shape[-1] ** -0.5, text_mask)).float()
        x = x + gate2 * block.ffn(modulate(x, scale2, shift2, self.eps)).float()
        return x, kept


def rotated(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotates x [R, L, H, c] like `models.infinity.rotate`, but as a single ONNX operator."""
    rows, tokens, heads, _ = x.shape
    cos, sin = (t[None].expand(rows, tokens, -1) for t in rope)
    flat = torch.onnx.ops.rotary_embedding(x.flatten(2), cos, sin, interleaved=True, num_heads=heads)
    return flat.unflatten(-1, (heads, -1))


def infinity_decoder_signature(config: InfinityVaeConfig) -> GraphSignature:
    latent = TensorSpec("latent", (Axis.IMAGES, config.bits, Axis.HEIGHT, Axis.WIDTH))
    # The image's height and width are `stride` times the latent's, so they have no axes of their own.
    return GraphSignature(
        "decoder", (latent,), (TensorSpec("image", (Axis.IMAGES, 3, Axis.IMAGE_HEIGHT, Axis.IMAGE_WIDTH)),)
    )


class InfinityDecoderGraph(Graph):
    """Latent [B, d, H, W] to an image [B, 3, H*stride, W*stride] in [-1, 1]; normalisations are float32."""

    ISLANDS = re.compile(r".*\bnorm\w*\.(weight|bias)$")

    def __init__(self, vae: InfinityVae, precision: Precision = "float32") -> None:
        super().__init__(infinity_decoder_signature(vae.config), precision)
        self.decoder = vae.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder(latent).float().clamp(-1, 1)
