"""Bookkeeping of captured CUDA graphs, without CUDA: which of them are kept.

A graph replays one call: the same shapes at the same addresses. Capturing costs more than one replay saves, so a call
is captured when it comes back. When the graphs' bytes exceed the bound, the least recently used graphs are dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Graph = TypeVar("Graph")

#: Number of calls that are remembered after being seen once.
SEEN = 1024


@dataclass
class GraphCounters:
    """Counts of calls and graphs so far, for monitoring."""

    replays: int = 0
    captures: int = 0
    evictions: int = 0
    plain: int = 0  # calls that ran without a graph


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
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes held now."""
        return sum(size for _, size in self._graphs.values())

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, call: Hashable) -> Graph | None:
        """The graph of a call, if there is one; counted as a replay."""
        entry = self._graphs.get(call)
        if entry is None:
            self.counters.plain += 1
            return None
        self._graphs.move_to_end(call)
        self.counters.replays += 1
        return entry[0]

    def is_worth_capturing(self, call: Hashable) -> bool:
        """True if a call without a graph has been seen before; remembers the call."""
        if self.limit == 0:
            return False
        known = call in self._seen
        self._seen[call] = None
        self._seen.move_to_end(call)
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)
        return known

    def keep(self, call: Hashable, graph: Graph, size: int) -> list[Graph]:
        """Stores a graph of `size` bytes; returns the graphs dropped for it (itself, if it is too large)."""
        self.counters.captures += 1
        self._seen.pop(call, None)
        if size > self.limit:
            self.counters.evictions += 1
            return [graph]
        self._graphs[call] = (graph, size)
        dropped: list[Graph] = []
        while self.size > self.limit:
            dropped.append(self._graphs.popitem(last=False)[1][0])
        self.counters.evictions += len(dropped)
        return dropped

    def clear(self) -> None:
        """Forgets all graphs and calls, since the addresses that graphs hold are no longer valid."""
        self._graphs.clear()
        self._seen.clear()
