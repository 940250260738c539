"""Keys and values of the scales so far: a growing (dynamic) cache, and a static one that engines write in place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ldp_runtime.errors import InternalError

#: Keys ("k") and values ("v") of one layer of a static cache [rows, heads, capacity, head_dim].
LayerMemory = dict[str, torch.Tensor]


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
        dtype: torch.dtype = torch.float32,
        spare: int = 0,
        memory: torch.Tensor | None = None,
    ) -> None:
        self.layers, self.capacity, self.spare, self.length = layers, capacity, spare, 0
        # One position in front: PyTorch's compiler treats a tensor at the start of its memory as a special case.
        shape = (2, 1 + layers * capacity + spare, rows, heads, head_dim)
        if memory is None:
            memory = torch.empty(math.prod(shape), device=device, dtype=dtype)
        self._memory, self._arena = memory, memory[: math.prod(shape)].view(shape)

    @property
    def rows(self) -> int:
        return self._arena.shape[2]

    def past(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values computed so far: two views [length, rows, heads, head_dim] for each layer."""
        return self._positions(0, self.length)

    def slots(self, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Memory of the next `tokens` positions: two views [tokens, rows, heads, head_dim] for each layer.

        Raises:
            InternalError: the cache has no room for them.
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
            self._arena.storage_offset() + (1 + first) * position,
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

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Moves these rows, in ascending order, together in place: the cache is then as one made for them alone.

        A row's new place is never behind its old one, and never where a later layer still lies. So layers are moved one
        by one, and one layer of them is all the memory that moving takes.
        """
        if list(rows) == list(range(self.rows)):
            return
        mine = self._by_layer()[:, :, : self.length]
        shape = (*self._arena.shape[:2], len(rows), *self._arena.shape[3:])
        self._arena = self._memory[: math.prod(shape)].view(shape)
        other = self._by_layer()[:, :, : self.length]
        for kind in range(2):
            for layer in range(self.layers):
                other[kind, layer] = _rows(mine[kind, layer], rows).clone()

    def copy_rows(self, rows: Sequence[int], into: DynamicKVCache) -> None:
        """Copies the positions so far of these rows, in ascending order, into a new cache of as many rows."""
        into.length = self.length
        mine, other = self._by_layer()[:, :, : self.length], into._by_layer()[:, :, : self.length]
        if list(rows) == list(range(len(rows))):  # the first rows: one copy
            other.copy_(mine[:, :, :, : len(rows)])
            return
        for kind in range(2):
            for layer in range(self.layers):  # layer by layer: the copy's temporary stays small
                other[kind, layer] = _rows(mine[kind, layer], rows)

    def _by_layer(self) -> torch.Tensor:
        """Memory without the spare positions [2, layers, capacity, rows, heads, head_dim], layers as they lie."""
        return self._arena[:, 1 : 1 + self.layers * self.capacity].unflatten(1, (self.layers, self.capacity))


def _rows(positions: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of one layer's positions [length, R, heads, head_dim]: a view if they are the first ones."""
    if list(rows) == list(range(len(rows))):
        return positions[:, : len(rows)]
    return positions.index_select(1, torch.as_tensor(rows, dtype=torch.int64, device=positions.device))


class StaticKVCache:
    """Keys and values of all layers, two tensors [rows, heads, capacity, head_dim] for each layer.

    An engine reads a tensor and returns it changed, at the same address. New positions are written behind the `length`
    existing ones, and attention reads up to their end. Memory behind the end is zero at first, since a product with a
    weight of 0 is NaN where memory holds NaN. Pruned tokens are never written.

    Args:
        memory: see `allocate`; the cache takes its first rows. Those of an empty cache are set to zero.
    """

    def __init__(self, memory: Sequence[LayerMemory], rows: int, length: int = 0) -> None:
        self._memory, self.rows, self.length = memory, rows, length
        for layer in self._tensors() if length == 0 else ():
            for tensor in layer.values():
                tensor.zero_()

    @staticmethod
    def allocate(
        layers: int,
        capacity: int,
        rows: int,
        heads: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> list[LayerMemory]:
        """Memory of each layer: one allocation each, since an engine wants aligned addresses."""
        shape = (rows, heads, capacity, head_dim)
        return [{kind: torch.empty(shape, device=device, dtype=dtype) for kind in "kv"} for _ in range(layers)]

    @property
    def capacity(self) -> int:
        return self._memory[0]["k"].shape[2]

    def counters(self, tokens: int) -> dict[str, torch.Tensor]:
        """Cache inputs that all layers of a call of `tokens` share: for each row, where to write and how far to attend.

        Raises:
            InternalError: the cache has no room for the tokens.
        """
        end = self.length + tokens
        if end > self.capacity:
            raise InternalError(f"the KV cache holds {self.capacity} tokens, {end} were asked for")
        device = self._memory[0]["k"].device
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
            {f"{prefix}_{kind}_{i}": tensor for kind, tensor in layer.items()}
            for i, layer in enumerate(self._tensors())
        ]

    def _tensors(self) -> list[LayerMemory]:
        return [{kind: tensor[: self.rows] for kind, tensor in layer.items()} for layer in self._memory]

    def advance(self, tokens: int) -> None:
        """Counts the positions that an engine has just written."""
        self.length += tokens

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Moves these rows, in ascending order, together in place; the first rows stay where they are."""
        self.rows = len(rows)
        for layer in self._memory:
            for tensor in layer.values():
                for place, row in enumerate(rows):
                    if place != row:
                        tensor[place] = tensor[row]

    def apart(self, parts: Sequence[Sequence[int]], memories: Sequence[Sequence[LayerMemory]]) -> list[StaticKVCache]:
        """Caches of these rows, each at the start of one of the memories, which lie in this cache's own."""
        for i, layer in enumerate(self._tensors()):
            for kind, tensor in layer.items():
                before = tensor.clone()  # one layer at a time
                for rows, memory in zip(parts, memories, strict=True):
                    memory[i][kind][: len(rows)] = before[list(rows)]
        return [StaticKVCache(memory, len(rows), self.length) for rows, memory in zip(parts, memories, strict=True)]
