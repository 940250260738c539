"""Waiting pictures, in the order in which they will be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ldp_runtime.pipeline.request import ImageRequest

from ldp_serving.events import Publish


@dataclass(eq=False)
class Ticket:
    """A request that was taken on.

    Attributes:
        publish: receives its events.
        priority: a higher one is drawn first.
        arrived: time of arrival, in seconds of the monotonic clock.
        deadline: time after which it is given up.
        own_deadline: the client asked for the deadline.
        partials: number of partial images of each picture.
        cancelled: nobody waits for it any more.
        shadow: drawn to compare, not for a client.
    """

    publish: Publish
    priority: int
    arrived: float
    deadline: float
    own_deadline: bool = False
    partials: int = 0
    cancelled: bool = False
    shadow: bool = False


@dataclass(eq=False)
class Picture:
    """One picture of a request.

    Attributes:
        index: of the picture in its request.
        number: order of arrival among all pictures.
        alone: it was part of a drawing that failed, and is tried again by itself.
        shown: number of partial images shown so far.
        told: last scale that its client was told of.
        started: time at which it left the queue.
        partials: scales after which one is shown.
    """

    request: ImageRequest
    ticket: Ticket
    index: int
    number: int
    alone: bool = False
    shown: int = 0
    told: int = -1
    started: float | None = None
    partials: tuple[int, ...] = ()
    scales: int = field(init=False)

    def __post_init__(self) -> None:
        self.scales = self.request.policy.scales_to_run(self.request.schedule)


class Waiting:
    """Pictures that wait. Not locked: its owner is."""

    def __init__(self, promote_s: float) -> None:
        self._pictures: list[Picture] = []
        self._promote_s = promote_s

    def __len__(self) -> int:
        return len(self._pictures)

    def add(self, picture: Picture) -> None:
        self._pictures.append(picture)

    def oldest(self) -> float | None:
        """Time of arrival of the picture that has waited longest."""
        return min((picture.ticket.arrived for picture in self._pictures), default=None)

    def take(self, most: int, now: float, beside: bool = False) -> list[Picture]:
        """Removes pictures that start together: the next one, and the next ones of its schedule, at most `most`.

        Args:
            beside: others are being drawn; a picture that is tried again by itself waits until they are done.
        """
        ordered = self._ordered(now)
        if not ordered or most < 1:
            return []
        first = ordered[0]
        if first.alone:
            taken = [] if beside else [first]
        else:
            schedule = first.request.schedule
            taken = [p for p in ordered if not p.alone and p.request.schedule == schedule][:most]
        self._pictures = [picture for picture in self._pictures if picture not in taken]
        return taken

    def wants_previews(self, now: float) -> bool:
        """True if the next picture is to show partial images."""
        return any(picture.ticket.partials for picture in self._ordered(now)[:1])

    def leave(self, leaves: Callable[[Picture], bool]) -> list[Picture]:
        """Removes and returns pictures that leave."""
        left = [picture for picture in self._pictures if leaves(picture)]
        if left:
            self._pictures = [picture for picture in self._pictures if picture not in left]
        return left

    def _ordered(self, now: float) -> list[Picture]:
        return sorted(self._pictures, key=lambda picture: self._place(picture, now))

    def _place(self, picture: Picture, now: float) -> tuple[int, int, int]:
        waited = int((now - picture.ticket.arrived) / self._promote_s)
        return (not picture.alone, -(picture.ticket.priority + waited), picture.number)
