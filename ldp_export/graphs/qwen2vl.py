"""The `text_encoder` graph of HART: token ids to the features of Qwen2-VL's text stack, and each row's position."""

from __future__ import annotations

import re

import torch
from torch import nn

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.t5 import text_encoder_signature
from ldp_export.models.qwen2vl import Qwen2Text


class Qwen2TextGraph(Graph):
    """Token ids [R, T] of padded texts to features [R, T, Ct + 1]; the instruction before them is part of the graph.

    The residual stream and the norms are float32 in every precision.
    """

    ISLANDS = re.compile(r".*norm\b")

    def __init__(self, text: Qwen2Text, before: torch.Tensor, padding: int, precision: Precision = "float32") -> None:
        super().__init__(text_encoder_signature(text.sizes.width + 1), precision)
        self.text, self.padding = text, padding
        self.before = nn.Parameter(before, requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.text(ids, self.before, self.padding)
