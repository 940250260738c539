"""Job: one request between the front, the scheduler and the client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from typing import Any

from ldp_serving.errors import Abandoned
from ldp_serving.events import Drawn, Event, Failed
from ldp_serving.files import encode
from ldp_serving.front.body import GenerationBody
from ldp_serving.front.requests import Asked
from ldp_serving.hooks import Hooks
from ldp_serving.model import ServedModel
from ldp_serving.waiting import Ticket

#: Receives the next message of a connection.
Receive = Callable[[], Any]


class Job:
    """A request that was taken on. Leaving its context cancels what is left of it.

    Args:
        files: threads that look at pictures and write their files, beside the engine.
    """

    def __init__(self, model: ServedModel, body: GenerationBody, asked: Asked, files: Executor, hooks: Hooks) -> None:
        self.model, self.body, self.asked = model, body, asked
        self._files, self._hooks = files, hooks
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self._ticket: Ticket | None = None
        self.key: str | None = None
        self.drawn: list[Drawn] = []
        self.encode_s = 0.0

    def submit(self, priority: int, key: str | None) -> None:
        """Hands the request to the scheduler.

        Raises:
            Refused: it does not take the request on.
        """
        deadline = self.body.deadline_ms
        self.key = key
        self._ticket = self.model.scheduler.submit(
            self.asked.images,
            self._publish,
            priority=priority,
            deadline_s=None if deadline is None else deadline / 1e3,
            partials=self.body.partial_images or 0,
        )

    def cancel(self) -> None:
        """Takes what is left of the request out at the next scale boundary."""
        if self._ticket is not None and len(self.drawn) < len(self.asked.images):
            self.model.scheduler.cancel(self._ticket)

    async def events(self, receive: Receive) -> AsyncGenerator[Event]:
        """Events until all pictures are drawn.

        Raises:
            Abandoned: the client went away.
            Exception: that of the first picture that failed.
        """
        left = asyncio.ensure_future(gone(receive))
        try:
            while len(self.drawn) < len(self.asked.images):
                event = await self._next(left)
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Drawn):
                    self.drawn.append(event)
                yield event
        finally:
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await left

    async def file(self, image: Any) -> bytes:
        """File of a picture, once the hook has let it pass.

        Raises:
            Rejected: the hook does not.
        """
        return await self._loop.run_in_executor(self._files, self._file, image)

    def _file(self, image: Any) -> bytes:
        self._hooks.check_picture(image, self.key)
        started = time.perf_counter()
        file = encode(image, self.body.format, self.body.output_compression)
        spent = time.perf_counter() - started
        self.encode_s += spent
        self.model.metrics.encoded(self.body.format, spent)
        return file

    async def _next(self, left: asyncio.Future[None]) -> Event:
        following = asyncio.ensure_future(self._events.get())
        done, _ = await asyncio.wait((following, left), return_when=asyncio.FIRST_COMPLETED)
        if following in done:
            return following.result()
        following.cancel()
        raise Abandoned("the client went away")

    def _publish(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


async def gone(receive: Receive) -> None:
    """Returns when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
