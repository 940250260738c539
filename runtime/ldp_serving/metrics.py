"""Metrics of a server in Prometheus's form, all of them named `ldp_*`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psutil
import torch
from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.trace import Trace
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from ldp_serving.errors import Refused
from ldp_serving.events import Times
from ldp_serving.waiting import Picture
from ldp_serving.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ldp_serving.model import ServedModel

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DECIBELS = (10, 15, 20, 25, 30, 35, 40, 50, 60)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)


class Metrics:
    """Every metric of a server, in a registry of its own. Labels: `model`, and what each description names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        seconds: dict[str, Any] = own | {"buckets": _SECONDS}
        self.requests = Counter("ldp_requests", "Requests by outcome", ["model", "outcome"], **own)
        self.refusals = Counter("ldp_refusals", "Requests refused or given up, by reason", ["model", "reason"], **own)
        self.request_s = Histogram("ldp_request_seconds", "From request to answer", ["model"], **seconds)
        self.queue_s = Histogram("ldp_time_in_queue_seconds", "Wait of a picture", ["model"], **seconds)
        self.text_s = Histogram("ldp_text_seconds", "Encoding the texts of a batch", ["model"], **seconds)
        self.blocks_s = Histogram("ldp_blocks_seconds", "One engine call, by scale", ["model", "scale"], **seconds)
        self.decode_s = Histogram("ldp_decode_seconds", "Decoding a picture", ["model"], **seconds)
        self.encode_s = Histogram("ldp_encode_seconds", "Writing a file, by format", ["model", "format"], **seconds)
        self.preview_s = Histogram("ldp_first_preview_seconds", "From request to first partial", ["model"], **seconds)
        self.batch = Histogram(
            "ldp_batch_pictures", "Pictures that started together", ["model"], buckets=_BATCHES, **own
        )
        self.pictures = Counter("ldp_pictures", "Pictures drawn", ["model"], **own)
        self.partials = Counter("ldp_partial_images", "Partial images made", ["model"], **own)
        self.computed = Counter("ldp_tokens_computed", "Image tokens computed", ["model"], **own)
        self.saved = Counter("ldp_tokens_saved", "Image tokens that a policy left out", ["model"], **own)
        self.stopped = Counter("ldp_branches_stopped", "Unconditional branches that a policy stopped", ["model"], **own)
        self.busy_s = Counter("ldp_engine_busy_seconds", "Time in which the engine worked", ["model"], **own)
        self.shadow = Histogram(
            "ldp_shadow_psnr_db", "PSNR of pictures against their unpruned twins", ["model"], buckets=_DECIBELS, **own
        )
        self._state = _State()
        self.registry.register(self._state)

    def of_model(self, name: str) -> ModelMetrics:
        """Watch of one model's scheduler."""
        return ModelMetrics(self, name)

    def follow(self, model: ServedModel) -> None:
        """Reports the queue, what is in flight and the memory of a model from now on."""
        self._state.models.append(model)

    def text(self) -> bytes:
        """Page of `/metrics`."""
        return generate_latest(self.registry)


class _State:
    """Gauges, read when somebody asks."""

    def __init__(self) -> None:
        self.models: list[ServedModel] = []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauges = {
            name: GaugeMetricFamily(name, words, labels=["model"])
            for name, words in (
                ("ldp_queue_pictures", "Pictures that wait"),
                ("ldp_queue_oldest_seconds", "Wait of the oldest picture in the queue"),
                ("ldp_in_flight_pictures", "Pictures that are being drawn"),
                ("ldp_picture_seconds", "Engine time of a picture, moving average; waits are predicted from it"),
                ("ldp_memory_predicted_bytes", "Upper bound of the memory that pictures in flight may take"),
                ("ldp_cuda_graphs_captured", "CUDA graphs captured so far"),
                ("ldp_cuda_graphs_replayed", "CUDA graphs replayed so far"),
            )
        }
        for model in self.models:
            for name, value in _gauges(model).items():
                gauges[name].add_metric([model.name], value)
        yield from gauges.values()
        used = GaugeMetricFamily("ldp_memory_used_bytes", "Memory of this process", labels=["device"])
        used.add_metric(["cpu"], psutil.Process().memory_info().rss)
        if torch.cuda.is_initialized():
            used.add_metric(["cuda"], torch.cuda.memory_reserved())
        yield used


def _gauges(model: ServedModel) -> dict[str, float]:
    from ldp_serving.limits import needed_memory

    scheduler, graphs = model.scheduler, model.pipeline.cuda_graphs
    return {
        "ldp_queue_pictures": scheduler.waiting,
        "ldp_queue_oldest_seconds": scheduler.oldest_s,
        "ldp_in_flight_pictures": scheduler.in_flight,
        "ldp_picture_seconds": scheduler.rates.picture_s,
        "ldp_memory_predicted_bytes": needed_memory(
            model.pipeline.manifest, scheduler.limits.max_batch, scheduler.limits.max_in_flight
        ),
        "ldp_cuda_graphs_captured": 0 if graphs is None else graphs.captures,
        "ldp_cuda_graphs_replayed": 0 if graphs is None else graphs.replays,
    }


class ModelMetrics(Watch):
    """Counts what one model's scheduler and front do."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._all, self._name = metrics, name

    def started(self, pictures: Sequence[Picture], waited_s: Sequence[float], text_s: float) -> None:
        self._all.batch.labels(self._name).observe(len(pictures))
        self._all.text_s.labels(self._name).observe(text_s)
        for seconds in waited_s:
            self._all.queue_s.labels(self._name).observe(seconds)

    def stepped(self, event: ScaleEvent) -> None:
        first = event.traces[0]
        self._all.blocks_s.labels(self._name, str(event.scale)).observe(first.blocks_s)
        self._all.computed.labels(self._name).inc(sum(trace.tokens for trace in event.traces))
        self._all.saved.labels(self._name).inc(sum(trace.tokens_full - trace.tokens for trace in event.traces))
        self._all.stopped.labels(self._name).inc(sum(trace.unconditional_stopped for trace in event.traces))

    def shown(self, picture: Picture, after_s: float) -> None:
        self._all.partials.labels(self._name).inc()
        if picture.shown == 1:
            self._all.preview_s.labels(self._name).observe(after_s)

    def finished(self, picture: Picture, image: Any, trace: Trace, times: Times) -> None:
        self._all.pictures.labels(self._name).inc()
        self._all.saved.labels(self._name).inc(trace.tokens_full - sum(scale.tokens_full for scale in trace.scales))
        self._all.decode_s.labels(self._name).observe(times.decode_s)

    def busy(self, seconds: float) -> None:
        self._all.busy_s.labels(self._name).inc(seconds)

    def request(self, outcome: str, seconds: float) -> None:
        """Counts a request that ended: completed, refused, invalid, failed or cancelled."""
        self._all.requests.labels(self._name, outcome).inc()
        self._all.request_s.labels(self._name).observe(seconds)

    def refused(self, error: Refused) -> None:
        """Counts a refusal by its reason."""
        self._all.refusals.labels(self._name, error.reason).inc()

    def encoded(self, kind: str, seconds: float) -> None:
        """Counts a written file."""
        self._all.encode_s.labels(self._name, kind).observe(seconds)

    def compared(self, psnr_db: float) -> None:
        """Counts a picture that was compared with its unpruned twin."""
        self._all.shadow.labels(self._name).observe(psnr_db)
