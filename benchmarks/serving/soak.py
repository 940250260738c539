"""Soak of a server: random requests, cancels, disconnects, slow readers and garbage, from a seed.

Every accepted request must be answered or cancelled, every picture equal to the one drawn alone, and memory, threads
and descriptors flat.

    python -m benchmarks.serving.soak BUNDLE --minutes 30
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ldp_runtime import Pipeline
from PIL import Image

PATH = "/v1/images/generations"
#: Requests that a soak sends; few, so that each can be drawn alone.
REQUESTS: tuple[dict[str, Any], ...] = tuple(
    {"prompt": prompt, "policy": policy, "seed": seed} | more
    for seed, (prompt, policy, more) in enumerate(
        (
            ("a red circle", "ld", {}),
            ("green star", "none", {"guidance_scale": 1.0}),
            ("blue", "ld", {"aspect_ratio": 2.0}),
            ("a red circle", "none", {"temperature": 1.2}),
            ("blue", "ld", {"negative_prompt": "green star"}),
            ("green star", "ld", {"aspect_ratio": 0.5}),
        )
    )
)
GARBAGE = (b"\x16\x03\x01\x02\x00\x01", b"\x00" * 300, b"GET /\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"y" * 70_000)
BODIES = (b"{", b"[]", b"\xff\xfe", b'{"prompt": 3}', b'{"prompt": "blue", "steps": 4}', b" " * 70_000)


@dataclass
class Soak:
    """One soak: its clients, what they saw, and what was wrong.

    Args:
        expected: pixels of each of `REQUESTS`, drawn alone.
    """

    port: int
    expected: list[bytes]
    seed: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self, is_over: Callable[[int], bool], clients: int = 4) -> None:
        """Runs clients until `is_over` says so of the number of actions of a client."""
        threads = [threading.Thread(target=self._client, args=(i, is_over)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int, is_over: Callable[[int], bool]) -> None:
        generator, count = random.Random(f"{self.seed}/{number}"), 0
        actions = (
            self._whole, self._whole, self._stream, self._stream, self._leave, self._leave, self._slow,
            self._malformed, self._garbage,
        )  # fmt: skip
        while not is_over(count):
            action = generator.choice(actions)
            try:
                action(generator)
                self.seen[action.__name__.strip("_")] += 1
            except Exception as error:
                self.wrong.append(f"{action.__name__}: {type(error).__name__}: {error}")
            count += 1

    def _whole(self, generator: random.Random) -> None:
        at = generator.randrange(len(REQUESTS))
        status, body = self._ask(REQUESTS[at])
        if status == 429:
            self.seen["refused"] += 1
            return
        self._check(status == 200, f"status {status}: {body[:200]!r}")
        self._compare(at, json.loads(body)["data"][0]["b64_json"])

    def _stream(self, generator: random.Random, pause: float = 0.0) -> None:
        at = generator.randrange(len(REQUESTS))
        body = REQUESTS[at] | {"stream": True, "partial_images": generator.randrange(4)}
        status, raw = self._ask(body, pause)
        if status == 429:
            self.seen["refused"] += 1
            return
        self._check(status == 200 and raw.endswith(b"data: [DONE]\n\n"), f"the stream ended with {raw[-80:]!r}")
        events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
        self._compare(at, events[-1]["b64_json"])

    def _slow(self, generator: random.Random) -> None:
        self._stream(generator, pause=0.02)

    def _leave(self, generator: random.Random) -> None:
        """Asks, reads a little or nothing, and goes away."""
        body = generator.choice(REQUESTS) | {"stream": True, "stream_scales": True, "n": generator.randrange(1, 5)}
        with self._connected(body) as connection:
            connection.settimeout(generator.choice((0.005, 0.05, 0.5)))
            with contextlib.suppress(TimeoutError):
                connection.recv(generator.choice((1, 1000, 100_000)))

    def _malformed(self, generator: random.Random) -> None:
        status, _ = self._ask(generator.choice(BODIES))
        self._check(status in (400, 413), f"a malformed body was answered with {status}")

    def _garbage(self, generator: random.Random) -> None:
        """Sends what is no request; the server may close while it is sent."""
        address = ("127.0.0.1", self.port)
        with socket.create_connection(address, timeout=60) as connection, contextlib.suppress(OSError):
            connection.sendall(generator.choice(GARBAGE) + b"\r\n\r\n")
            answer = connection.recv(4096)
            self._check(answer.startswith(b"HTTP/1.1 4") or not answer, f"garbage was answered with {answer[:80]!r}")

    def _ask(self, body: Mapping[str, Any] | bytes, pause: float = 0.0) -> tuple[int, bytes]:
        """Status and body of an answer, read in small parts if there is a pause."""
        with self._connected(body) as connection:
            answer = http_response(connection)
            parts = []
            try:
                while part := answer.read(4096 if pause else 1 << 20):
                    parts.append(part)
                    time.sleep(pause)
            finally:
                answer.close()
            return answer.status, b"".join(parts)

    def _connected(self, body: Mapping[str, Any] | bytes) -> socket.socket:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: soak\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):  # refused before it is sent
            connection.sendall(raw)
        return connection

    def _compare(self, at: int, data: str) -> None:
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            self._check(picture.tobytes() == self.expected[at], f"request {at} was not drawn as it is alone")

    def _check(self, right: bool, words: str) -> None:
        if not right:
            raise AssertionError(words)


def http_response(connection: socket.socket) -> Any:
    """Answer that begins on a connection, with its head read."""
    import http.client

    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer


def draw_alone(pipeline: Pipeline) -> list[bytes]:
    """Pixels of each of `REQUESTS`, drawn one by one."""
    return [pipeline(**request).images[0].tobytes() for request in REQUESTS]


def footprint(process: psutil.Process) -> dict[str, int]:
    """Memory in MiB, threads and descriptors of a process."""
    return {
        "rss_mib": process.memory_info().rss >> 20,
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Starts a server of its own, soaks it, and prints what was seen; status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=8455)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    with Pipeline.load(options.bundle) as pipeline:
        expected = draw_alone(pipeline)
    command = [sys.executable, "-m", "ldp_export", "serve", str(options.bundle), "--port", str(options.port)]
    server = subprocess.Popen([*command, "--allow-policy", "none"], stderr=subprocess.DEVNULL)
    try:
        await_ready(options.port, server)
        soak, prints = Soak(options.port, expected, options.seed), []
        ends = time.monotonic() + 60 * options.minutes
        done = threading.Event()

        def follow() -> None:
            while not done.wait(min(60.0, 6 * options.minutes)):
                prints.append(footprint(psutil.Process(server.pid)))
                print(json.dumps(prints[-1] | dict(soak.seen)), flush=True)

        follower = threading.Thread(target=follow)
        follower.start()
        soak.run(lambda _: time.monotonic() > ends)
        done.set()
        follower.join()
        time.sleep(2)
        after = footprint(psutil.Process(server.pid))
    finally:
        server.terminate()
        status = server.wait(timeout=90)
    result = {"seen": dict(soak.seen), "wrong": soak.wrong, "during": prints, "after": after, "exit_status": status}
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if soak.wrong or status else 0


def await_ready(port: int, server: subprocess.Popen[Any], seconds: float = 600) -> None:
    """Waits until a server is warm."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit("the server did not become ready")


if __name__ == "__main__":
    sys.exit(main())
