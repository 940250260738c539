"""The `prompt` graph of class-conditional models: everything of a class that no scale changes, computed once.

That is the start token and the AdaLN modulation of every block, which depends on the class alone: the projections
behind it (a third of the weights of the larger models) leave the scale loop with it.
"""

from __future__ import annotations

import re

import torch

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.var import VarConfig, VarTransformer


def class_prompt_signature(config: VarConfig) -> GraphSignature:
    R, C = Axis.ROWS, config.width
    outputs = [TensorSpec("start", (R, C))]
    outputs += [TensorSpec(f"modulation_{i}", (R, 6, C)) for i in range(config.depth)]
    outputs.append(TensorSpec("head_modulation", (R, 2, C)))
    return GraphSignature("prompt", (TensorSpec("labels", (R,), "int64"),), tuple(outputs))


class ClassPromptGraph(Graph):
    """Class labels [R] to the start token with its scale embedding (its position is added with those of all tokens),
    and the modulation of each block and of the head. The AdaLN projections are in the graph's precision, as in the
    original's inference."""

    ISLANDS = re.compile(r"model\.((class_emb|pos_start|lvl_embed)\b|blocks\.\d+\.ada_gss$)")

    def __init__(self, model: VarTransformer, precision: Precision = "float32") -> None:
        super().__init__(class_prompt_signature(model.config), precision)
        self.model = model

    def uses(self, name: str) -> bool:
        return re.match(r"model\.(blocks\.\d+\.(attn|ffn)|head\.|word_embed|pos_1LC)", name) is None

    def forward(self, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model, condition = self.model, self.model.class_emb(labels)
        start = condition + model.pos_start[0] + model.lvl_embed.weight[0]
        return start, *model.modulations(condition), model.head_modulation(condition)


def class_placement(model: VarTransformer) -> dict[str, torch.Tensor]:
    """What `blocks` adds to tokens: embedding bias plus scale embedding [scales, C], and positions [tokens, C]."""
    offsets = (model.word_embed.bias.float() + model.lvl_embed.weight.float()).detach()
    return {"level_offsets": offsets, "positions": model.pos_1LC[0].detach().float()}
