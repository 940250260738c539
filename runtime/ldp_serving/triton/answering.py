"""Answering of Triton's requests: each is a job of the server's own front, on the event loop of one thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from ldp_serving.errors import Refused
from ldp_serving.events import Drawn, Partial, ScaleDrawn
from ldp_serving.front import answers
from ldp_serving.front.body import GenerationBody
from ldp_serving.front.job import Job
from ldp_serving.front.requests import to_requests
from ldp_serving.hooks import Hooks
from ldp_serving.model import ServedModel
from ldp_serving.triton.fields import to_body

logger = logging.getLogger(__name__)

#: Seconds between two questions whether a client has cancelled.
_POLL_S = 0.02
#: Seconds between two reports of what was counted.
_REPORT_S = 1.0


class Reply(Protocol):
    """Responses to one request. Each call may take as long as Triton takes."""

    def send(self, fields: str, file: bytes, last: bool) -> None:
        """Sends a response: a JSON object, and a picture's file or nothing."""
        ...

    def fail(self, message: str, status: int) -> None:
        """Sends an error as the last response.

        Args:
            message: OpenAI's error object, as JSON.
            status: the server's HTTP status for it.
        """
        ...

    def is_cancelled(self) -> bool:
        """True once the client wants no more responses."""
        ...


class Answering:
    """Requests of one model, from any thread.

    Args:
        most_images: most pictures of a request.
        report: is called about once a second.
    """

    def __init__(
        self, model: ServedModel, hooks: Hooks, most_images: int, report: Callable[[], None] = lambda: None
    ) -> None:
        self._model, self._hooks, self._most_images, self._report = model, hooks, most_images, report
        self._files = ThreadPoolExecutor(2, "ldp-files")
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ldp-front", daemon=True)
        self._thread.start()
        self._reporting = asyncio.run_coroutine_threadsafe(self._report_often(), self._loop)

    def take(self, tensors: Mapping[str, Any], parameters: Mapping[str, Any], reply: Reply) -> None:
        """Takes a request on; its responses go to `reply`.

        Args:
            tensors: the inputs, NumPy arrays of one element, which must not change afterwards.
        """

        def begin() -> None:
            task = self._loop.create_task(self._answer(tensors, parameters, reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    def close(self) -> None:
        """Gives up what is left, whose clients are told, and releases the engines."""
        self._model.scheduler.close()
        self._reporting.cancel()
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._files.shutdown()
        self._model.pipeline.close()
        self._report()

    async def _finish(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _report_often(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            await self._loop.run_in_executor(self._files, self._report)

    async def _answer(self, tensors: Mapping[str, Any], parameters: Mapping[str, Any], reply: Reply) -> None:
        """Answers a request; whatever happens, the last response is sent."""
        started, outcome = time.monotonic(), "completed"
        try:
            await self._send(to_body(tensors, parameters), reply)
        except Exception as error:
            outcome = answers.outcome(error)
            if isinstance(error, Refused):
                self._model.metrics.refused(error)
            if outcome == "failed":
                logger.error("a request failed", exc_info=error)
            status, told, _ = answers.error_answer(error)
            with contextlib.suppress(Exception):  # the client has gone
                await self._loop.run_in_executor(self._files, reply.fail, json.dumps(told), status)
        self._model.metrics.request(outcome, time.monotonic() - started)

    async def _send(self, body: GenerationBody, reply: Reply) -> None:
        asked = to_requests(body, self._model, self._most_images)
        for text in filter(None, (body.prompt, body.negative_prompt)):
            await self._loop.run_in_executor(self._files, self._hooks.check_prompt, text, None)
        job = Job(self._model, body, asked, self._files, self._hooks)
        job.submit(0, None)
        try:
            async with contextlib.aclosing(job.events(lambda: _gone(reply))) as events:
                async for event in events:
                    await self._tell(job, event, reply)
        finally:
            job.cancel()

    async def _tell(self, job: Job, event: Any, reply: Reply) -> None:
        """Sends what clients are told of an event: partial images, pictures, and scales if asked for."""
        file, last = b"", False
        if isinstance(event, Partial):
            fields = answers.partial_fields(job.body, job.asked, event)
            file = await job.file(event.image)
        elif isinstance(event, Drawn):
            fields = answers.completed_fields(job.body, job.asked, event)
            file, last = await job.file(event.image), len(job.drawn) == len(job.asked.images)
        elif isinstance(event, ScaleDrawn) and job.body.stream_scales:
            fields = answers.scale_fields(event)
        else:
            return
        if job.body.response_format == "b64_json":
            file = answers.base64_of(file).encode()
        await self._loop.run_in_executor(self._files, reply.send, json.dumps(fields), file, last)


async def _gone(reply: Reply) -> dict[str, str]:
    """Waits until a client has cancelled; the message is that of a connection that is closed."""
    while not reply.is_cancelled():
        await asyncio.sleep(_POLL_S)
    return {"type": "http.disconnect"}
