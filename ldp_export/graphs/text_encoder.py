"""The `text_encoder` graph: token ids of one prompt to text features (a T5 encoder)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec


def text_encoder_signature(channels: int) -> GraphSignature:
    ids = TensorSpec("ids", (Axis.ROWS, Axis.TEXT), "int64")
    return GraphSignature("text_encoder", (ids,), (TensorSpec("features", (Axis.ROWS, Axis.TEXT, channels)),))


class TextEncoderGraph(nn.Module):
    """Token ids [R, T] of equally long prompts to features [R, T, Ct]; no padding, hence no mask."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        config: Any = encoder.config
        self.signature = text_encoder_signature(config.d_model)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
