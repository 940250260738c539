"""Gate: HTTP in front of the replicas. A request whose replica dies before its first byte went out is asked again."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ldp_serving.errors import ReplicaLost
from ldp_serving.front import answers
from ldp_serving.front.body import BadRequest
from ldp_serving.front.generation import error_response, read_body
from ldp_serving.ray_app.pages import joined
from ldp_serving.ray_app.relay import plain_scope

logger = logging.getLogger(__name__)

#: Replicas that a request is given to, one after the other, before its client is told of the failure.
_TRIES = 3


class Gate:
    """Ingress of the fleet. It holds no pipeline and reads no request: replicas answer, errors and overload too."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas
        self._answers: Any = replicas.options(method_name="answer", stream=True)

    async def __call__(self, request: Request) -> Response:
        """Answer to a request."""
        if request.url.path == "/metrics" and request.method == "GET":
            return await self._metrics()
        try:
            body = await read_body(request)
        except BadRequest as error:
            return error_response(error)
        for attempt in range(_TRIES):
            try:
                return await self._relayed(plain_scope(request.scope), body)
            except RayActorError as error:
                logger.warning("a replica died before it answered, try %d: %s", attempt + 1, error)
        return error_response(ReplicaLost("the replicas that drew the pictures died", retry_s=1.0))

    async def _relayed(self, scope: dict[str, Any], body: bytes) -> Response:
        """Answer of one replica, whose first byte is there; an answer that is no stream is there as a whole.

        Raises:
            RayActorError: the replica died.
        """
        parts = self._ask(scope, body)
        start = await anext(parts)
        if not _is_stream(start):
            content = b"".join([part.get("body", b"") async for part in parts])
            answer = Response(content, start["status"])
            answer.raw_headers = start["headers"]
            return answer
        return _Stream(start, await anext(parts), parts)

    async def _ask(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message]:
        """Messages of one replica; leaving them cancels the request there."""
        asked = self._answers.remote(scope, body)
        try:
            async for message in asked:
                yield message
        finally:
            asked.cancel()

    async def _metrics(self) -> Response:
        pages = await self._replicas.broadcast("metrics").results_async(timeout_s=10, return_exceptions=True)
        text = joined([page for page in pages if isinstance(page, str)])
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _is_stream(start: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"])


class _Stream(Response):
    """Stream of a replica. If the replica dies it ends with an error event, and without the end of a complete one."""

    def __init__(self, start: Message, first: Message, rest: AsyncGenerator[Message]) -> None:
        super().__init__(status_code=start["status"])
        self.raw_headers = start["headers"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._rest):
            await send(self._first)
            try:
                async for part in self._rest:
                    await send(part)
            except RayActorError:
                event = answers.error_event(ReplicaLost("the replica that drew the pictures died"))
                await send({"type": "http.response.body", "body": event, "more_body": False})
