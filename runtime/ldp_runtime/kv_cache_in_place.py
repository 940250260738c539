"""The in-place form of the KV cache: a fixed number of positions, into which the engine itself writes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from ldp_runtime.errors import ConfigError


class InPlaceKVCache:
    """Keys and values of all layers, two tensors [rows, heads, capacity, head_dim] a layer.

    An engine reads a tensor and gives it back changed, at the same address: the new positions are written behind the
    `length` that are there, and attention reads up to their end. What lies behind is zero at first, since a product
    with a weight of 0 is NaN where memory holds NaN. Pruned tokens are never written.
    """

    def __init__(
        self,
        layers: int,
        capacity: int,
        rows: int,
        heads: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (rows, heads, capacity, head_dim)
        self._tensors = [  # one allocation each: an engine wants aligned addresses
            {kind: torch.zeros(shape, device=device, dtype=dtype) for kind in "kv"} for _ in range(layers)
        ]
        self.length = 0

    @property
    def capacity(self) -> int:
        return self._tensors[0]["k"].shape[2]

    @property
    def rows(self) -> int:
        return self._tensors[0]["k"].shape[0]

    def counters(self, tokens: int) -> dict[str, torch.Tensor]:
        """What all layers of a call of `tokens` read: where to write, and how much there is to attend to, per row."""
        end = self.length + tokens
        if end > self.capacity:
            raise ConfigError(f"the KV cache holds {self.capacity} tokens, {end} were asked for")
        device = self._tensors[0]["k"].device
        return {
            "written": torch.full((self.rows,), self.length, dtype=torch.int64, device=device),
            "lengths": torch.full((self.rows,), end, dtype=torch.int64, device=device),
        }

    def reads(self) -> list[dict[str, torch.Tensor]]:
        """Inputs of each layer, by their names."""
        return self._named("cache")

    def writes(self, tokens: int, wanted: bool) -> list[dict[str, torch.Tensor]]:
        """Outputs of each layer: its inputs. They have no other place, wanted later or not."""
        return self._named("present")

    def _named(self, prefix: str) -> list[dict[str, torch.Tensor]]:
        return [
            {f"{prefix}_{kind}_{i}": tensor for kind, tensor in layer.items()} for i, layer in enumerate(self._tensors)
        ]

    def advance(self, tokens: int) -> None:
        """Counts the positions that an engine has just written."""
        self.length += tokens

    def with_rows(self, rows: Sequence[int]) -> InPlaceKVCache:
        """A cache of these rows only, in this order; the caller drops the old one.

        The first rows are a view: stopping the unconditional branches, whose rows are the last, copies nothing.
        """
        chosen = copy.copy(self)
        if list(rows) == list(range(len(rows))):
            chosen._tensors = [{kind: t[: len(rows)] for kind, t in layer.items()} for layer in self._tensors]
        else:
            index = torch.as_tensor(rows, device=self._tensors[0]["k"].device)
            chosen._tensors = [{kind: t[index] for kind, t in layer.items()} for layer in self._tensors]
        return chosen
