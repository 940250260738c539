"""Spans: none without an exporter; with one, a span a request, that continues the client's trace."""

from __future__ import annotations

import pytest
from helpers.serving import Inbox, image, run_dry, scheduler
from ldp_runtime import Pipeline
from ldp_serving import tracing
from ldp_serving.events import Drawn
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def drawn(pipe: Pipeline) -> list[Drawn]:
    schedule, inbox = scheduler(pipe), Inbox()
    schedule.submit([image(pipe, policy="ld")], inbox)
    run_dry(schedule)
    return [event for event in inbox.ends() if isinstance(event, Drawn)]


def test_a_request_is_a_span_of_the_clients_trace(small_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing.trace, "get_tracer", provider.get_tracer)
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    tracing.record(headers, "small", "req_1", "completed", 0.5, drawn(small_pipe))
    picture, request = exporter.get_finished_spans()
    assert (request.name, picture.name) == ("image_generation", "picture")
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.end_time is not None
    assert request.start_time is not None
    assert request.end_time - request.start_time == pytest.approx(0.5e9, rel=1e-3)
    assert len(picture.events) == 7
    assert dict(request.attributes or {})["ldp.outcome"] == "completed"


def test_without_an_exporter_nothing_is_recorded(small_pipe: Pipeline) -> None:
    tracing.record({}, "small", "req_1", "completed", 0.5, drawn(small_pipe))
