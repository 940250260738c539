"""Scheduler of one pipeline: *schedule, step, publish*, on the one thread that touches the engines.

A turn is one step: one scale of the pictures that share a call. Between turns pictures start, leave and are cancelled.
No picture depends on the others: whoever shares its early calls, cancels, or fails, it is what it is alone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from ldp_runtime.errors import CapacityError, LdpError
from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pipeline.request import ImageRequest

from ldp_serving.errors import (
    Abandoned,
    DeadlineMissed,
    DeadlinePassed,
    Draining,
    Forked,
    QueueFull,
    Refused,
    TimedOut,
)
from ldp_serving.events import Drawn, Failed, Partial, Publish, ScaleDrawn, Times
from ldp_serving.flight import Flight
from ldp_serving.limits import Limits
from ldp_serving.preview import PreviewDecoder
from ldp_serving.rates import Rates, partial_scales
from ldp_serving.waiting import Picture, Ticket, Waiting
from ldp_serving.watch import Watch

logger = logging.getLogger(__name__)


class Scheduler:
    """Draws pictures of requests from any thread, on a thread of its own.

    Args:
        pipeline: is used by this scheduler alone from now on.
        previews: makes partial images; None: the bundle's decoder makes them.
        watch: counts what happens.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        limits: Limits,
        previews: PreviewDecoder | None = None,
        watch: Watch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pipeline, self.limits, self.rates = pipeline, limits, Rates()
        self._previews, self._watch, self._clock = previews, watch or Watch(), clock
        self._waiting = Waiting(limits.promote_s)
        self._flights: list[Flight] = []
        self._arrived, self._busy_s, self._draining, self._closing = 0, 0.0, False, False
        self._changed, self._process = threading.Condition(), os.getpid()
        self._thread = threading.Thread(target=self._work, name="ldp-engine", daemon=True)

    # --- from any thread

    def start(self) -> None:
        """Starts the engine thread."""
        self._thread.start()

    def submit(
        self,
        images: Sequence[ImageRequest],
        publish: Publish,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        partials: int = 0,
        shadow: bool = False,
    ) -> Ticket:
        """Takes a request on: all of its pictures, or none.

        Args:
            images: checked requests.
            publish: is called on the engine thread with each event; it must neither block nor raise.
            priority: a higher one is drawn first.
            deadline_s: seconds from now after which the client does not want the pictures any more.
            partials: number of partial images of each picture.
            shadow: drawn to compare, not for a client.

        Raises:
            QueueFull, DeadlineMissed, Draining: the request is refused; nothing was done.
            Forked: the engine thread is in another process.
        """
        if os.getpid() != self._process:
            raise Forked(
                "this process was forked after the models were loaded, and has no engine thread",
                hint="load after the fork; with gunicorn, leave out --preload",
            )
        now, count = self._clock(), len(images)
        with self._changed:
            self._check_admission(count, deadline_s)
            own = deadline_s is not None and deadline_s < self.limits.timeout_s
            ends = now + (self.limits.timeout_s if deadline_s is None else min(deadline_s, self.limits.timeout_s))
            ticket = Ticket(publish, priority, now, ends, own, partials, shadow=shadow)
            for index, image in enumerate(images):
                self._arrived += 1
                self._waiting.add(Picture(image, ticket, index, self._arrived))
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Takes a request's pictures out at the next scale boundary; the others do not change."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify()

    def drain(self) -> None:
        """Takes no more requests on; what is waiting or running goes on."""
        with self._changed:
            self._draining = True

    def close(self) -> None:
        """Gives up what is left and ends the thread, after its current step."""
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_draining(self) -> bool:
        return self._draining

    @property
    def waiting(self) -> int:
        """Number of pictures that wait."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Number of pictures that are being drawn."""
        return sum(len(flight.pictures) for flight in tuple(self._flights))

    @property
    def oldest_s(self) -> float:
        """Seconds that the oldest waiting picture has waited."""
        with self._changed:
            oldest = self._waiting.oldest()
        return 0.0 if oldest is None else self._clock() - oldest

    def wait_s(self, count: int) -> float:
        """Predicted seconds until `count` more pictures are drawn, from the measured rate."""
        return (self.waiting + self.in_flight + count) * self.rates.picture_s

    def _check_admission(self, count: int, deadline_s: float | None) -> None:
        if self._draining:
            raise Draining("the server is about to stop", hint="ask another replica")
        excess = self.waiting + count - self.limits.max_queue
        if excess > 0:
            raise QueueFull(
                f"{self.waiting} pictures wait, the queue holds {self.limits.max_queue}",
                hint="try again after the time in Retry-After",
                retry_s=max(excess * self.rates.picture_s, 0.05),
            )
        needed = self.wait_s(count)
        if deadline_s is not None and needed > deadline_s:
            raise DeadlineMissed(
                f"the request is predicted to take {needed:.2f} s, its deadline is in {deadline_s:.2f} s",
                hint="allow more time, or ask for fewer pictures",
            )
        if needed > self.limits.timeout_s:
            raise QueueFull(
                f"the request is predicted to take {needed:.1f} s, the server allows {self.limits.timeout_s:g} s",
                hint="try again after the time in Retry-After",
                retry_s=max(needed - self.limits.timeout_s, 0.05),
            )

    # --- on the engine thread

    def _work(self) -> None:
        torch.set_num_threads(1)  # of this thread: small maps between engine calls, as in the pipeline's own steps
        while not self._closing:
            if self.turn():
                continue
            with self._changed:
                if not self._closing and not len(self._waiting):
                    self._changed.wait(timeout=1.0)
        error = Draining("the server stopped before the picture was drawn", hint="ask another replica")
        for picture in [*self._waiting.leave(lambda _: True), *(p for f in self._flights for p in f.pictures)]:
            self._fail(picture, error)
        for flight in self._flights:
            flight.close()
        self._flights.clear()

    def turn(self) -> bool:
        """One turn: schedule, step, publish. False if there was nothing to do."""
        started = time.perf_counter()
        self._leave()
        flights = self._schedule()
        if not flights:
            return False
        for flight in flights:
            if self._step(flight):
                break
        self._flights = [flight for flight in self._flights if flight.pictures]
        spent = time.perf_counter() - started
        self._busy_s += spent
        self._watch.busy(spent)
        return True

    def _step(self, flight: Flight) -> bool:
        """One step of a flight, and what it published; False if its pictures wait for memory that others hold."""
        try:
            event = flight.step()
            if event is None:
                return False
            self._publish(flight, event)
        except Exception as error:
            self._came_down(flight, error)
        return True

    def _schedule(self) -> list[Flight]:
        """Flights as their turn comes: those at early scales first, then in the order of their start."""
        if not self._flights or (not any(f.is_early for f in self._flights) and self._goes_between()):
            self._begin()
        return sorted(self._flights, key=lambda flight: not flight.is_early)

    def _goes_between(self) -> bool:
        """True if the early scales of what waits go between others' late ones."""
        if self.limits.interleave != "previews":
            return self.limits.interleave == "early"
        with self._changed:
            return self._waiting.wants_previews(self._clock())

    def _begin(self) -> None:
        """Starts waiting pictures that share a schedule, as many as fit."""
        if any(flight.is_second_try for flight in self._flights):
            return  # it may have failed for want of memory
        free = min(self.limits.max_batch, self.limits.max_in_flight - self.in_flight)
        with self._changed:
            now = self._clock()
            pictures = self._waiting.take(free, now, beside=bool(self._flights))
        if not pictures:
            return
        for picture in pictures:
            picture.started = now
            shares = self.rates.shares(picture.request)
            picture.partials = tuple(partial_scales(shares, picture.ticket.partials))
        try:
            flight = Flight(self.pipeline, pictures)
        except Exception as error:
            self._retry_or_fail(pictures, error, len(pictures) > 1)
            return
        self._flights.append(flight)
        self._watch.started(pictures, [now - picture.ticket.arrived for picture in pictures], flight.text_s)

    def _publish(self, flight: Flight, event: ScaleEvent) -> None:
        """Tells each picture's client of the scale, shows partial images, and finishes pictures that are drawn."""
        self._watch.stepped(event)
        for place, (picture, trace) in enumerate(flight.seen(event)):
            if self._is_over(picture):
                flight.cancel(picture)
                self._fail(picture, self._reason(picture))
                continue
            if trace.scale > picture.told:
                picture.told = trace.scale
                picture.ticket.publish(ScaleDrawn(picture.index, picture.scales, trace))
            if trace.scale in picture.partials[picture.shown :]:
                self._show(flight, picture, event, place)
            if trace.scale == picture.scales - 1:
                self._finish(flight, picture)

    def _show(self, flight: Flight, picture: Picture, event: ScaleEvent, place: int) -> None:
        image = event.preview(place) if self._previews is None else self._previews(flight.latent(event, place))
        picture.ticket.publish(Partial(picture.index, picture.shown, image))
        picture.shown += 1
        self._watch.shown(picture, self._clock() - picture.ticket.arrived)

    def _finish(self, flight: Flight, picture: Picture) -> None:
        """Decodes a picture; a decoder that fails on it touches no other."""
        try:
            latent, trace = flight.result(picture)
            began = time.perf_counter()
            (image,) = self.pipeline.decode(latent[None])
            trace = replace(trace, decode_s=time.perf_counter() - began)
        except Exception as error:
            flight.leave(picture)
            self._retry_or_fail([picture], error, flight.is_shared)
            return
        started = picture.ticket.arrived if picture.started is None else picture.started
        times = Times(started - picture.ticket.arrived, self._clock() - started, trace.decode_s)
        self.rates.run(picture.request, trace)
        self.rates.picture(self._spent())
        self._watch.finished(picture, image, trace, times)
        picture.ticket.publish(Drawn(picture.index, image, trace, times))
        flight.leave(picture)

    def _spent(self) -> float:
        """Engine seconds since the last finished picture."""
        spent, self._busy_s = self._busy_s, 0.0
        return spent

    def _leave(self) -> None:
        """Removes pictures that nobody waits for, and those whose time is over."""
        with self._changed:
            left = self._waiting.leave(self._is_over)
        for flight in self._flights:
            for picture in filter(self._is_over, tuple(flight.pictures)):
                flight.cancel(picture)
                left.append(picture)
        self._flights = [flight for flight in self._flights if flight.pictures]
        for picture in left:
            self._fail(picture, self._reason(picture))

    def _is_over(self, picture: Picture) -> bool:
        return picture.ticket.cancelled or picture.ticket.deadline <= self._clock()

    def _reason(self, picture: Picture) -> Refused:
        ticket = picture.ticket
        if ticket.cancelled:
            return Abandoned("the client went away")
        if ticket.own_deadline:
            return DeadlinePassed("the deadline passed before the picture was drawn", hint="allow more time")
        if picture.started is None:
            words = f"the request waited {self.limits.timeout_s:g} s"
            return QueueFull(words, hint="try again after the time in Retry-After", retry_s=self.rates.picture_s)
        return TimedOut(f"the request took longer than {self.limits.timeout_s:g} s", hint="ask for fewer pictures")

    def _came_down(self, flight: Flight, error: Exception) -> None:
        """Ends a flight whose step failed."""
        pictures = list(flight.pictures)
        flight.close()
        self._retry_or_fail(pictures, error, flight.is_shared)

    def _retry_or_fail(self, pictures: Sequence[Picture], error: Exception, shared: bool) -> None:
        """Puts pictures that shared calls, or memory, back to be tried once by themselves; else they fail."""
        again = shared or (isinstance(error, CapacityError) and self.in_flight > 0)
        for picture in pictures:
            if again and not picture.alone:
                picture.alone = True
                with self._changed:
                    self._waiting.add(picture)
                continue
            if not isinstance(error, LdpError):
                logger.error("a picture failed", exc_info=error)
            self._fail(picture, error)

    def _fail(self, picture: Picture, error: Exception) -> None:
        self._watch.failed(picture, error)
        picture.ticket.publish(Failed(picture.index, error))
