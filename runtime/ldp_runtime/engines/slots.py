"""Slots: a fixed number of pieces of memory that are handed out, given back, and used again at the same addresses."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

Memory = TypeVar("Memory")


@dataclass(eq=False)
class _Segment(Generic[Memory]):
    """Slots that lie side by side in one allocation; those `returned` become free with the next look."""

    memory: Memory
    size: int
    free: set[int] = field(default_factory=set)
    returned: deque[int] = field(default_factory=deque)

    def settle(self) -> None:
        while self.returned:  # filled by any thread, and by the collector of garbage
            self.free.add(self.returned.popleft())

    def adjacent(self) -> Iterator[list[int]]:
        """Free slots, as runs of adjacent ones."""
        run: list[int] = []
        for slot in sorted(self.free):
            if run and slot != run[-1] + 1:
                yield run
                run = []
            run.append(slot)
        if run:
            yield run


class Lease(Generic[Memory]):
    """Adjacent slots in use. They return when they are released, or with the last reference to the lease."""

    def __init__(self, segment: _Segment[Memory], slots: Sequence[int]) -> None:
        self._segment, self._held = segment, list(slots)
        self.first = slots[0]
        weakref.finalize(self, _return, segment.returned, self._held)

    @property
    def memory(self) -> Memory:
        """Memory that the slots are part of; the first of them is number `first` in it."""
        return self._segment.memory

    @property
    def count(self) -> int:
        """Number of slots."""
        return len(self._held)

    def keep(self, count: int) -> None:
        """Gives back all but the first `count` slots."""
        rest = self._held[count:]
        del self._held[count:]
        self._segment.returned.extend(rest)

    def release(self) -> None:
        """Gives back what is still held."""
        self.keep(0)

    def apart(self, counts: Sequence[int]) -> list[Lease[Memory]]:
        """Leases of so many slots each, from the first on; the others are given back."""
        ends = [sum(counts[:i]) for i in range(len(counts) + 1)]
        slots = self._held[: ends[-1]]
        self.keep(ends[-1])
        self._held.clear()
        return [Lease(self._segment, slots[first:end]) for first, end in pairwise(ends)]


def _return(returned: deque[int], held: list[int]) -> None:
    returned.extend(held)
    held.clear()


class SlotPool(Generic[Memory]):
    """At most `limit` slots, whose memory is allocated when it is first asked for.

    Adjacent slots are asked for together. Where no allocation holds so many side by side, a larger one takes the place
    of unused smaller ones. Every such change makes an allocation larger, so after few of them addresses stay.

    Args:
        allocate: gives memory for so many adjacent slots.
    """

    def __init__(self, limit: int, allocate: Callable[[int], Memory]) -> None:
        self.limit, self._allocate = limit, allocate
        self._segments: list[_Segment[Memory]] = []

    @property
    def allocated(self) -> int:
        """Number of slots that have memory."""
        return sum(segment.size for segment in self._segments)

    @property
    def taken(self) -> int:
        """Number of slots in use."""
        self._settle()
        return sum(segment.size - len(segment.free) for segment in self._segments)

    def take(self, wanted: int) -> Lease[Memory] | None:
        """Up to `wanted` adjacent slots, as many as there are; None: all slots are in use."""
        self._settle()
        best = self._find(wanted)
        unused = sum(segment.size for segment in self._segments if len(segment.free) == segment.size)
        room = min(wanted, self.limit - self.allocated + unused)
        if room > (0 if best is None else len(best[1])):
            best = self._grow(room), list(range(room))
        if best is None:
            return None
        segment, slots = best
        segment.free -= set(slots)
        return Lease(segment, slots)

    def clear(self) -> None:
        """Forgets all memory; what is still in use is released with its leases."""
        self._segments.clear()

    def _settle(self) -> None:
        for segment in self._segments:
            segment.settle()

    def _find(self, wanted: int) -> tuple[_Segment[Memory], list[int]] | None:
        """The first run of enough free slots, or else the longest."""
        runs = [(segment, run[:wanted]) for segment in self._segments for run in segment.adjacent()]
        return max(runs, key=lambda run: len(run[1]), default=None)  # the first of the longest

    def _grow(self, size: int) -> _Segment[Memory]:
        """A new allocation; smaller ones that are unused make room for it first."""
        for segment in sorted(self._segments, key=lambda segment: segment.size):
            if self.allocated + size > self.limit and len(segment.free) == segment.size:
                self._segments.remove(segment)
        grown = _Segment(self._allocate(size), size, set(range(size)))
        self._segments.append(grown)
        return grown
