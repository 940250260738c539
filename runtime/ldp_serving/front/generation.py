"""One request for images, from its head to its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ldp_serving import tracing
from ldp_serving.errors import Abandoned, Refused
from ldp_serving.events import Drawn, Partial, ScaleDrawn
from ldp_serving.front import answers
from ldp_serving.front.body import BadRequest, GenerationBody, parse_body
from ldp_serving.front.job import Job, gone
from ldp_serving.front.keys import Key
from ldp_serving.front.requests import to_requests
from ldp_serving.front.service import Service
from ldp_serving.model import ServedModel

logger = logging.getLogger(__name__)

#: Most bytes of a request's body, and the seconds in which it must have arrived.
MOST_BODY = 64 * 1024
BODY_S = 20.0

#: Seconds in which a client may read why its stream breaks.
_READ_S = 1.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Generation:
    """One request for images, from its head to its answer; told in five steps: `answer` names them."""

    def __init__(self, service: Service, request: Request) -> None:
        self._service, self._request = service, request
        given = request.headers.get("x-request-id", "")
        self._id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        self._started = time.monotonic()
        self._model: ServedModel | None = None
        self._job: Job | None = None
        self._body: GenerationBody | None = None
        self._key: str | None = None
        self._stack = contextlib.ExitStack()

    async def answer(self) -> Response:
        """Checks the key and the body, submits the request, and answers it whole or as a stream."""
        try:
            key = self._service.keys.find(self._request.headers.get("authorization"))
            self._key = key.name
            body = self._body = parse_body(await self._read())
            job = await self._submit(body, key)
            events = job.events(self._request.receive)
            if body.stream:
                return await self._stream(job, events)
            return await self._whole(job, events)
        except ClientDisconnect:
            return self._failed(Abandoned("the client went away"))
        except Exception as error:
            return self._failed(error)
        except BaseException as error:  # the server is stopping
            self._end(answers.outcome(error), error)
            raise

    async def _read(self) -> bytes:
        """The body, if it is JSON and neither too large nor too slow."""
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise BadRequest("the body must be sent as application/json", None, "unsupported_media_type", 415)
        return await read_body(self._request)

    async def _submit(self, body: GenerationBody, key: Key) -> Job:
        service = self._service
        model = self._model = service.model(body.model)
        asked = to_requests(body, model, service.most_images)
        for text in filter(None, (body.prompt, body.negative_prompt)):
            await asyncio.get_running_loop().run_in_executor(service.files, service.hooks.check_prompt, text, key.name)
        self._stack.enter_context(key.admitted(len(asked.images)))
        self._job = Job(model, body, asked, service.files, service.hooks)
        self._job.submit(key.priority, key.name)
        return self._job

    async def _whole(self, job: Job, events: AsyncGenerator[Any]) -> Response:
        files: dict[int, bytes] = {}
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Drawn):
                    files[event.index] = await job.file(event.image)
        drawn = sorted(job.drawn, key=lambda picture: picture.index)
        body = answers.pictures(job.body, job.asked, drawn, [files[picture.index] for picture in drawn])
        headers = self._headers() | {"server-timing": _timing(job)}
        self._end("completed")
        return JSONResponse(body, headers=headers)

    async def _stream(self, job: Job, events: AsyncGenerator[Any]) -> Response:
        """Stream of events; a request that fails before its first event is answered with a status of its own."""
        sent = self._sent(job, events)
        first = await anext(sent)
        return _EventStream(first, sent, self._service.send_s, self._headers(), self._failed)

    async def _sent(self, job: Job, events: AsyncGenerator[Any]) -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Partial):
                    fields = answers.partial_fields(job.body, job.asked, event)
                    yield answers.event(fields, await job.file(event.image))
                elif isinstance(event, Drawn):
                    fields = answers.completed_fields(job.body, job.asked, event)
                    yield answers.event(fields, await job.file(event.image))
                elif isinstance(event, ScaleDrawn) and job.body.stream_scales:
                    yield answers.event(answers.scale_fields(event))
        yield answers.STREAM_END
        self._end("completed")

    def _failed(self, error: Exception) -> Response:
        """Ends the request with an error; what is left of it is cancelled."""
        if isinstance(error, Refused) and self._model is not None:
            self._model.metrics.refused(error)
        outcome = answers.outcome(error)
        if outcome == "failed":
            logger.error("request %s failed", self._id, exc_info=error)
        self._end(outcome, error)
        return error_response(error, self._headers())

    def _headers(self) -> dict[str, str]:
        return {"x-request-id": self._id}

    def _end(self, outcome: str, error: BaseException | None = None) -> None:
        """Counts, logs and traces the request, once."""
        if self._job is not None:
            self._job.cancel()
        self._stack.close()
        seconds = time.monotonic() - self._started
        drawn = [] if self._job is None else self._job.drawn
        name = "none" if self._model is None else self._model.name
        if self._model is not None:
            self._model.metrics.request(outcome, seconds)
        tracing.record(dict(self._request.headers), name, self._id, outcome, seconds, drawn)
        logger.info("%s", json.dumps(self._entry(outcome, seconds, name, error)), extra={"is_json": True})

    def _entry(self, outcome: str, seconds: float, name: str, error: BaseException | None) -> dict[str, Any]:
        """Line of the log; it holds no prompt unless the operator asked for that."""
        entry: dict[str, Any] = {"request": self._id, "key": self._key, "model": name, "outcome": outcome}
        entry["seconds"] = round(seconds, 4)
        if error is not None:
            entry["error"] = error.reason if isinstance(error, Refused) else type(error).__name__
        if self._job is not None:
            body, drawn = self._job.body, self._job.drawn
            entry |= {"pictures": body.count, "size": self._job.asked.size, "stream": bool(body.stream)}
            entry |= {"tokens": sum(p.trace.tokens for p in drawn), "seeds": [p.trace.seed for p in drawn]}
        if self._service.log_prompts and self._body is not None:
            entry["prompt"] = self._body.prompt
        return entry


class _EventStream(Response):
    """Server-sent events. A stream that breaks ends with an error event, and never with the end of a complete one."""

    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes], send_s: float, headers: dict[str, str], failed: Any
    ) -> None:
        super().__init__(headers=headers | {"cache-control": "no-store", "x-accel-buffering": "no"})
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        del self.headers["content-length"]
        self._first, self._rest, self._send_s, self._failed = first, rest, send_s, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._part(send, self._first)
            async for part in self._rest:
                await self._part(send, part)
        except Exception as error:
            await self._rest.aclose()
            self._failed(error)
            if not isinstance(error, Abandoned | TimeoutError):
                with contextlib.suppress(TimeoutError):
                    await self._part(send, answers.error_event(error))
                    async with asyncio.timeout(_READ_S):  # browsers drop what they have not read when a stream breaks
                        await gone(receive)
            return  # the connection is closed: its last chunk is missing
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _part(self, send: Send, part: bytes) -> None:
        async with asyncio.timeout(self._send_s):
            await send({"type": "http.response.body", "body": part, "more_body": True})


async def read_body(request: Request) -> bytes:
    """Body of a request.

    Raises:
        BadRequest: it is too large (status 413) or too slow (status 408).
        ClientDisconnect: the client went away.
    """
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                raw += part
                if len(raw) > MOST_BODY:
                    raise BadRequest(f"the body has more than {MOST_BODY} bytes", None, "body_too_large", 413)
    except TimeoutError:
        raise BadRequest(f"the body did not arrive in {BODY_S:g} s", None, "request_timeout", 408) from None
    return bytes(raw)


def error_response(error: Exception, headers: dict[str, str] | None = None) -> Response:
    status, body, more = answers.error_answer(error)
    return JSONResponse(body, status, headers=(headers or {}) | more)


def _timing(job: Job) -> str:
    """Value of `Server-Timing`, in milliseconds: the picture that took longest."""
    last = max(job.drawn, key=lambda picture: picture.times.queued_s + picture.times.drawing_s)
    times = last.times
    parts = {"queue": times.queued_s, "draw": times.drawing_s, "decode": times.decode_s, "encode": job.encode_s}
    return ", ".join(f"{name};dur={1e3 * seconds:.1f}" for name, seconds in parts.items())
