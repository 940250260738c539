"""The `text_encoder` graph: token ids of one prompt to text features (a T5 encoder)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.layers import linear


def text_encoder_signature(channels: int) -> GraphSignature:
    ids = TensorSpec("ids", (Axis.ROWS, Axis.TEXT), "int64")
    return GraphSignature("text_encoder", (ids,), (TensorSpec("features", (Axis.ROWS, Axis.TEXT, channels)),))


class T5EncoderGraph(Graph):
    """Token ids [R, T] of equally long prompts to features [R, T, Ct]; no padding, hence no mask.

    Only products are in reduced precision: the residual stream of a T5 exceeds the range of float16. The products that
    write to it (`wo`) exceed it too. They stay float32 in a float16 graph, as in `transformers`.
    """

    ISLANDS = re.compile(r".*(layer_norm|relative_attention_bias)\.")
    _OUT_OF_RANGE = re.compile(r".*\.wo\.")

    def __init__(self, encoder: nn.Module, precision: Precision = "float32") -> None:
        config: Any = encoder.config
        super().__init__(text_encoder_signature(config.d_model), precision)
        for module in encoder.modules():
            if type(module) in _FLOAT32_RESULTS:
                module.__class__ = _FLOAT32_RESULTS[type(module)]
        self.encoder = encoder

    def stays_float32(self, name: str) -> bool:
        overflows = self.precision == "float16" and self._OUT_OF_RANGE.match(name) is not None
        return overflows or super().stays_float32(name)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


class _Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias).float()


class _Embedding(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).float()


#: Replacements of layers of `transformers`: they compute in the type of their weights and return float32.
_FLOAT32_RESULTS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, nn.Embedding: _Embedding}
