"""Answers in OpenAI's form: pictures, events of a stream, and errors."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ldp_runtime.errors import CapacityError

from ldp_serving.errors import (
    Abandoned,
    DeadlineMissed,
    Draining,
    Loading,
    QueueFull,
    Refused,
    Rejected,
    ReplicaLost,
    TimedOut,
    TooMany,
)
from ldp_serving.events import Drawn, Partial, ScaleDrawn
from ldp_serving.front.body import BadRequest, GenerationBody
from ldp_serving.front.requests import Asked

#: Longest wait that a client is told, in seconds: the published client does not wait longer than two minutes.
_LONGEST_WAIT = 120.0

#: Levels of `quality` that OpenAI's answers name.
_LEVELS = ("low", "medium", "high", "xhigh", "max")


def pictures(body: GenerationBody, asked: Asked, drawn: Sequence[Drawn], files: Sequence[bytes]) -> dict[str, Any]:
    """Answer with all pictures, in order."""
    data = []
    for picture, file in zip(drawn, files, strict=True):
        entry: dict[str, Any] = {"b64_json": base64_of(file), "seed": picture.trace.seed}
        if body.return_trace:
            entry["trace"] = picture.trace.to_json()
        data.append(entry)
    answer = {"created": int(time.time()), "background": "opaque", "data": data, "output_format": body.format}
    if body.quality in _LEVELS:
        answer["quality"] = body.quality
    return answer | {"size": asked.size, "usage": usage(asked, drawn)} | _identifier(body)


def usage(asked: Asked, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Tokens of a request: text in, and image tokens that were computed; details have the count without pruning."""
    computed, full = sum(p.trace.tokens for p in drawn), sum(p.trace.tokens_full for p in drawn)
    return {
        "input_tokens": asked.text_tokens,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": asked.text_tokens},
        "output_tokens": computed,
        "output_tokens_details": {"image_tokens": computed, "text_tokens": 0, "image_tokens_full": full},
        "total_tokens": asked.text_tokens + computed,
    }


def partial_fields(body: GenerationBody, asked: Asked, partial: Partial) -> dict[str, Any]:
    """Fields that tell of a partial image, beside its file."""
    places = {"partial_image_index": partial.number, "image_index": partial.index}
    return {"type": "image_generation.partial_image"} | _settings(body, asked) | places


def completed_fields(body: GenerationBody, asked: Asked, drawn: Drawn) -> dict[str, Any]:
    """Fields that tell of a finished picture, beside its file."""
    extra: dict[str, Any] = {"image_index": drawn.index, "seed": drawn.trace.seed, "usage": usage(asked, [drawn])}
    if body.return_trace:
        extra["trace"] = drawn.trace.to_json()
    return {"type": "image_generation.completed"} | _settings(body, asked) | extra | _identifier(body)


def scale_fields(event: ScaleDrawn) -> dict[str, Any]:
    """Fields that tell of one scale, if asked for; ours."""
    trace = event.trace
    milliseconds = 1e3 * (trace.select_s + trace.blocks_s / trace.images_in_call + trace.residual_s)
    return {
        "type": "ldp.scale",
        "image_index": event.index,
        "scale": trace.scale,
        "scales": event.scales,
        "grid": list(trace.grid),
        "tokens": trace.tokens,
        "tokens_full": trace.tokens_full,
        "kept": None if trace.kept is None else trace.kept.tolist(),
        "images_in_call": trace.images_in_call,
        "milliseconds": round(milliseconds, 3),
    }


def event(fields: Mapping[str, Any], file: bytes | None = None) -> bytes:
    """Event of a stream, named by its type, with a picture's file."""
    name = fields["type"]
    return _event(name, {"type": name} | ({} if file is None else {"b64_json": base64_of(file)}) | dict(fields))


def error_event(error: Exception) -> bytes:
    """Event that ends a stream which broke; the published client raises it."""
    _, body, _ = error_answer(error)
    return _event("error", body)


#: End of a stream that is complete.
STREAM_END = b"data: [DONE]\n\n"


def error_answer(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, OpenAI's error object and headers of an error. What is not meant for clients is not told."""
    status, kind, code, param, message = 500, "server_error", "server_error", None, "the picture could not be drawn"
    headers: dict[str, str] = {}
    if isinstance(error, BadRequest):
        status, kind, code, param, message = (
            error.status,
            "invalid_request_error",
            error.code,
            error.param,
            error.message,
        )
    elif isinstance(error, Rejected):
        status, kind, code = 400, "image_generation_user_error", "content_policy_violation"
        message = error.message
    elif isinstance(error, Refused):
        status, kind = _refusal(error)
        code, message, headers = error.reason, error.message, _retry(error.retry_s)
    elif isinstance(error, CapacityError):
        status, code, message = 503, "out_of_memory", "there was not enough memory for the picture"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}, headers


def outcome(error: BaseException) -> str:
    """Word for how a request ended that an error ended, for metrics and logs."""
    if isinstance(error, Abandoned | asyncio.CancelledError | TimeoutError):
        return "cancelled"
    if isinstance(error, Refused):
        return "refused"
    if isinstance(error, BadRequest):
        return "invalid"
    return "rejected" if isinstance(error, Rejected) else "failed"


def _refusal(error: Refused) -> tuple[int, str]:
    if isinstance(error, QueueFull | DeadlineMissed | TooMany):
        return 429, "rate_limit_error"
    if isinstance(error, Draining | Loading | ReplicaLost):
        return 503, "server_error"
    return (504 if isinstance(error, TimedOut) else 499), "server_error"


def _retry(seconds: float | None) -> dict[str, str]:
    """Headers that say when to try again, or not to."""
    if seconds is None:
        return {"x-should-retry": "false"}
    wait = min(max(seconds, 0.001), _LONGEST_WAIT)
    return {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(1000 * wait))}


def _settings(body: GenerationBody, asked: Asked) -> dict[str, Any]:
    return {
        "background": body.background or "auto",
        "created_at": int(time.time()),
        "output_format": body.format,
        "quality": body.quality if body.quality in _LEVELS else "auto",
        "size": asked.size,
    }


def _identifier(body: GenerationBody) -> dict[str, Any]:
    return {} if body.identifier is None else {"safety_identifier": body.identifier}


def base64_of(file: bytes) -> str:
    """Base64 of a file, as text."""
    return base64.b64encode(file).decode()


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
