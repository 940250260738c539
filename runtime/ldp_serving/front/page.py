"""Page for people, at `/`: a form that draws in the browser with the public API. It asks no other host.

Its files lie in `static`, as they are sent; there is no build step. Nothing in them depends on a request.
"""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ldp_serving.front.service import Service

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

#: All that the page may do: run its own files, ask this server, and show pictures that it was sent.
CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def add_page(app: FastAPI, service: Service, version: str) -> None:
    """Adds the page, its files, and what it must know before it has a key."""
    files = {file.name: file.read_bytes() for file in (resources.files("ldp_serving.front") / "static").iterdir()}

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page() -> Response:  # pyright: ignore[reportUnusedFunction]
        return _answer("index.html", files)

    @app.get("/page/server.json")
    async def server() -> Response:  # pyright: ignore[reportUnusedFunction]
        state = {"version": version, "needs_key": bool(service.keys), "loaded": service.is_loaded}
        return JSONResponse(state, headers=_HEADERS)

    @app.get("/page/{name}")
    async def file(name: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _answer(name, files)


def _answer(name: str, files: dict[str, bytes]) -> Response:
    if name not in files:
        raise HTTPException(404)
    return Response(files[name], media_type=_TYPES[name.rpartition(".")[2]], headers=_HEADERS)
