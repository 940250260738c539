"""Switti's graphs: `prompt`, `blocks` and `decoder`, which is VAR's.

The `prompt` graph computes once what depends on the prompt but not on the scale. That is the start token, the AdaLN
modulation of every block, and each layer's keys and values of the text. A model whose scales see themselves alone has
no KV cache: its `blocks` neither read nor return keys and values.
"""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import nn

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.infinity import rotated
from ldp_export.graphs.kv_cache import attention
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.infinity import KeyValue, modulate
from ldp_export.models.layers import linear
from ldp_export.models.sizes import SwittiConfig
from ldp_export.models.switti import FLOAT32_ISLANDS, SwittiBlock, SwittiTransformer, centred


def switti_prompt_signature(
    config: SwittiConfig, first: int = 0, last: int | None = None, precision: Precision = "float32"
) -> GraphSignature:
    """Inputs and outputs of the chunk of the `prompt` graph that serves blocks [first, last)."""
    last = config.depth if last is None else last
    R, T, C, H, c = Axis.ROWS, Axis.TEXT, config.width, config.heads, config.head_dim
    inputs = (TensorSpec("features", (R, T, config.text_channels)), TensorSpec("pooled", (R, config.pooled_channels)))
    outputs = [TensorSpec("start", (R, C)), TensorSpec("head_modulation", (R, 2, C))] if first == 0 else []
    for i in range(first, last):
        outputs.append(TensorSpec(f"modulation_{i}", (R, 6, C)))
        outputs += [TensorSpec(f"text_{kind}_{i}", (R, H, T, c), precision) for kind in "kv"]
    name = "prompt" if (first, last) == (0, config.depth) else f"prompt_{first}_{last}"
    return GraphSignature(name, inputs, tuple(outputs))


class SwittiPromptGraph(Graph):
    """Text features [R, T, Ct] and pooled vectors [R, P] to what the blocks [first, last) read of the prompt.

    The crop's condition is a constant: it is computed in float32 when the graph is made.
    """

    ISLANDS = re.compile(rf"crop$|model\.(?:{FLOAT32_ISLANDS.pattern})")

    def __init__(
        self, model: SwittiTransformer, first: int = 0, last: int | None = None, precision: Precision = "float32"
    ) -> None:
        super().__init__(switti_prompt_signature(model.config, first, last, precision), precision)
        self.model = model
        self.first, self.last = first, model.config.depth if last is None else last
        self.crop = nn.Parameter(model.crop_condition().detach(), requires_grad=False)

    def uses(self, name: str) -> bool:
        block = re.match(r"model\.blocks\.(\d+)\.(cross_attn\.to_kv|attention_y_norm|ada_lin|crop_cond_scales)", name)
        if block:
            return self.first <= int(block[1]) < self.last
        if name.startswith("model.text_pooler") or name == "crop":
            return True
        return self.first == 0 and re.match(r"model\.(pos_start|lvl_embed|head_nm)", name) is not None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features, pooled = tensors
        model, condition = self.model, self.model.text_pooler(pooled).float()
        outputs: list[torch.Tensor] = []
        if self.first == 0:
            outputs = [model.start_tokens(condition)[:, 0], model.head_modulation(condition)]
        for block in model.layers[self.first : self.last]:
            outputs.append(block.modulation(condition, self.crop))
            outputs += [t.transpose(1, 2) for t in block.text_kv(features)]
        return tuple(outputs)


def level_offsets(model: SwittiTransformer) -> torch.Tensor:
    """Offsets that `blocks` adds to every token of scale k >= 1: embedding bias plus scale embedding [scales, C]."""
    return (model.word_embed.bias.float() + model.lvl_embed.weight.float()).detach()


def switti_blocks_signature(
    config: SwittiConfig, first: int, last: int, precision: Precision = "float32"
) -> GraphSignature:
    """Inputs and outputs of blocks [first, last), in the graph's order; keys and values have the graph's precision."""
    R, L, P, T = Axis.ROWS, Axis.TOKENS, Axis.PAST, Axis.TEXT
    H, c, C = config.heads, config.head_dim, config.width
    inputs = (
        [TensorSpec("latents", (R, L, config.channels)), TensorSpec("offset", (R, C))]
        if first == 0
        else [TensorSpec("hidden", (R, L, C))]
    )
    inputs += [TensorSpec("cos", (L, c // 2)), TensorSpec("sin", (L, c // 2)), TensorSpec("text_mask", (R, T), "bool")]
    has_head = last == config.depth
    if has_head:
        inputs.append(TensorSpec("head_modulation", (R, 2, C)))
    outputs = [TensorSpec("logits", (R, L, config.codes)) if has_head else TensorSpec("hidden_out", (R, L, C))]
    for i in range(first, last):
        inputs.append(TensorSpec(f"modulation_{i}", (R, 6, C)))
        inputs += [TensorSpec(f"text_{kind}_{i}", (R, H, T, c), precision) for kind in "kv"]
        if config.keeps_past:
            inputs += [TensorSpec(f"past_{kind}_{i}", (P, R, H, c), precision) for kind in "kv"]
            outputs += [TensorSpec(f"new_{kind}_{i}", (L, R, H, c), precision) for kind in "kv"]
    name = "blocks" if (first, last) == (0, config.depth) else f"blocks_{first}_{last}"
    return GraphSignature(name, tuple(inputs), tuple(outputs))


class SwittiBlocksGraph(Graph):
    """Blocks [first, last) of the transformer; `switti_blocks_signature` is its calling convention.

    The residual stream, normalisations, rotation, modulation and the head are float32 in every precision.
    """

    ISLANDS = FLOAT32_ISLANDS

    def __init__(
        self, model: SwittiTransformer, first: int = 0, last: int | None = None, precision: Precision = "float32"
    ) -> None:
        config = model.config
        last = config.depth if last is None else last
        super().__init__(switti_blocks_signature(config, first, last, precision), precision)
        self.first, self.last, self.eps, self.keeps_past = first, last, config.norm_eps, config.keeps_past
        self.blocks = nn.ModuleList(model.layers[first:last])
        if first == 0:
            self.word_embed = model.word_embed
        if last == config.depth:
            self.head = model.head

    def uses(self, name: str) -> bool:
        # The `prompt` graph holds AdaLN and the projections of the text; `level_offsets` include the embedding's bias.
        elsewhere = r"ada_lin|crop_cond_scales|attention_y_norm|cross_attn\.to_kv|word_embed\.bias"
        return re.search(elsewhere, name) is None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = dict(zip(self.signature.input_names, tensors, strict=True))
        if self.first == 0:
            # `offset` is the start token at scale 0, and else includes the embedding's bias (see `level_offsets`).
            x = linear(inputs["latents"], self.word_embed.weight).float() + inputs["offset"][:, None]
        else:
            x = inputs["hidden"]
        mask = inputs["text_mask"][:, None, None, :].expand(-1, 1, x.shape[1], -1)
        caches: list[torch.Tensor] = []
        for i, block in enumerate(cast(list[SwittiBlock], list(self.blocks)), start=self.first):
            x, kept = self._block(block, x, i, inputs, mask)
            caches += kept
        if hasattr(self, "head"):
            scale, shift = inputs["head_modulation"].split(1, dim=1)
            x = self.head(modulate(x, scale, shift, self.eps))
        return (x, *caches)

    def _block(
        self, block: SwittiBlock, x: torch.Tensor, i: int, inputs: dict[str, torch.Tensor], mask: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs a block like `SwittiBlock.forward`, but returns only the new K/V, if any are kept."""
        gate1, gate2, scale1, scale2, shift1, shift2 = inputs[f"modulation_{i}"].split(1, dim=1)
        attended, kept = self._attend(block, block.self_attention_norm1(x) * (1 + scale1) + shift1, i, inputs)
        x = x + gate1 * block.self_attention_norm2(block.attn.proj(attended))
        text = inputs[f"text_k_{i}"], inputs[f"text_v_{i}"]
        q = centred(block.cross_attn.to_q(block.cross_attention_norm1(x)), self.eps).to(text[0].dtype)
        q = q.unflatten(-1, (block.cross_attn.heads, -1))
        crossed = block.cross_attn.proj(attention(q, *text, q.shape[-1] ** -0.5, mask))
        x = x + block.cross_attention_norm2(crossed)
        return x + gate2 * block.ffn_norm2(block.ffn(block.ffn_norm1(x) * (1 + scale2) + shift2)), kept

    def _attend(
        self, block: SwittiBlock, x: torch.Tensor, i: int, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Self-attention [R, L, C], and the new keys and values [L, R, H, c] if later scales see them."""
        rope = inputs["cos"], inputs["sin"]
        q, k, v = block.attn.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (block.attn.heads, -1)) for t in (centred(q, self.eps), centred(k, self.eps), v))
        q, k = rotated(q, rope).to(v.dtype), rotated(k, rope).to(v.dtype)
        keys: KeyValue = (k.transpose(1, 2), v.transpose(1, 2))
        kept: list[torch.Tensor] = []
        if self.keeps_past:
            kept = [k.transpose(0, 1), v.transpose(0, 1)]
            past = (inputs[f"past_k_{i}"], inputs[f"past_v_{i}"])
            all_k, all_v = (torch.cat((before, new)) for before, new in zip(past, kept, strict=True))
            keys = (all_k.permute(1, 2, 0, 3), all_v.permute(1, 2, 0, 3))
        return attention(q, *keys, q.shape[-1] ** -0.5), kept
