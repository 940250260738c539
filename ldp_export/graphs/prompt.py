"""The `prompt` graph: everything of a prompt that no scale changes, computed once.

Hoisting it out of the scale loop takes the text projections (two matrix products a block and scale) with it.
Rows of one call have the same text length, so no mask is needed.
"""

from __future__ import annotations

import torch
from torch import nn

from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.infinity import InfinityConfig, InfinityTransformer


def prompt_signature(config: InfinityConfig) -> GraphSignature:
    R, T, C, H, c = Axis.ROWS, Axis.TEXT, config.width, config.heads, config.head_dim
    outputs = [
        TensorSpec("start", (R, C)),
        TensorSpec("modulation", (R, 6, C)),
        TensorSpec("head_modulation", (R, 2, C)),
    ]
    for i in range(config.depth):
        outputs += [TensorSpec(f"text_k_{i}", (R, H, T, c)), TensorSpec(f"text_v_{i}", (R, H, T, c))]
    return GraphSignature("prompt", (TensorSpec("features", (R, T, config.text_channels)),), tuple(outputs))


class PromptGraph(nn.Module):
    """Text features [R, T, Ct] to the start token with its scale embedding, AdaLN modulation, and text K/V."""

    def __init__(self, model: InfinityTransformer) -> None:
        super().__init__()
        self.model = model
        self.signature = prompt_signature(model.config)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        prompt = self.model.encode_prompt(features)
        outputs = [self.model.start_token(prompt)[:, 0], prompt.modulation, prompt.head_modulation]
        for block in self.model.layers:
            outputs += [t.transpose(1, 2) for t in block.ca.text_kv(prompt.text)]
        return tuple(outputs)


def level_offsets(model: InfinityTransformer) -> torch.Tensor:
    """What the `blocks` graph adds to every token of scale k >= 1: embedding bias plus scale embedding [levels, C]."""
    return (model.word_embed.bias + model.lvl_embed.weight).detach()
