"""Application: OpenAI's image API, and what an operator asks a server."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from ldp_runtime.pipeline.request import sizes
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ldp_serving.errors import Refused
from ldp_serving.front.body import BadRequest
from ldp_serving.front.generation import Generation, error_response
from ldp_serving.front.page import add_page
from ldp_serving.front.service import Service
from ldp_serving.model import ServedModel


def create_app(service: Service) -> FastAPI:
    """Application of a service."""
    app = FastAPI(title="ldp-export", docs_url=None, redoc_url=None, openapi_url=None)
    _add_questions(app, service)
    if service.has_page:
        add_page(app, service, _version())

    @app.post("/v1/images/generations")
    async def generate(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await Generation(service, request).answer()

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:  # pyright: ignore[reportUnusedFunction]
        code = "not_found" if error.status_code == 404 else "method_not_allowed"
        return error_response(
            BadRequest(f"{request.method} is not offered at this address", None, code, error.status_code)
        )

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:  # pyright: ignore[reportUnusedFunction]
        return error_response(error)

    if service.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(service.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def _add_questions(app: FastAPI, service: Service) -> None:
    """Adds the addresses that an operator asks: models, health, readiness, version, metrics."""

    @app.get("/v1/models")
    async def models(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            service.keys.find(request.headers.get("authorization"))
        except BadRequest as error:
            return error_response(error)
        data = [_model_entry(model) for model in service.models.values()]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/v1/models/{name}")
    async def one_model(name: str, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            service.keys.find(request.headers.get("authorization"))
            return JSONResponse(_model_entry(service.model(name)))
        except (BadRequest, Refused) as error:
            return error_response(error)

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse({"healthy": service.is_healthy}, 200 if service.is_healthy else 503)

    @app.api_route("/ready", methods=["GET", "HEAD"])
    async def ready() -> Response:  # pyright: ignore[reportUnusedFunction]
        state = {"ready": service.is_ready, "loaded": service.is_loaded, "draining": service.is_draining}
        return JSONResponse(state, 200 if service.is_ready else 503)

    @app.get("/version")
    async def versions() -> Response:  # pyright: ignore[reportUnusedFunction]
        bundles = {model.name: model.pipeline.manifest.digest for model in service.models.values()}
        return JSONResponse({"version": _version(), "bundles": bundles})

    @app.get("/metrics")
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _version() -> str:
    try:
        return version("ldp-export")
    except PackageNotFoundError:
        return "unknown"


def _model_entry(model: ServedModel) -> dict[str, Any]:
    offered = [f"{w}x{h}" for h, w in sizes(model.pipeline.manifest)]
    policies = list(dict.fromkeys((model.policy, *model.allowed)))
    entry = {"id": model.name, "object": "model", "created": model.created, "owned_by": "ldp-export"}
    return entry | {"sizes": offered, "policies": policies, "classes": model.classes}
