"""What arrives on the socket: keys, limits, garbage, clients that leave or do not read, and what operators ask."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.http_server import Running, running
from helpers.serving import watched
from helpers.waiting import HANGS
from ldp_runtime import Pipeline
from ldp_runtime.errors import ConfigError
from ldp_serving.errors import Rejected
from ldp_serving.front.generation import MOST_BODY
from ldp_serving.front.keys import Key, read_keys
from ldp_serving.front.run import ServeOptions
from ldp_serving.hooks import Hooks, load_hooks

PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def server(small_pipe: Pipeline) -> Iterator[Running]:
    with running(small_pipe, cors_origins=("https://example.org",)) as started:
        yield started


def ask(
    server: Running, method: str = "POST", path: str = PATH, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server.port, timeout=60)
    try:
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if raw is not None:
            named.setdefault("content-type", "application/json")
        connection.request(method, path, raw, named)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def error(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    return json.loads(answer[2])["error"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"null", 400, "invalid_json"),
        (b'{"prompt": "\\ud800"}', 400, "invalid_json"),
        (b'{"prompt": "\xff"}', 400, "invalid_json"),
        (b"[" * 5000, 400, "invalid_json"),
        (b'{"prompt": 1}', 400, "invalid_value"),
        (b'{"n": 1}', 400, "missing_required_parameter"),
        (b'{"prompt": "blue", "temperature": NaN}', 400, "invalid_value"),
        (b'{"prompt": "blue", "temperature": 1e999}', 400, "invalid_value"),
        (b'{"prompt": "' + b"x" * MOST_BODY + b'"}', 413, "body_too_large"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bodies_that_are_none(server: Running, body: bytes, status: int, code: str) -> None:
    answer = ask(server, body=body)
    assert (answer[0], error(answer)["code"]) == (status, code)
    assert answer[1]["x-request-id"].startswith("req_")


def test_only_json_is_read(server: Running) -> None:
    """A web page can send other types without asking first."""
    answer = ask(server, body=b'{"prompt": "blue"}', content_type="text/plain")
    assert (answer[0], error(answer)["code"]) == (415, "unsupported_media_type")


def test_a_body_without_a_length_is_bounded_too(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.server.port), timeout=30) as connection:
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):  # the server may have closed already
            for _ in range(MOST_BODY // 4096 + 2):
                connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 100, b"GET\r\n\r\n", b"x: " + b"y" * 40_000],
    ids=["tls", "zeros", "half a line", "long"],
)
def test_garbage_is_answered_and_closed(server: Running, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.server.port), timeout=30) as connection:
        connection.sendall(data + b"\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 400")
    assert b"Traceback" not in received
    assert ask(server, "GET", "/health")[0] == 200


def test_addresses_that_are_not_there(server: Running) -> None:
    assert error(ask(server, "GET", "/v2/images"))["code"] == "not_found"
    answer = ask(server, "GET", PATH)
    assert (answer[0], error(answer)["type"]) == (405, "invalid_request_error")
    assert ask(server, "GET", "/docs")[0] == 404


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_probes_may_ask_for_the_head_alone(server: Running, path: str) -> None:
    status, _, body = ask(server, "HEAD", path)
    assert (status, body) == (200, b"")


def test_request_ids(server: Running) -> None:
    body = {"prompt": "blue", "seed": 1}
    assert ask(server, body=body, x_request_id="mine-1")[1]["x-request-id"] == "mine-1"
    for wrong in ("x" * 200, "a b"):
        assert ask(server, body=body, x_request_id=wrong)[1]["x-request-id"].startswith("req_")


def test_cors(server: Running) -> None:
    headers = {"access_control_request_method": "POST", "access_control_request_headers": "content-type"}
    allowed = ask(server, "OPTIONS", origin="https://example.org", **headers)
    assert allowed[1]["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-origin" not in ask(server, "OPTIONS", origin="https://other.org", **headers)[1]


def test_times_are_told(server: Running) -> None:
    _, headers, _ = ask(server, body={"prompt": "blue", "seed": 1})
    names = [part.split(";")[0] for part in headers["server-timing"].split(", ")]
    assert names == ["queue", "draw", "decode", "encode"]


def stream(server: Running, **body: Any) -> socket.socket:
    """A connection that asked for a stream."""
    connection = socket.create_connection(("127.0.0.1", server.server.port), timeout=60)
    raw = json.dumps({"prompt": "blue", "stream": True, "stream_scales": True} | body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    connection.sendall(head.encode() + raw)
    return connection


def await_scale(connection: socket.socket) -> None:
    """Reads until the first scale is drawn."""
    received = b""
    while b"ldp.scale" not in received:
        part = connection.recv(4096)
        assert part, received
        received += part


def test_leaving_in_mid_stream_cancels_that_request_only(server: Running) -> None:
    server.settle()
    drawn = server.metric("ldp_pictures_total", model="small")
    gone = server.metric("ldp_refusals_total", model="small", reason="disconnected")
    leaving = stream(server, n=10, policy="none")
    await_scale(leaving)
    staying = stream(server, seed=1)
    leaving.close()
    assert b"[DONE]" in _read_stream(staying)
    server.settle()
    assert server.metric("ldp_refusals_total", model="small", reason="disconnected") == gone + 1
    assert server.metric("ldp_pictures_total", model="small") - drawn < 11


def _read_stream(connection: socket.socket) -> bytes:
    """All of a chunked answer."""
    received = b""
    with connection:
        while not received.endswith(b"0\r\n\r\n"):
            part = connection.recv(65536)
            if not part:
                break
            received += part
    return received


def test_a_stream_that_breaks_never_looks_complete(small_pipe: Pipeline) -> None:
    def before(name: str, inputs: Any) -> None:
        if name == "decoder":
            raise RuntimeError("secret of the engine at /home/me")

    with running_broken(small_pipe, before) as server:
        received = _read_stream(stream(server, seed=1))
        assert b"ldp.scale" in received
        assert b"event: error\n" in received
        assert b"completed" not in received
        assert b"[DONE]" not in received
        assert not received.endswith(b"0\r\n\r\n")
        answer = ask(server, body={"prompt": "blue", "seed": 1})
        assert answer[0] == 500
        assert b"secret" not in received + answer[2]
        assert b"Traceback" not in received + answer[2]


@contextlib.contextmanager
def running_broken(pipe: Pipeline, before: Callable[[str, Any], None]) -> Iterator[Running]:
    """A server whose engines fail once it is warm."""
    warm = False
    with running(watched(pipe, lambda name, inputs: before(name, inputs) if warm else None)) as server:
        warm = True
        yield server


def test_what_operators_ask(server: Running) -> None:
    assert json.loads(ask(server, "GET", "/ready")[2]) == {"ready": True, "loaded": True, "draining": False}
    versions = json.loads(ask(server, "GET", "/version")[2])
    assert versions["bundles"] == {"small": server.pipe.manifest.digest}
    ask(server, body={"prompt": "blue", "seed": 1})
    page = ask(server, "GET", "/metrics")[2].decode()
    assert 'ldp_requests_total{model="small",outcome="completed"}' in page
    assert "python_" not in page


KEYS = """
# a comment
first  0123456789abcdef0123  priority=2 rate=3
second aaaabbbbccccddddeeee  concurrency=2
"""


def test_keys(small_pipe: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(KEYS)
    body = {"prompt": "blue", "seed": 1}
    with running(small_pipe, api_key_file=file) as server:
        for wrong in ({}, {"authorization": "Bearer no"}, {"authorization": "0123456789abcdef0123"}):
            answer = ask(server, body=body, **wrong)
            assert (answer[0], error(answer)["code"]) == (401, "invalid_api_key")
            assert ask(server, "GET", "/v1/models", **wrong)[0] == 401
        assert ask(server, "GET", "/health")[0] == 200
        first = {"authorization": "Bearer 0123456789abcdef0123"}
        assert ask(server, body=body | {"n": 3}, **first)[0] == 200
        answer = ask(server, body=body, **first)
        assert (answer[0], error(answer)["code"]) == (429, "rate_limited")
        assert 1 <= int(answer[1]["retry-after"]) <= 20
        second = {"authorization": "Bearer aaaabbbbccccddddeeee"}
        assert ask(server, body=body | {"n": 3}, **second)[0] == 429
        assert ask(server, body=body | {"n": 2}, **second)[0] == 200


def test_a_rate_comes_back_with_time() -> None:
    now = 0.0
    key = Key("one", rate=60, clock=lambda: now)
    with key.admitted(60):
        pass
    now = 2.0
    with key.admitted(2):
        pass
    with pytest.raises(Exception, match="60 pictures a minute") as caught, key.admitted(3):
        pass
    assert caught.value.retry_s == pytest.approx(3.0)  # pyright: ignore


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("one", "is not a key"),
        ("one short", "has 5 characters"),
        ("one 0123456789abcdef fast=1", "unknown setting"),
        ("one 0123456789abcdef rate=0", "at least 1"),
        ("one 0123456789abcdef\none 0123456789abcdeX", "twice"),
        ("one 0123456789abcdef\ntwo 0123456789abcdef", "twice"),
    ],
)
def test_files_of_keys_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_keys(file)
    assert "0123456789" not in str(caught.value)


class NoBlue(Hooks):
    """Lets neither blue prompts nor any picture of the second client pass."""

    def check_prompt(self, prompt: str, key: str | None) -> None:
        if "blue" in prompt:
            raise Rejected("blue is not drawn here")

    def check_picture(self, image: Any, key: str | None) -> None:
        if image.size == (44, 88):
            raise Rejected("the picture was held back")


no_blue = NoBlue()


def test_hooks(small_pipe: Pipeline) -> None:
    with running(small_pipe) as server:
        server.service.hooks = no_blue
        for body, message in (
            ({"prompt": "blue"}, "blue is not drawn here"),
            ({"prompt": "red", "negative_prompt": "blue"}, "blue is not drawn here"),
            ({"prompt": "red", "size": "44x88"}, "the picture was held back"),
        ):
            answer = ask(server, body=body)
            assert (answer[0], error(answer)["code"]) == (400, "content_policy_violation")
            assert error(answer)["message"] == message
        received = _read_stream(stream(server, prompt="red", size="44x88", stream_scales=False, partial_images=2))
        assert received.startswith(b"HTTP/1.1 400"), "the picture is seen before any preview leaves"
        assert ask(server, body={"prompt": "red", "seed": 1})[0] == 200


def test_hooks_are_found_by_name() -> None:
    assert isinstance(load_hooks("ldp_serving.hooks:Hooks"), type)
    for wrong in ("nowhere:x", "json:nothing", "json:loads", "json"):
        with pytest.raises(ConfigError, match=r"hooks|check_prompt"):
            load_hooks(wrong)


def test_draining_refuses_and_finishes(small_pipe: Pipeline) -> None:
    with running(small_pipe, drain_s=30) as server:
        running_one = stream(server, n=4, seed=1, policy="none")
        await_scale(running_one)
        server.server.handle_exit(15, None)
        answer = ask(server, body={"prompt": "blue"})
        assert (answer[0], answer[1]["x-should-retry"]) == (503, "false")
        assert ask(server, "GET", "/ready")[0] == 503
        assert _read_stream(running_one).count(b"event: image_generation.completed") == 4
        ends = time.monotonic() + 30
        while server.server.started and time.monotonic() < ends and not server.server.should_exit:
            time.sleep(0.02)
        assert server.server.should_exit


def test_shadows_measure_what_pruning_changes(small_pipe: Pipeline) -> None:
    with running(small_pipe, shadow_rate=1.0) as server:
        before = server.metric("ldp_shadow_psnr_db_count", model="small")
        for seed in range(3):
            assert ask(server, body={"prompt": "blue", "seed": seed})[0] == 200
        ends = time.monotonic() + HANGS  # a twin is handed in after its picture's answer
        while server.metric("ldp_shadow_psnr_db_count", model="small") - before < 3 and time.monotonic() < ends:
            time.sleep(0.02)
        assert server.metric("ldp_shadow_psnr_db_count", model="small") - before == 3
        assert server.metric("ldp_shadow_psnr_db_sum", model="small") > 0
        assert ask(server, body={"prompt": "blue", "seed": 1, "policy": "none"})[0] == 200
        server.settle()
        assert server.metric("ldp_shadow_psnr_db_count", model="small") - before == 3


def test_connections_are_bounded(small_pipe: Pipeline) -> None:
    with running(small_pipe, max_connections=3) as server:
        address = ("127.0.0.1", server.server.port)
        held = [socket.create_connection(address, timeout=30) for _ in range(3)]
        ends = time.monotonic() + 30
        while len(server.server.server_state.connections) < 3 and time.monotonic() < ends:
            time.sleep(0.01)
        with socket.create_connection(address, timeout=30) as beyond:
            received = b""
            with contextlib.suppress(OSError):
                beyond.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                received = beyond.recv(64)
            assert not received
        for connection in held:
            connection.close()


def test_slow_heads_are_cut_off(small_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_serving.front.protocol.HEAD_S", 0.2)
    with running(small_pipe) as server, socket.create_connection(("127.0.0.1", server.server.port), timeout=30) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nhost:")
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(64) == b""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"host": "::"}, "can be reached from other machines"),
        ({"max_images": 65}, "max-images"),
        ({"max_images": 0}, "max-images"),
        ({"shadow_rate": 1.5}, "shadow-rate"),
        ({"max_queue": 0}, "max_queue"),
        ({"timeout_s": 0.0}, "positive"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeOptions((), **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    ServeOptions((), host=host)
    ServeOptions((), host="0.0.0.0", insecure=True)
