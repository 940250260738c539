"""Spans of OpenTelemetry. Without an exporter that the operator installs and configures, they cost nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.propagate import extract

from ldp_serving.events import Drawn


def record(
    headers: Mapping[str, str], model: str, request_id: str, outcome: str, seconds: float, drawn: list[Drawn]
) -> None:
    """Writes a request as a span, with one child a picture and one grandchild a scale.

    Args:
        headers: of the request; a trace that they name is continued.
        seconds: that the request took; it ended now.
        drawn: its pictures.
    """
    tracer = trace.get_tracer("ldp_serving")
    now = time.time_ns()
    span = tracer.start_span("image_generation", context=extract(headers), start_time=now - int(seconds * 1e9))
    if span.is_recording():
        span.set_attributes({"ldp.model": model, "ldp.request_id": request_id, "ldp.outcome": outcome})
        for picture in drawn:
            _picture(tracer, trace.set_span_in_context(span), picture, now)
    span.end(now)


def _picture(tracer: trace.Tracer, context: object, picture: Drawn, now: int) -> None:
    started = now - int(picture.times.drawing_s * 1e9)
    span = tracer.start_span("picture", context=context, start_time=started)  # pyright: ignore[reportArgumentType]
    span.set_attributes(
        {
            "ldp.policy": picture.trace.policy,
            "ldp.tokens": picture.trace.tokens,
            "ldp.tokens_full": picture.trace.tokens_full,
            "ldp.queued_s": picture.times.queued_s,
            "ldp.decode_s": picture.times.decode_s,
        }
    )
    for scale in picture.trace.scales:
        span.add_event(f"scale {scale.scale}", {"tokens": scale.tokens, "blocks_s": scale.blocks_s})
    span.end(now)
