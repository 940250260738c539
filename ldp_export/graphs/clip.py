"""The `text_encoder` graph of Switti: token ids to the features of both CLIP text towers."""

from __future__ import annotations

import re

import torch

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.t5 import text_encoder_signature
from ldp_export.models.clip import ClipTowers


class ClipTowersGraph(Graph):
    """Token ids [R, T] of equally long prompts to features [R, T, Ct]; the attention is causal, so nothing is padded.

    The residual stream and the norms are float32 in every precision.
    """

    ISLANDS = re.compile(r".*layer_?norm")

    def __init__(self, towers: ClipTowers, precision: Precision = "float32") -> None:
        channels = towers.clip_l.sizes.width + towers.clip_bigg.sizes.width
        super().__init__(text_encoder_signature(channels), precision)
        self.towers = towers

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.towers(ids)
