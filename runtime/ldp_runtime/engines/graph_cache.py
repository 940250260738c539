"""Bookkeeping of captured CUDA graphs, without CUDA: which calls are captured, and which graphs are kept.

A graph replays one call: the same shapes at the same addresses. Capturing costs more than many replays save, so under
any traffic few calls may be captures. Three rules see to that.

- Only full scales are candidates: all tokens of a scale, behind all tokens of the scales before. How many tokens a
  pruned scale computes differs from image to image, and so does the past of all scales behind it. Padded to a few
  sizes, such calls would compute tokens in vain, where calls are no longer bound by launches. They run without a graph.
- Caches lie in arenas and slots, whose addresses stay (`cache_memory.py`): a key names a piece of memory, not an image.
- A call is captured when it comes back. Once the bound is reached, only a graph that has been idle for long makes room:
  for `PATIENCE` calls times the number of graphs. From then on at most one call in `PATIENCE` is a capture.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ldp_runtime.schedule import ScaleSchedule

Graph = TypeVar("Graph")

#: Number of calls that are remembered after being seen once.
SEEN = 1024


#: Calls for each kept graph after which one that was not used may be dropped for another.
PATIENCE = 128


def full_scales(schedules: Iterable[ScaleSchedule]) -> frozenset[tuple[int, int]]:
    """Numbers of past and of new tokens of every scale that is computed without pruning."""
    return frozenset(pair for schedule in schedules for pair in zip(schedule.offsets, schedule.tokens, strict=False))


@dataclass
class GraphCounters:
    """Counts of calls and graphs so far, for monitoring."""

    replays: int = 0
    captures: int = 0
    evictions: int = 0
    refusals: int = 0  # calls that came back, and found all graphs in use
    plain: int = 0  # calls that ran without a graph

    @property
    def calls(self) -> int:
        return self.replays + self.plain


class GraphCache(Generic[Graph]):
    """Captured graphs; the least recently used are dropped first. Not safe for threads: calls queue before it.

    Args:
        limit: bytes (or whatever `keep` is told as a size) that all graphs may hold together; 0 keeps none.
        seen: number of calls that are remembered after being seen once.
        counters: counters to update, if several caches count together.
    """

    def __init__(self, limit: int, seen: int = SEEN, counters: GraphCounters | None = None) -> None:
        self.limit, self._remembered = limit, seen
        self.counters = counters or GraphCounters()
        self._graphs: OrderedDict[Hashable, tuple[Graph, int]] = OrderedDict()
        self._used: dict[Hashable, int] = {}  # number of the call that used each graph last
        self._calls = 0
        self._too_large: set[Hashable] = set()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes held now."""
        return sum(size for _, size in self._graphs.values())

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, call: Hashable) -> Graph | None:
        """The graph of a call, if there is one; counted as a replay."""
        self._calls += 1
        entry = self._graphs.get(call)
        if entry is None:
            self.counters.plain += 1
            return None
        self._graphs.move_to_end(call)
        self._used[call] = self._calls
        self.counters.replays += 1
        return entry[0]

    def is_worth_capturing(self, call: Hashable) -> bool:
        """True if a call without a graph has been seen before, and may have one now; remembers the call."""
        if self.limit == 0 or call in self._too_large:
            return False
        known = call in self._seen
        self._seen[call] = None
        self._seen.move_to_end(call)
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)
        if known and not self._has_room():
            self.counters.refusals += 1
            return False
        return known

    def _has_room(self) -> bool:
        """True if one more graph fits, or the least recently used one has been idle for long."""
        count = len(self._graphs)
        if count == 0 or self.size + self.size / count <= self.limit:
            return True
        return self._calls - self._used[next(iter(self._graphs))] >= PATIENCE * count

    def keep(self, call: Hashable, graph: Graph, size: int) -> list[Graph]:
        """Stores a graph of `size` bytes; returns the graphs dropped for it (itself, if it is too large)."""
        self.counters.captures += 1
        self._seen.pop(call, None)
        if size > self.limit:
            self._too_large.add(call)
            self.counters.evictions += 1
            return [graph]
        self._graphs[call], self._used[call] = (graph, size), self._calls
        dropped: list[Graph] = []
        while self.size > self.limit:
            oldest, (graph, _) = self._graphs.popitem(last=False)
            del self._used[oldest]
            dropped.append(graph)
        self.counters.evictions += len(dropped)
        return dropped

    def clear(self) -> None:
        """Forgets all graphs and calls, since the addresses that graphs hold are no longer valid."""
        for known in (self._graphs, self._used, self._seen, self._too_large):
            known.clear()
