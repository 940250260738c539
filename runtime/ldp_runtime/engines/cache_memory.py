"""Memory of the KV caches in two tiers: small arenas for early scales, and a fixed number of slots for the others.

While the images of a run share calls, their keys and values lie in an early arena. At its end they are copied into
slots, which hold all scales of one image and its two rows each. Images that go on together take adjacent slots. Arenas
and slots are used again and again at the same addresses, which is what CUDA graphs are bound to.

An engine with a static cache is compiled for one number of positions. It has no smaller arena: its images begin in
their slots, and move apart within them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ldp_runtime.engines.blocks import Cache
from ldp_runtime.engines.cache_plan import EARLY_ARENAS, CachePlan
from ldp_runtime.engines.kv_cache import DynamicKVCache, LayerMemory, StaticKVCache
from ldp_runtime.engines.slots import Lease, SlotPool


@dataclass(eq=False)
class HeldCache:
    """A cache, and the memory that it lies in until it is released or forgotten."""

    cache: Cache
    lease: Lease[Any]

    def keep_rows(self, rows: Sequence[int], images: int) -> None:
        """Keeps these rows, which belong to so many images, and gives back the slots behind them."""
        self.cache.keep_rows(rows)
        self.lease.keep(images)  # an arena has no second piece

    def release(self) -> None:
        self.lease.release()


class CacheMemory:
    """Arenas and slots of one pipeline. Only the thread that steps may take from it; any thread may give back."""

    def __init__(self, plan: CachePlan, device: torch.device) -> None:
        self.plan, self._device = plan, device
        self._slots = SlotPool[Any](plan.slots, self._allocate_slots)
        self._early = SlotPool[Any](EARLY_ARENAS, partial(self._allocate_arenas, plan.early))
        self._shared = SlotPool[Any](1, partial(self._allocate_arenas, plan.shared))

    @property
    def size(self) -> int:
        """Bytes that are allocated now."""
        slots, early = self._slots.allocated * self.plan.slot_size, self._early.allocated * self._arena_size(False)
        return slots + early + self._shared.allocated * self._arena_size(True)

    @property
    def slots_taken(self) -> int:
        """Number of slots in use."""
        return self._slots.taken

    @property
    def arenas_taken(self) -> int:
        """Number of arenas in use."""
        return self._early.taken + self._shared.taken

    def arena(self, positions: int, rows: int) -> HeldCache | None:
        """Empty cache of an arena, see `CachePlan.boundary`; None: all such arenas are in use."""
        lease = (self._early if positions == self.plan.early else self._shared).take(1)
        if lease is None:
            return None
        size = self.plan.elements(positions, self.plan.rows)
        memory = lease.memory[lease.first * size : (lease.first + 1) * size]
        return HeldCache(self._dynamic(memory, positions, rows, 0), lease)

    def slots(self, images: int) -> Lease[Any] | None:
        """Adjacent slots for up to so many images; None: all slots are in use."""
        return self._slots.take(images)

    def cache_in(self, lease: Lease[Any], rows: int) -> HeldCache:
        """Empty cache of so many rows in these slots."""
        plan = self.plan
        if plan.shape.cache_tokens is not None:
            return HeldCache(StaticKVCache(self._rows_of(lease), rows), lease)
        size = plan.elements(plan.capacity, 2, plan.spare)
        memory = lease.memory[lease.first * size : (lease.first + lease.count) * size]
        return HeldCache(self._dynamic(memory, plan.capacity, rows, plan.spare), lease)

    def apart(self, held: HeldCache, parts: Sequence[Sequence[int]], images: Sequence[int]) -> list[HeldCache]:
        """Static caches of these rows, which belong to so many images each, in the slots that they shared."""
        assert isinstance(held.cache, StaticKVCache)
        leases = held.lease.apart(images)
        caches = held.cache.apart(parts, [self._rows_of(lease) for lease in leases])
        return [HeldCache(cache, lease) for cache, lease in zip(caches, leases, strict=True)]

    def clear(self) -> None:
        """Releases all memory; what runs still hold goes with them."""
        for pool in (self._slots, self._early, self._shared):
            pool.clear()

    def _arena_size(self, shared: bool) -> int:
        return self.plan.arena_size(self.plan.shared if shared else self.plan.early)

    def _dynamic(self, memory: torch.Tensor, capacity: int, rows: int, spare: int) -> DynamicKVCache:
        shape = self.plan.shape
        sizes = (shape.cached_layers, capacity, rows, shape.heads, shape.head_dim)
        return DynamicKVCache(*sizes, self._device, getattr(torch, shape.cache), spare, memory)

    def _rows_of(self, lease: Lease[Any]) -> list[LayerMemory]:
        first, end = 2 * lease.first, 2 * (lease.first + lease.count)
        return [{kind: tensor[first:end] for kind, tensor in layer.items()} for layer in lease.memory]

    def _allocate_slots(self, count: int) -> torch.Tensor | list[LayerMemory]:
        plan, shape = self.plan, self.plan.shape
        if shape.cache_tokens is not None:
            sizes = (shape.depth, shape.cache_tokens, 2 * count, shape.heads, shape.head_dim)
            return StaticKVCache.allocate(*sizes, self._device, getattr(torch, shape.cache))
        return self._empty(count * plan.elements(plan.capacity, 2, plan.spare))

    def _allocate_arenas(self, positions: int, count: int) -> torch.Tensor:
        return self._empty(count * self.plan.elements(positions, self.plan.rows))

    def _empty(self, elements: int) -> torch.Tensor:
        return torch.empty(elements, dtype=getattr(torch, self.plan.shape.cache), device=self._device)
