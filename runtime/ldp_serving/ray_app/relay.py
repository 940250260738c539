"""Relay of requests between processes: an ASGI application as a stream of messages that can be sent on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.types import ASGIApp, Message

logger = logging.getLogger(__name__)

#: Parts of a request's scope that another process needs.
_SCOPE = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
)

#: Requests whose receivers have gone, until their application has ended them.
_ending: set[asyncio.Task[None]] = set()


def plain_scope(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Scope of a request without what belongs to this process."""
    return {name: scope[name] for name in _SCOPE if name in scope}


async def messages(app: ASGIApp, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message]:
    """Messages with which an application answers a request. Closing the stream disconnects the client.

    Args:
        body: whole body of the request.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, sent.put)
        except Exception as error:  # it has been answered
            logger.error("a request failed", exc_info=error)
        finally:
            await sent.put(None)

    task = asyncio.create_task(run())
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    try:
        while (message := await sent.get()) is not None:
            yield message
    finally:
        gone.set()
