"""Memory of the KV caches in two tiers: small arenas for early scales, and a fixed number of slots for the others.

While the images of a run share calls, their keys and values lie in an early arena. At its end they are copied into
slots, which hold all scales of one image and its two rows each. Images that go on together take adjacent slots. Arenas
and slots are used again and again at the same addresses, which is what CUDA graphs are bound to.

An engine with a static cache is compiled for one number of positions. It has no smaller arena: its images begin in
their slots, and move apart within them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ldp_runtime.engines.blocks import Cache, ModelShape
from ldp_runtime.engines.kv_cache import DynamicKVCache, LayerMemory, StaticKVCache
from ldp_runtime.engines.slots import Lease, SlotPool
from ldp_runtime.schedule import ScaleSchedule

#: Share of a slot's positions that fit into an early arena: at 1M, the 57 of scales 0 to 3 of 6,425.
_EARLY_SHARE = 1 / 64


#: Number of early arenas: runs that may wait for slots while others hold them. Further ones wait before scale 0.
EARLY_ARENAS = 2


#: Elements that memory is a multiple of, so that every slot begins at an aligned address.
_ALIGNED = 256


@dataclass(frozen=True)
class CachePlan:
    """Sizes of the tiers of one pipeline.

    Attributes:
        slots: number of slots.
        rows: rows that an arena has room for: two for each image of a batch.
        capacity: positions of a slot, for the longest schedule.
        spare: positions for the last scale, where engines write keys and values that nobody reads.
        early: positions of an early arena; 0: there is none.
        shared: positions of the arena of a batch whose images split later; 0: there is none.
    """

    shape: ModelShape
    slots: int
    rows: int
    capacity: int
    spare: int
    early: int
    shared: int

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        schedules: Sequence[ScaleSchedule],
        quantized: Callable[[ScaleSchedule], Collection[int]],
        images: int,
        slots: int,
    ) -> CachePlan:
        """Plan for runs of at most so many images of these schedules.

        Args:
            quantized: scales of a schedule whose blocks are quantized.
        """
        capacity = max(1, *(schedule.offsets[-2] for schedule in schedules))  # nobody reads the last scale's
        spare = max(schedule.tokens[-1] for schedule in schedules) if shape.writes_all else 0
        if shape.cache_tokens is not None:
            return cls(shape, slots, 2 * images, shape.cache_tokens, 0, 0, 0)
        early = max(_offset_within(schedule, capacity * _EARLY_SHARE) for schedule in schedules)
        split = (max(schedule.detail_scales()[0], min(quantized(schedule), default=0)) for schedule in schedules)
        shared = max(schedule.offsets[k] for schedule, k in zip(schedules, split, strict=True))
        return cls(shape, slots, 2 * images, capacity, spare, early, 0 if images == 1 or shared <= early else shared)

    @property
    def size(self) -> int:
        """Bytes of all memory, once it has all been used."""
        return self.slots * self.slot_size + self.arena_size(self.early) * EARLY_ARENAS + self.arena_size(self.shared)

    @property
    def slot_size(self) -> int:
        """Bytes of one slot."""
        return self._size(self.capacity, 2, self.spare)

    def arena_size(self, positions: int) -> int:
        """Bytes of an arena."""
        return self._size(positions, self.rows, 0) if positions else 0

    def boundary(self, schedule: ScaleSchedule, last: int, split: int | None, shared: bool) -> tuple[int, int]:
        """The scale at which a run's images move into slots, and the positions of the arena that they have before it.

        Args:
            last: the last scale that is drawn.
            split: the first scale at which images of a batch run by themselves, or None.
            shared: they may have the arena of a batch that splits late.
        """
        late = shared and self.shared > 0 and split is not None and schedule.offsets[split] > self.early
        positions = self.shared if late else self.early
        ends = (k for k in range(len(schedule)) if schedule.offsets[k] <= positions)
        return min(max(ends), last, len(schedule) if split is None else split), positions

    def _size(self, positions: int, rows: int, spare: int) -> int:
        shape = self.shape
        if shape.cache_tokens is not None:
            return 2 * shape.depth * positions * rows * shape.width * shape.cache.itemsize
        return self.elements(positions, rows, spare) * shape.cache.itemsize

    def elements(self, positions: int, rows: int, spare: int = 0) -> int:
        """Elements of the memory of a dynamic cache."""
        exact = DynamicKVCache.elements(self.shape.depth, positions, rows, self.shape.width, spare)
        return -(-exact // _ALIGNED) * _ALIGNED


def _offset_within(schedule: ScaleSchedule, positions: float) -> int:
    """The most positions of first scales that are no more than these; those of scale 0 in any case."""
    return max(1, *(offset for offset in schedule.offsets[:-1] if offset <= positions))


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
        sizes = (shape.depth, capacity, rows, shape.heads, shape.head_dim)
        return DynamicKVCache(*sizes, self._device, shape.cache, spare, memory)

    def _rows_of(self, lease: Lease[Any]) -> list[LayerMemory]:
        first, end = 2 * lease.first, 2 * (lease.first + lease.count)
        return [{kind: tensor[first:end] for kind, tensor in layer.items()} for layer in lease.memory]

    def _allocate_slots(self, count: int) -> torch.Tensor | list[LayerMemory]:
        plan, shape = self.plan, self.plan.shape
        if shape.cache_tokens is not None:
            sizes = (shape.depth, shape.cache_tokens, 2 * count, shape.heads, shape.head_dim)
            return StaticKVCache.allocate(*sizes, self._device, shape.cache)
        return self._empty(count * plan.elements(plan.capacity, 2, plan.spare))

    def _allocate_arenas(self, positions: int, count: int) -> torch.Tensor:
        return self._empty(count * self.plan.elements(positions, self.plan.rows))

    def _empty(self, elements: int) -> torch.Tensor:
        return torch.empty(elements, dtype=self.plan.shape.cache, device=self._device)
