"""Sizes of the KV caches' memory, from a manifest alone: nothing is allocated, and PyTorch is not needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.schedule import ScaleSchedule

#: Share of a slot's positions that fit into an early arena: at 1M, the 57 of scales 0 to 3 of 6,425.
_EARLY_SHARE = 1 / 64


#: Number of early arenas: runs that may wait for slots while others hold them. Further ones wait before scale 0.
EARLY_ARENAS = 2


#: Elements that memory is a multiple of, so that every slot begins at an aligned address.
_ALIGNED = 256


#: Bytes of an element of keys and values, by the name of its type.
_ELEMENT_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the transformer that the runtime needs: see the bundle's manifest.

    Attributes:
        logits: number of logits of a token.
        cache: name of the element type of keys and values.
        cache_tokens: positions of a static KV cache, which engines write in place; None for a dynamic one.
        writes_all: True if engines also write keys and values of the last scale, which nobody reads.
        cached: number of layers whose keys and values are kept; None: all of them.
    """

    depth: int
    width: int
    heads: int
    logits: int
    cache: str = "float32"
    cache_tokens: int | None = None
    writes_all: bool = False
    cached: int | None = None

    @classmethod
    def of(cls, manifest: Manifest, writes_all: bool) -> ModelShape:
        """Sizes of a bundle's transformer."""
        model = manifest.model
        sizes = (model.depth, model.width, model.heads, model.logits)
        return cls(*sizes, manifest.cache_type, manifest.cache_tokens, writes_all, model.cached_layers)

    @property
    def cached_layers(self) -> int:
        """Number of layers whose keys and values later scales read."""
        return self.depth if self.cached is None else self.cached

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def element_size(self) -> int:
        """Bytes of one element of keys and values."""
        return _ELEMENT_SIZES[self.cache]


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
        alone: Callable[[ScaleSchedule], Collection[int]],
        images: int,
        slots: int,
    ) -> CachePlan:
        """Plan for runs of at most so many images of these schedules.

        Args:
            alone: scales of a schedule at which images run one by one.
        """
        capacity = max(1, *(schedule.offsets[-2] for schedule in schedules))  # nobody reads the last scale's
        spare = max(schedule.tokens[-1] for schedule in schedules) if shape.writes_all else 0
        if shape.cache_tokens is not None:
            return cls(shape, slots, 2 * images, shape.cache_tokens, 0, 0, 0)
        early = max(_offset_within(schedule, capacity * _EARLY_SHARE) for schedule in schedules)
        split = (max(schedule.detail_scales()[0], min(alone(schedule), default=0)) for schedule in schedules)
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
            return 2 * shape.depth * positions * rows * shape.width * shape.element_size
        return self.elements(positions, rows, spare) * shape.element_size

    def elements(self, positions: int, rows: int, spare: int = 0) -> int:
        """Elements of the memory of a dynamic cache."""
        exact = dynamic_elements(self.shape.cached_layers, positions, rows, self.shape.width, spare)
        return -(-exact // _ALIGNED) * _ALIGNED


def _offset_within(schedule: ScaleSchedule, positions: float) -> int:
    """The most positions of first scales that are no more than these; those of scale 0 in any case."""
    return max(1, *(offset for offset in schedule.offsets[:-1] if offset <= positions))


def dynamic_elements(layers: int, capacity: int, rows: int, width: int, spare: int = 0) -> int:
    """Number of elements of a dynamic cache's memory."""
    return 2 * (1 + layers * capacity + spare) * rows * width
