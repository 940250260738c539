"""Requests relayed: an application's messages as a stream, and several pages of metrics as one."""

from __future__ import annotations

import asyncio
from typing import Any

from ldp_serving.ray_app.pages import joined
from ldp_serving.ray_app.relay import messages, plain_scope


async def echo(scope: Any, receive: Any, send: Any) -> None:
    request = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": request["body"] + scope["path"].encode(), "more_body": True})
    assert (await receive())["type"] == "http.disconnect"
    await send({"type": "http.response.body", "body": b"late", "more_body": False})


def test_messages_come_as_the_application_sends_them_until_the_receiver_leaves() -> None:
    async def take() -> tuple[list[Any], int]:
        stream = messages(echo, {"path": "/here"}, b"body ")
        taken = [await anext(stream), await anext(stream)]
        await stream.aclose()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.gather(*left)
        return taken, len(left)

    taken, left = asyncio.run(take())
    assert [message["type"] for message in taken] == ["http.response.start", "http.response.body"]
    assert taken[1]["body"] == b"body /here"
    assert left == 1


def test_an_application_that_raises_ends_the_stream() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        raise ValueError("told already")

    async def take() -> list[Any]:
        return [message async for message in messages(broken, {}, b"")]

    assert [message["status"] for message in asyncio.run(take())] == [500]


def test_a_scope_keeps_what_another_process_needs() -> None:
    scope = {"type": "http", "path": "/", "headers": [(b"a", b"b")], "app": object(), "state": {}}
    assert plain_scope(scope) == {"type": "http", "path": "/", "headers": [(b"a", b"b")]}


def test_pages_of_metrics_are_joined() -> None:
    page = '# HELP ldp_pictures_total Drawn\n# TYPE ldp_pictures_total counter\nldp_pictures_total{{model="a"}} {}\n'
    text = joined([page.format(1.0), page.format(4.0)]).decode()
    assert text.count("# TYPE ldp_pictures_total counter") == 1
    assert 'ldp_pictures_total{model="a",replica="0"} 1.0' in text
    assert 'ldp_pictures_total{model="a",replica="1"} 4.0' in text
