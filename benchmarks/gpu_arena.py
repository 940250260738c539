"""Keys and values at fixed addresses, for blocks that write theirs in place and for CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldp_export.models.infinity import InfinityConfig


class Arena:
    """Room for the keys and values of all blocks: two flat pieces of memory, [positions, rows, heads, head_dim] each.

    Blocks lie in descending order: behind the positions of block i are those of block i - 1. The last scale, whose keys
    and values no later scale reads, may therefore run over the end of its block's room: what it overwrites belongs to a
    block that has run already. So the largest scale needs room once, not once a block.
    """

    def __init__(
        self, config: InfinityConfig, capacity: int, last: int, rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # One position in front: compiled code treats a tensor at the very start of its memory as a case of its own.
        shape = (1 + config.depth * capacity + last, rows, config.heads, config.head_dim)
        self.keys, self.values = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        self.depth, self.capacity, self.rows = config.depth, capacity, rows

    def positions(self, block: int, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a block, [end - first, rows, heads, head_dim]; in autograd's eyes no views, whose whole
        compiled code would look at."""
        start = 1 + (self.depth - 1 - block) * self.capacity
        return self.keys[start + first : start + end].detach(), self.values[start + first : start + end].detach()

    def by_block(self, flat: torch.Tensor) -> torch.Tensor:
        """[blocks, capacity, rows, heads, head_dim], without what the last scale has beside."""
        return flat[1 : 1 + self.depth * self.capacity].unflatten(0, (self.depth, self.capacity))


class ArenaCache:
    """A `KVCache` in an arena; takes another arena from the same `Arenas` when rows end."""

    def __init__(self, arena: Arena, arenas: Arenas) -> None:
        self.arena, self.arenas, self.length = arena, arenas, 0

    def with_rows(self, rows: Sequence[int]) -> ArenaCache:
        chosen = self.arenas.cache(len(rows))
        for mine, other in ((self.arena.keys, chosen.arena.keys), (self.arena.values, chosen.arena.values)):
            for new, old in enumerate(rows):
                self.arena.by_block(other)[:, : self.length, new] = self.arena.by_block(mine)[:, : self.length, old]
        chosen.length = self.length
        return chosen


class Arenas:
    """The arenas of one model, handed out again in the same order for every image: addresses stay what they were."""

    def __init__(
        self, config: InfinityConfig, capacity: int, last: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._made = (config, capacity, last, device, dtype)
        self._all: list[Arena] = []
        self._taken: list[Arena] = []

    def cache(self, rows: int) -> ArenaCache:
        free = (a for a in self._all if a.rows == rows and not any(a is taken for taken in self._taken))
        arena = next(free, None)
        if arena is None:
            config, capacity, last, device, dtype = self._made
            arena = Arena(config, capacity, last, rows, device, dtype)
            self._all.append(arena)
        self._taken.append(arena)
        return ArenaCache(arena, self)

    def give_back(self) -> None:
        """All of them, when an image is done."""
        self._taken.clear()

    def clear(self) -> None:
        self._taken.clear()
        self._all.clear()
