"""The `prompt` graph: everything of a prompt that no scale changes, computed once.

Hoisting it out of the scale loop takes the text projections (two matrix products a block and scale) with it.
Rows of one call have the same text length, so no mask is needed. A large model's is split like its blocks: the first
chunk also gives the projected text, from which the others compute the keys and values of their layers.
"""

from __future__ import annotations

import re

import torch

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.infinity import FLOAT32_ISLANDS, InfinityConfig, InfinityTransformer


def prompt_signature(
    config: InfinityConfig, first: int = 0, last: int | None = None, precision: Precision = "float32"
) -> GraphSignature:
    """Inputs and outputs of the chunk that serves blocks [first, last)."""
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
    given = TensorSpec("features", (R, T, config.text_channels)) if first == 0 else text
    return GraphSignature("prompt" if whole else f"prompt_{first}_{last}", (given,), tuple(outputs))


class PromptGraph(Graph):
    """Text features [R, T, Ct] to the start token with its scale embedding, AdaLN modulation, and text K/V."""

    ISLANDS = re.compile(rf"model\.{FLOAT32_ISLANDS.pattern}")

    def __init__(
        self,
        model: InfinityTransformer,
        first: int = 0,
        last: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(prompt_signature(model.config, first, last, precision), precision)
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
    """What the `blocks` graph adds to every token of scale k >= 1: embedding bias plus scale embedding [levels, C]."""
    return (model.word_embed.bias.float() + model.lvl_embed.weight.float()).detach()
