"""File of a fused engine: weights of its blocks, and of the embedding and the head if the chunk has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ldp_runtime.engines.torch_compiled.fused.pieces import BlockWeights
from ldp_runtime.engines.torch_compiled.fused.products import Matrix, rounded
from ldp_runtime.errors import IntegrityError

EMBEDDING, HEAD = "embedding", "head"


class FusedWeights(NamedTuple):
    """Weights of the blocks in order; `embedding` [C, bits] of the first chunk of a model, `head` of the last."""

    blocks: list[BlockWeights]
    embedding: torch.Tensor | None
    head: Matrix | None


def in_8_bits(weights: FusedWeights, kind: torch.dtype) -> FusedWeights:
    """The same weights with all matrices of the blocks quantized to `INT8` or `FLOAT8`; embedding and head stay."""
    blocks = [
        BlockWeights(*(rounded(part, kind) if isinstance(part, Matrix) else part for part in block))  # pyright: ignore
        for block in weights.blocks
    ]
    return weights._replace(blocks=blocks)


def named_tensors(weights: FusedWeights) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor with its name in the file; empty tensors are left out."""
    parts: list[tuple[str, torch.Tensor | Matrix | None]] = [(EMBEDDING, weights.embedding), (HEAD, weights.head)]
    for i, block in enumerate(weights.blocks):
        parts += [(f"{i}.{name}", part) for name, part in block._asdict().items()]
    for name, part in parts:
        if isinstance(part, Matrix):
            yield from ((f"{name}.{kind}", t) for kind, t in part._asdict().items() if t.numel())
        elif part is not None:
            yield name, part


def read_weights(name: str, path: Path, blocks: int, device: torch.device) -> FusedWeights:
    """Reads the weights of the graph `name` with so many blocks onto a device.

    Raises:
        IntegrityError: the file cannot be read, or does not hold these weights.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            there = set(file.keys())

            def matrix(prefix: str) -> Matrix:
                weight, bias = file.get_tensor(f"{prefix}.weight"), file.get_tensor(f"{prefix}.bias")
                step = f"{prefix}.step"
                return Matrix(weight, bias, file.get_tensor(step) if step in there else bias.new_empty(0))

            def part(name: str) -> Any:
                return file.get_tensor(name) if name in there else matrix(name)

            def block(i: int) -> BlockWeights:
                return BlockWeights(**{field: part(f"{i}.{field}") for field in BlockWeights._fields})

            return FusedWeights(
                [block(i) for i in range(blocks)],
                file.get_tensor(EMBEDDING) if EMBEDDING in there else None,
                matrix(HEAD) if f"{HEAD}.weight" in there else None,
            )
    except (OSError, SafetensorError) as error:
        raise IntegrityError(
            f"the weights of the graph {name!r} cannot be read from {path}: {error}", hint="rebuild the bundle"
        ) from error
