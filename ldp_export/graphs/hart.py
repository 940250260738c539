"""HART's graphs: `prompt`, `blocks`, `residual`, and `decoder`, which is VAR's.

The `prompt` graph runs the text's rows through all layers. It returns their keys and values but for those of the last
row. That row is the start token, which `blocks` computes at scale 0 like any other. So the prefix is no scale of its
own, and caches hold the image's tokens alone.
"""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import nn

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.kv_cache import attention
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.hart import FLOAT32_ISLANDS, HartBlock, HartTransformer, angles
from ldp_export.models.infinity import KeyValue
from ldp_export.models.layers import linear
from ldp_export.models.sizes import HartConfig

_OF_MODEL = re.compile(rf"(level|text_frequencies)$|model\.(?:{FLOAT32_ISLANDS.pattern})")


def hart_prompt_signature(
    config: HartConfig, first: int = 0, last: int | None = None, precision: Precision = "float32"
) -> GraphSignature:
    """Inputs and outputs of the chunk of the `prompt` graph that serves blocks [first, last).

    Text features hold the position of each row in their last channel.
    """
    last = config.depth if last is None else last
    R, T, C, H, c = Axis.ROWS, config.text_tokens, config.width, config.heads, config.head_dim
    inputs = [TensorSpec("features", (R, T, config.text_channels + 1))]
    inputs += [] if first == 0 else [TensorSpec(f"text_hidden_{first}", (R, T, C))]
    outputs = []
    if first == 0:
        outputs = [
            TensorSpec("start", (R, C)),
            TensorSpec("origin", (R,)),
            TensorSpec("head_modulation", (R, 2, C)),
        ]
    for i in range(first, last):
        outputs += [TensorSpec(f"text_{kind}_{i}", (R, H, T - 1, c), precision) for kind in "kv"]
    outputs += [] if last == config.depth else [TensorSpec(f"text_hidden_{last}", (R, T, C))]
    name = "prompt" if (first, last) == (0, config.depth) else f"prompt_{first}_{last}"
    return GraphSignature(name, tuple(inputs), tuple(outputs))


class _Prompt(Graph):
    """Chunk of the `prompt` graph: its weights, and the layers that it serves."""

    ISLANDS = _OF_MODEL

    def __init__(
        self, model: HartTransformer, first: int = 0, last: int | None = None, precision: Precision = "float32"
    ) -> None:
        super().__init__(hart_prompt_signature(model.config, first, last, precision), precision)
        self.model = model
        self.first, self.last = first, model.config.depth if last is None else last
        self.level = nn.Parameter(level_offsets(model)[0], requires_grad=False)
        self.text_frequencies = nn.Parameter(model.text_frequencies.clone(), requires_grad=False)

    def uses(self, name: str) -> bool:
        block = re.match(r"model\.blocks\.(\d+)\.", name)
        if block:
            return self.first <= int(block[1]) < self.last
        first = re.match(r"(level$|model\.(context_norm|context_embed|head_nm\.ada_lin))", name)
        return name == "text_frequencies" or (self.first == 0 and first is not None)

    def _blocks(self, features: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys and values of the chunk's layers, and what is behind them if others follow."""
        model, config = self.model, self.model.config
        angle = angles(features[..., -1:].expand(-1, -1, 2), self.text_frequencies)
        outputs: list[torch.Tensor] = []
        for i, block in enumerate(model.layers[self.first : self.last], start=self.first):
            if i + 1 < config.depth:
                x, (k, v) = block(x, angle)
            else:  # nobody reads what is behind the last layer
                _, k, v = block.attn.project(block.ln_wo_grad(x), angle)
            outputs += [t[:, :-1].transpose(1, 2) for t in (k, v)]
        return (*outputs, x) if self.last < config.depth else tuple(outputs)


class HartPromptGraph(_Prompt):
    """Text features [R, T, Ct + 1] to the start token, its position, the head's modulation, and keys and values."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        context = self.model.context(features[..., :-1])
        x = context + self.level
        return (x[:, -1], features[:, -1, -1], self.model.head_modulation(context), *self._blocks(features, x))


class HartLaterPromptGraph(_Prompt):
    """Chunk of the `prompt` graph behind the first one, which continues with that one's hidden rows."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._blocks(*tensors)


def hart_prompt_graph(model: HartTransformer, first: int, last: int, precision: Precision = "float32") -> Graph:
    """Chunk of the `prompt` graph that serves blocks [first, last)."""
    return (HartPromptGraph if first == 0 else HartLaterPromptGraph)(model, first, last, precision)


def level_offsets(model: HartTransformer) -> torch.Tensor:
    """Offsets of each scale [scales, C]: what `blocks` adds to a token, and at scale 0 what the text's rows get."""
    levels = model.levels().detach()
    bias = model.word_embed.bias.detach().float()
    return torch.cat((levels[:1], levels[1:] + bias))


def hart_blocks_signature(
    config: HartConfig, first: int, last: int, precision: Precision = "float32"
) -> GraphSignature:
    """Inputs and outputs of blocks [first, last), in the graph's order; keys and values have the graph's precision."""
    R, L, P, T = Axis.ROWS, Axis.TOKENS, Axis.PAST, config.text_tokens
    H, c, C = config.heads, config.head_dim, config.width
    inputs = (
        [TensorSpec("latents", (R, L, config.channels)), TensorSpec("offset", (R, C))]
        if first == 0
        else [TensorSpec("hidden", (R, L, C))]
    )
    inputs += [TensorSpec("places", (L, 2)), TensorSpec("frequencies", (L, c // 2)), TensorSpec("origin", (R,))]
    has_head = last == config.depth
    outputs = [TensorSpec("hidden_out", (R, L, C))]
    if has_head:
        inputs.append(TensorSpec("head_modulation", (R, 2, C)))
        outputs = [TensorSpec("logits", (R, L, config.codes)), *outputs]
    for i in range(first, last):
        inputs += [TensorSpec(f"text_{kind}_{i}", (R, H, T - 1, c), precision) for kind in "kv"]
        inputs += [TensorSpec(f"past_{kind}_{i}", (P, R, H, c), precision) for kind in "kv"]
        outputs += [TensorSpec(f"new_{kind}_{i}", (L, R, H, c), precision) for kind in "kv"]
    name = "blocks" if (first, last) == (0, config.depth) else f"blocks_{first}_{last}"
    return GraphSignature(name, tuple(inputs), tuple(outputs))


class HartBlocksGraph(Graph):
    """Blocks [first, last) of the transformer; `hart_blocks_signature` is its calling convention.

    The residual stream, normalisations, rotation and the head are float32 in every precision. Behind the last block the
    graph also returns the tokens themselves, of which the residual is made.
    """

    ISLANDS = FLOAT32_ISLANDS

    def __init__(
        self, model: HartTransformer, first: int = 0, last: int | None = None, precision: Precision = "float32"
    ) -> None:
        config = model.config
        last = config.depth if last is None else last
        super().__init__(hart_blocks_signature(config, first, last, precision), precision)
        self.first, self.last = first, last
        self.blocks = nn.ModuleList(model.layers[first:last])
        if first == 0:
            self.word_embed = model.word_embed
        if last == config.depth:
            self.head, self.head_norm = model.head, model.head_nm.ln_wo_grad

    def stays_float32(self, name: str) -> bool:
        return name.startswith("head_norm.") or super().stays_float32(name)

    def uses(self, name: str) -> bool:
        return name != "word_embed.bias"  # `level_offsets` include it

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = dict(zip(self.signature.input_names, tensors, strict=True))
        if self.first == 0:
            # `offset` is the start token at scale 0, and else includes the embedding's bias (see `level_offsets`).
            x = linear(inputs["latents"], self.word_embed.weight).float() + inputs["offset"][:, None]
        else:
            x = inputs["hidden"]
        angle = angles(inputs["places"] + inputs["origin"][:, None, None], inputs["frequencies"])
        caches: list[torch.Tensor] = []
        for i, block in enumerate(cast(list[HartBlock], list(self.blocks)), start=self.first):
            text = inputs[f"text_k_{i}"], inputs[f"text_v_{i}"]
            past = inputs[f"past_k_{i}"], inputs[f"past_v_{i}"]
            x, kept = _run(block, x, angle, text, past)
            caches += kept
        if not hasattr(self, "head"):
            return (x, *caches)
        scale, shift = inputs["head_modulation"].split(1, dim=1)
        return (self.head(self.head_norm(x) * (1 + scale) + shift), x, *caches)


def _run(
    block: HartBlock, x: torch.Tensor, angle: torch.Tensor, text: KeyValue, past: KeyValue
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Runs a block like `HartBlock.forward`, but returns only the new keys and values [L, R, H, c].

    Args:
        text: keys and values of the text [R, H, T - 1, c].
        past: keys and values of earlier tokens [P, R, H, c].
    """
    q, k, v = block.attn.project(block.ln_wo_grad(x), angle)  # [R, L, H, c]
    new = [k.transpose(0, 1), v.transpose(0, 1)]
    joined = (torch.cat((before, own)).permute(1, 2, 0, 3) for before, own in zip(past, new, strict=True))
    keys, values = (torch.cat((prefix, own), dim=2) for prefix, own in zip(text, joined, strict=True))
    x = x + block.attn.proj(attention(q, keys, values, block.attn.scale)).float()
    return x + block.ffn(block.ln_wo_grad(x)).float(), new


def hart_residual_signature(config: HartConfig) -> GraphSignature:
    """Inputs and outputs of the graph of the last scale's residual; see `HartTransformer.residual`."""
    R, L, c = Axis.ROWS, Axis.TOKENS, config.channels
    inputs = (
        TensorSpec("hidden", (R, L, config.width)),
        TensorSpec("codes", (L, c)),
        TensorSpec("noise", (L, config.residual_steps, c)),
        TensorSpec("weights", (R,)),
    )
    return GraphSignature("residual", inputs, (TensorSpec("residual", (L, c)),))


class HartResidualGraph(Graph):
    """Tokens behind the last block [R, L, C] and drawn codes [L, channels] to a residual [L, channels], in all steps.

    Rows are one image's branches, the conditional one first. It is float32 in every precision: its first step
    multiplies rounding by twenty thousand.
    """

    ISLANDS = re.compile("")

    def __init__(self, model: HartTransformer, precision: Precision = "float32") -> None:
        super().__init__(hart_residual_signature(model.config), precision)
        self.model = model
        self.times = nn.Parameter(model.step_waves(), requires_grad=False)

    def uses(self, name: str) -> bool:
        return name == "times" or re.match(r"model\.(word_embed|decoder_norm|diffloss)\.", name) is not None

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        hidden, codes, noise, weights = tensors
        return self.model.residual(self.model.residual_condition(hidden, codes[None]), noise, weights, self.times)
