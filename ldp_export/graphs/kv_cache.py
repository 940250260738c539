"""KV caches of a `blocks` graph, which carry keys and values from call to call: dynamic or static, same results.

`DynamicKeyValues` concatenates the given past with the new keys and values, and returns only the new ones. It is
sequence-major, has any length, and runs on every backend.

`StaticKeyValues` writes the new keys and values into a cache of a fixed number of positions, which is both input and
output. It attends to as many positions as each call says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from ldp_export.graphs.graph import OPSET
from ldp_export.graphs.signature import LENGTHS, WRITTEN, Axis, GraphSignature, TensorSpec
from ldp_export.models.infinity import KeyValue

#: First ONNX opset with TensorScatter, and with lengths of keys and values in Attention.
STATIC_OPSET = 24


class KeyValues(Protocol):
    @property
    def opset(self) -> int:
        """ONNX opset version that the cache needs."""
        ...

    def attend(
        self, given: Mapping[str, torch.Tensor], layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, KeyValue]:
        """Self-attention of new tokens (q, k, v: [R, L, H, c]) to the past and to each other.

        Args:
            given: the graph's inputs by name.

        Returns:
            Result of the attention [R, L, C], and the layer's K/V outputs.
        """
        ...


@dataclass(frozen=True)
class DynamicKeyValues:
    """Dynamic KV cache: reads `past_k_I`, `past_v_I` [P, R, H, c]; returns `new_k_I`, `new_v_I` [L, R, H, c].

    Attributes:
        fused: attention keeps no scores; see `fused_attention`.
    """

    opset: int = OPSET
    fused: bool = False

    def attend(
        self, given: Mapping[str, torch.Tensor], layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, KeyValue]:
        new = k.transpose(0, 1), v.transpose(0, 1)  # [L, R, H, c]
        all_k, all_v = (torch.cat((given[f"past_{kind}_{layer}"], n)) for kind, n in zip("kv", new, strict=True))
        if self.fused:
            return fused_attention(q, all_k.transpose(0, 1), all_v.transpose(0, 1), 1.0), new
        return attention(q, all_k.permute(1, 2, 0, 3), all_v.permute(1, 2, 0, 3), 1.0), new


@dataclass(frozen=True)
class StaticKeyValues:
    """Static KV cache: reads `cache_k_I`, `cache_v_I`; returns `present_k_I`, `present_v_I`, all [R, H, M, c].

    Its operators have no PyTorch kernels: the graph can be exported but not run.

    Attributes:
        capacity: M, the fixed number of positions of the cache.
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
    """Signature of a graph with a static KV cache, from that with a dynamic one; without a cache it is unchanged."""
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
    """Copy of `cache` [R, H, M, c] with `new` [R, H, L, c] at the positions from `written` [R] on."""
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, new, written),
        {"axis": 2, "mode": "linear"},
        dtype=cache.dtype,
        shape=cache.shape,
        version=STATIC_OPSET,
    )


def fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention [R, L, C] of q [R, L, H, c] to k, v [R, S, H, c] by ONNX Runtime's own operator.

    It works through keys in tiles, so the scores [R, H, L, S] never exist. It has no PyTorch kernel: a graph with it
    can be exported but not run.
    """
    R, L, H, c = q.shape
    return torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (q.flatten(2), k.flatten(2), v.flatten(2)),
        {"num_heads": H, "scale": scale},
        dtype=q.dtype,
        shape=(R, L, H * c),
        version=1,
    )


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention [R, L, C] of q [R, L, H, c] to k, v [R, H, S, c]."""
    out = nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).flatten(2)
