"""Keys and values of the scales so far: a growing (dynamic) cache, and a static one that engines write in place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldp_runtime.errors import InternalError

if TYPE_CHECKING:
    import torch


class DynamicKVCache:
    """Keys and values of all layers, [capacity, rows, heads, head_dim] for each layer.

    Engines read the first `length` positions of a layer and write the new ones right behind them: nothing is copied to
    be appended. Pruned tokens are never written, so positions are dense in the computed tokens.

    Layers lie in descending order: behind the positions of layer i are those of layer i - 1. No later scale reads the
    keys and values of the last scale, so they may run over the end of a layer's room. There they overwrite only a layer
    that has run already. An engine that must write them somewhere gets `spare` positions once, not once per layer.
    """

    def __init__(
        self,
        layers: int,
        capacity: int,
        rows: int,
        heads: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        spare: int = 0,
    ) -> None:
        import torch

        self.layers, self.capacity, self.spare, self.length = layers, capacity, spare, 0
        # One position in front: PyTorch's compiler treats a tensor at the start of its memory as a special case.
        shape = (2, 1 + layers * capacity + spare, rows, heads, head_dim)
        self._arena = torch.empty(shape, device=device, dtype=dtype or torch.float32)

    @property
    def rows(self) -> int:
        return self._arena.shape[2]

    def past(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values computed so far: two views [length, rows, heads, head_dim] for each layer."""
        return self._positions(0, self.length)

    def slots(self, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Memory of the next `tokens` positions: two views [tokens, rows, heads, head_dim] for each layer.

        Raises:
            ConfigError: the cache has no room for them.
        """
        return self._next(tokens, self.capacity)

    def _next(self, tokens: int, room: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        end = self.length + tokens
        if end > room:
            raise InternalError(f"the KV cache holds {room} tokens, {end} were asked for")
        return self._positions(self.length, end)

    def _positions(self, first: int, end: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        # All views in three calls: slicing for each layer and kind would cost a tenth of a millisecond at every scale.
        kind, position, *inner = self._arena.stride()
        views = self._arena.as_strided(
            (2, self.layers, end - first, *self._arena.shape[2:]),
            (kind, self.capacity * position, position, *inner),
            (1 + first) * position,
        )
        keys, values = (kind.unbind(0)[::-1] for kind in views.unbind(0))
        return list(zip(keys, values, strict=True))

    def counters(self, tokens: int) -> dict[str, torch.Tensor]:
        """Cache inputs that all layers of a call share: none."""
        return {}

    def reads(self) -> list[dict[str, torch.Tensor]]:
        """Inputs of each layer, by name."""
        return [{f"past_k_{i}": key, f"past_v_{i}": value} for i, (key, value) in enumerate(self.past())]

    def writes(self, tokens: int, wanted: bool) -> list[dict[str, torch.Tensor]]:
        """Outputs of each layer, by name.

        A call whose keys and values are not wanted later has none, unless the cache has spare positions for them.
        """
        if not wanted and not self.spare:
            return [{}] * self.layers
        slots = self.slots(tokens) if wanted else self._next(tokens, self.capacity + self.spare)
        return [{f"new_k_{i}": key, f"new_v_{i}": value} for i, (key, value) in enumerate(slots)]

    def advance(self, tokens: int) -> None:
        """Counts the positions that an engine has just written."""
        self.length += tokens

    def with_rows(self, rows: Sequence[int]) -> DynamicKVCache:
        """New cache that holds only these rows, in this order; the caller drops the old one."""
        import torch

        _, _, _, heads, head_dim = self._arena.shape
        sizes = (self.layers, self.capacity, len(rows), heads, head_dim)
        subset = DynamicKVCache(*sizes, self._arena.device, self._arena.dtype, self.spare)
        subset.length = self.length
        mine, other = self._by_layer()[:, :, : self.length], subset._by_layer()[:, :, : self.length]
        if list(rows) == list(range(len(rows))):  # the first rows, as when an unconditional branch stops: one copy
            other.copy_(mine[:, :, :, : len(rows)])
            return subset
        index = torch.as_tensor(rows, dtype=torch.int64, device=self._arena.device)
        for kind in range(2):
            for layer in range(self.layers):  # layer by layer: the copy's temporary stays small
                torch.index_select(mine[kind, layer], 1, index, out=other[kind, layer])
        return subset

    def _by_layer(self) -> torch.Tensor:
        """Memory without the spare positions [2, layers, capacity, rows, heads, head_dim], layers as they lie."""
        return self._arena[:, 1 : 1 + self.layers * self.capacity].unflatten(1, (self.layers, self.capacity))

    @staticmethod
    def size_in_bytes(layers: int, capacity: int, rows: int, width: int, element_size: int = 4, spare: int = 0) -> int:
        return 2 * (1 + layers * capacity + spare) * rows * width * element_size


class StaticKVCache:
    """Keys and values of all layers, two tensors [rows, heads, capacity, head_dim] for each layer.

    An engine reads a tensor and returns it changed, at the same address. New positions are written behind the `length`
    existing ones, and attention reads up to their end. Memory behind the end is zero at first, since a product with a
    weight of 0 is NaN where memory holds NaN. Pruned tokens are never written.
    """

    def __init__(
        self,
        layers: int,
        capacity: int,
        rows: int,
        heads: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        import torch

        shape = (rows, heads, capacity, head_dim)
        self._tensors = [  # one allocation each: an engine wants aligned addresses
            {kind: torch.zeros(shape, device=device, dtype=dtype or torch.float32) for kind in "kv"}
            for _ in range(layers)
        ]
        self.length = 0

    @property
    def capacity(self) -> int:
        return self._tensors[0]["k"].shape[2]

    @property
    def rows(self) -> int:
        return self._tensors[0]["k"].shape[0]

    def counters(self, tokens: int) -> dict[str, torch.Tensor]:
        """Cache inputs that all layers of a call of `tokens` share: for each row, where to write and how far to attend.

        Raises:
            ConfigError: the cache has no room for the tokens.
        """
        import torch

        end = self.length + tokens
        if end > self.capacity:
            raise InternalError(f"the KV cache holds {self.capacity} tokens, {end} were asked for")
        device = self._tensors[0]["k"].device
        return {
            "written": torch.full((self.rows,), self.length, dtype=torch.int64, device=device),
            "lengths": torch.full((self.rows,), end, dtype=torch.int64, device=device),
        }

    def reads(self) -> list[dict[str, torch.Tensor]]:
        """Inputs of each layer, by name."""
        return self._named("cache")

    def writes(self, tokens: int, wanted: bool) -> list[dict[str, torch.Tensor]]:
        """Outputs of each layer: its inputs, written in place whether they are wanted later or not."""
        return self._named("present")

    def _named(self, prefix: str) -> list[dict[str, torch.Tensor]]:
        return [
            {f"{prefix}_{kind}_{i}": tensor for kind, tensor in layer.items()} for i, layer in enumerate(self._tensors)
        ]

    def advance(self, tokens: int) -> None:
        """Counts the positions that an engine has just written."""
        self.length += tokens

    def with_rows(self, rows: Sequence[int]) -> StaticKVCache:
        """New cache of only these rows, in this order; the caller drops the old one.

        The first rows are a view: stopping the unconditional branches, whose rows are the last, copies nothing.
        """
        import torch

        subset = copy.copy(self)
        if list(rows) == list(range(len(rows))):
            subset._tensors = [{kind: t[: len(rows)] for kind, t in layer.items()} for layer in self._tensors]
        else:
            index = torch.as_tensor(rows, dtype=torch.int64, device=self._tensors[0]["k"].device)
            subset._tensors = [{kind: t[index] for kind, t in layer.items()} for layer in self._tensors]
        return subset
