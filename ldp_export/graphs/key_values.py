"""Keys and values between the calls of a `blocks` graph: two kinds of one cache, which compute the same.

`DynamicKeyValues` joins the past that it is given with its own, and gives back its own. It is sequence-major, of any
length, and runs on every backend.

`StaticKeyValues` writes its own into a cache of a fixed number of positions, which is input and output at once. It
attends up to a length that each call says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from ldp_export.graphs.graph import OPSET
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.infinity import KeyValue

#: Inputs of the in-place form that all layers share, [rows] each: where to write, and how much there is to attend to.
WRITTEN, LENGTHS = "written", "lengths"

#: The first opset with TensorScatter, and with lengths of keys and values in Attention.
STATIC_OPSET = 24


class KeyValues(Protocol):
    @property
    def opset(self) -> int:
        """Of ONNX, that the form needs."""
        ...

    def attend(
        self, given: Mapping[str, torch.Tensor], layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, KeyValue]:
        """Self-attention of new tokens, q, k, v [R, L, H, c], to the past and each other.

        Args:
            given: the graph's inputs by name.

        Returns:
            What was attended to [R, L, C], and the layer's outputs.
        """
        ...


@dataclass(frozen=True)
class DynamicKeyValues:
    """Reads `past_k_I`, `past_v_I` [P, R, H, c]; gives `new_k_I`, `new_v_I` [L, R, H, c]."""

    opset: int = OPSET

    def attend(
        self, given: Mapping[str, torch.Tensor], layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, KeyValue]:
        new = k.transpose(0, 1), v.transpose(0, 1)  # [L, R, H, c]
        all_k, all_v = (torch.cat((given[f"past_{kind}_{layer}"], n)) for kind, n in zip("kv", new, strict=True))
        return attention(q, all_k.permute(1, 2, 0, 3), all_v.permute(1, 2, 0, 3), 1.0), new


@dataclass(frozen=True)
class StaticKeyValues:
    """Reads `cache_k_I`, `cache_v_I` and gives `present_k_I`, `present_v_I`, all [R, H, M, c] with a fixed M.

    Its operators have no PyTorch kernels: the graph can be exported, not run.

    Attributes:
        capacity: M, positions of the cache.
    """

    capacity: int
    opset: int = STATIC_OPSET

    def attend(
        self, given: Mapping[str, torch.Tensor], layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, KeyValue]:
        present = (
            _scattered(given[f"cache_k_{layer}"], k.transpose(1, 2), given[WRITTEN]),
            _scattered(given[f"cache_v_{layer}"], v.transpose(1, 2), given[WRITTEN]),
        )
        q = q.transpose(1, 2)  # [R, H, L, c]
        out = torch.onnx.ops.symbolic(
            "Attention",
            (q, *present, None, None, None, given[LENGTHS]),
            {"scale": 1.0},
            dtype=q.dtype,
            shape=q.shape,
            version=STATIC_OPSET,
        )
        return out.transpose(1, 2).flatten(2), present


def static_signature(signature: GraphSignature, capacity: int) -> GraphSignature:
    """Signature of a graph with a static cache, from that with a dynamic one; graphs without a cache are unchanged."""
    if not any(spec.name.startswith("past_") for spec in signature.inputs):
        return signature
    shared = (TensorSpec(WRITTEN, (Axis.ROWS,), "int64"), TensorSpec(LENGTHS, (Axis.ROWS,), "int64"))
    inputs = tuple(_in_place(spec, "past_", "cache_", capacity) for spec in signature.inputs)
    outputs = tuple(_in_place(spec, "new_", "present_", capacity) for spec in signature.outputs)
    return replace(signature, inputs=(*inputs, *shared), outputs=outputs)


def _in_place(spec: TensorSpec, before: str, after: str, capacity: int) -> TensorSpec:
    if not spec.name.startswith(before):
        return spec
    _, rows, heads, width = spec.shape
    return replace(spec, name=after + spec.name.removeprefix(before), shape=(rows, heads, capacity, width))


def _scattered(cache: torch.Tensor, new: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """`cache` [R, H, M, c] with `new` [R, H, L, c] at the positions from `written` [R] on."""
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, new, written),
        {"axis": 2, "mode": "linear"},
        dtype=cache.dtype,
        shape=cache.shape,
        version=STATIC_OPSET,
    )


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """q [R, L, H, c] against k, v [R, H, S, c] -> [R, L, C]."""
    out = nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).flatten(2)
