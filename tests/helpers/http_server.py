"""A server on a real port, in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ldp_runtime import Pipeline
from ldp_serving.front.run import ServeOptions, Server, listen, new_service
from ldp_serving.front.service import Service
from ldp_serving.limits import Limits
from ldp_serving.model import ServedModel, open_model
from ldp_serving.shadow import ShadowMetrics


class Running:
    """A running server: its service, its model, and where it listens."""

    def __init__(self, service: Service, server: Server, model: ServedModel) -> None:
        self.service, self.server, self.model = service, server, model

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def pipe(self) -> Pipeline:
        return self.model.pipeline

    def metric(self, name: str, **labels: str) -> float:
        """Value of a metric, or 0."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def settle(self) -> None:
        """Waits until nothing is drawn."""
        ends = time.monotonic() + 30
        while not self.service.is_idle and time.monotonic() < ends:
            time.sleep(0.01)
        assert self.service.is_idle


@contextmanager
def running(pipe: Pipeline, **given: Any) -> Generator[Running]:
    """A server of a pipeline, with options of `ServeOptions` and `Limits`.

    Args:
        pipe: stays open.
    """
    extra = {name: given.pop(name) for name in ("promote_s", "shadow_seed") if name in given}
    given = {"bundles": (), "previews": 0, "allow_policy": ("none", "ld-paper", "none:skip_last=1")} | given
    options = ServeOptions(**given)
    service = new_service(options)
    listening = listen("127.0.0.1", 0)
    server = Server(service, listening, options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    flying = options.max_in_flight or 2 * options.max_batch
    limits = Limits(options.max_batch, flying, options.max_queue, options.timeout_s, options.interleave)
    counts = ShadowMetrics(service.metrics, "small", options.shadow_rate, extra.get("shadow_seed"))
    try:
        model = open_model(
            pipe, "small", limits, counts,
            policy=options.policy, allowed=tuple(options.allow_policy), previews=options.previews,
        )  # fmt: skip
        counts.scheduler = model.scheduler
        service.add(model)
        service.is_loaded = True
        while not server.started:
            time.sleep(0.01)
        yield Running(service, server, model)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        service.give_up()
        service.files.shutdown()
        assert not thread.is_alive()
