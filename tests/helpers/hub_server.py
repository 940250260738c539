"""A server on this machine that speaks the part of the hub's protocol that downloads use, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Fault:
    """What goes wrong.

    Attributes:
        cut_after: bytes of content after which the next connection breaks, once; None: never.
        down_after_cut: answer everything after the cut with 503, as a hub that went down.
        replace: paths whose content is served changed, under the right hash.
        short: paths of which the last bytes are never sent, under a matching Content-Length.
        status, code: answer everything with this HTTP status and X-Error-Code.
        listed: answers to the question for a repository's files, instead of the true list.
        endless: paths whose content never ends; "" stands for the list of files.
    """

    cut_after: int | None = None
    down_after_cut: bool = False
    replace: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    status: int | None = None
    code: str = ""
    listed: dict[str, bytes] = field(default_factory=dict)
    endless: set[str] = field(default_factory=set)


@dataclass
class Hub:
    """Repositories (name -> folder of files), the faults, and the requests that arrived: (method, path, Range).

    They are served as models and data sets of the hub, and below /raw as GitHub serves its files.
    """

    repositories: dict[str, Path]
    fault: Fault = field(default_factory=Fault)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def downloads(self) -> list[tuple[str, str | None]]:
        """(path, Range) of every request for content."""
        return [(path, span) for method, path, span in self.requests if method == "GET" and "/api/" not in path]


@contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield hub
        server.shutdown()


def lfs(path: Path) -> bool:
    return path.suffix in (".pth", ".safetensors")


def listing(name: str, folder: Path) -> dict[str, Any]:
    """List of a repository's files, as the hub gives it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    siblings = [_sibling(p, p.relative_to(folder).as_posix()) for p in files]
    return {"id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings}


def _sibling(path: Path, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "size": path.stat().st_size, "blobId": _blob(path)}
    if lfs(path):
        entry["lfs"] = {"sha256": _sha256(path), "size": path.stat().st_size, "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that has seen enough
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(self.path.split("?")[0])
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if hub.fault.status is not None:
            return self._send(hub.fault.status, b"{}", {"X-Error-Code": hub.fault.code})
        if m := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+?)(?:/revision/([^/]+))?", path):
            return self._info(m[1], m[2] or "main")
        if m := re.fullmatch(r"/raw/([^/]+/[^/]+)/[0-9a-f]{40}/(.+)", path):
            return self._raw(m[1], m[2])
        if m := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(m[1], m[2], m[3])
        if m := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            return self._content(hub.repositories[m[1]] / m[2], m[2], {})
        return self._send(404, b"{}", {})

    def _info(self, name: str, revision: str) -> None:
        if self._refused(name, revision):
            return
        if "" in self.hub.fault.endless:
            self._send_for_ever(b'{"siblings": [' + b" " * 100_000)
        body = self.hub.fault.listed.get(name) or json.dumps(listing(name, self.hub.repositories[name])).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, inside: str) -> None:
        if self._refused(name, revision):
            return
        path = self.hub.repositories[name] / inside
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif not lfs(path):
            self._content(path, inside, {"X-Repo-Commit": COMMIT, "ETag": f'"{_blob(path)}"'})
        else:
            self._redirect(path, name, inside)

    def _raw(self, name: str, inside: str) -> None:
        path = self.hub.repositories.get(name, Path("nowhere")) / inside
        if path.is_file():
            self._content(path, inside, {"ETag": f'"{_sha256(path)}"'})
        else:
            self._send(404, b"404: Not Found", {})

    def _redirect(self, path: Path, name: str, inside: str) -> None:
        """Large files come from another host, as from the hub's content network."""
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{_sha256(path)}"',
            "X-Linked-Size": str(path.stat().st_size),
            "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{name}/{inside}",
        }
        self._send(302, b"", headers)

    def _refused(self, name: str, revision: str) -> bool:
        if name not in self.hub.repositories:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return True
        if revision not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return True
        return False

    def _content(self, path: Path, inside: str, headers: dict[str, str]) -> None:
        fault, data = self.hub.fault, path.read_bytes() if path.is_file() else b"?"
        if inside in fault.endless and self.command == "GET":
            self._send_for_ever(data)
        if inside in fault.replace:
            data = bytes(byte ^ 1 for byte in data[:100]) + data[100:]
        if inside in fault.short:
            data = data[:-10]
        first, status = 0, 200
        if m := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            first, status = int(m[1]), 206
            if first >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers = headers | {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        if self.command == "GET" and fault.cut_after is not None and len(data) - first > fault.cut_after:
            return self._cut(status, data[first:], headers)
        return self._send(status, data[first:], headers)

    def _send_for_ever(self, data: bytes) -> NoReturn:
        """Sends the data again and again, without a length, until the client hangs up."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(data)

    def _cut(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        """Announces all of the data, sends the beginning, and hangs up."""
        fault = self.hub.fault
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data[: fault.cut_after])
        self.wfile.flush()
        self.close_connection = True
        fault.cut_after = None
        if fault.down_after_cut:
            fault.status = 503

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _blob(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
