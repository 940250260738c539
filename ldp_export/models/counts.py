"""Counted weights of the named models: what listings and plans say of them without building their modules.

`python -m ldp_export.families.count` counts them anew; a test holds the file to the modules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

COUNTS_FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Weights:
    """Number of weights, and of those among them that stay float32 in every precision."""

    all: int = 0
    float32: int = 0

    def bytes(self, element: int) -> int:
        """Bytes where all other weights have elements of this size."""
        return element * (self.all - self.float32) + 4 * self.float32

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.all + other.all, self.float32 + other.float32)

    def __sub__(self, other: Weights) -> Weights:
        return Weights(self.all - other.all, self.float32 - other.float32)

    def __mul__(self, count: int) -> Weights:
        return Weights(self.all * count, self.float32 * count)


@dataclass(frozen=True)
class GraphCount:
    """Weights of the graphs of a kind: of one block, and of what the first and the last chunk have besides."""

    block: Weights = Weights()
    first: Weights = Weights()
    last: Weights = Weights()

    def of(self, first: int, last: int, depth: int) -> Weights:
        """Weights of the graph that serves the blocks [first, last) of `depth`."""
        weights = self.block * (last - first)
        weights += self.first if first == 0 else Weights()
        return weights + (self.last if last == depth else Weights())


@dataclass(frozen=True)
class Counts:
    """Counts of a model.

    Attributes:
        transformer, vae: parameters.
        block: parameters of a block of the transformer.
        transformer_bytes, vae_bytes: bytes of the tensors of the released files in float32, buffers included.
        graphs: weights of the exported graphs, by kind.
    """

    transformer: int
    vae: int
    block: int
    transformer_bytes: int
    vae_bytes: int
    graphs: Mapping[str, GraphCount]

    @classmethod
    def of_json(cls, entry: Mapping[str, Any]) -> Counts:
        graphs = {
            kind: GraphCount(**{part: Weights(*pair) for part, pair in parts.items()})
            for kind, parts in entry["graphs"].items()
        }
        fields: dict[str, Any] = {**entry, "graphs": graphs}
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        graphs = {
            kind: {part: [w.all, w.float32] for part, w in vars(count).items() if w.all}
            for kind, count in self.graphs.items()
        }
        return {**vars(self), "graphs": graphs}


@cache
def counts_of(name: str) -> Counts | None:
    """Counts of a model of the registry, by its name; None for one that is not counted."""
    entry = _content().get(name)
    return None if entry is None else Counts.of_json(entry)


@cache
def _content() -> dict[str, Any]:
    return json.loads(COUNTS_FILE.read_text(encoding="utf-8"))
