"""Counts of a model in Triton: numbers that grow on the engine thread, and are told to Triton now and then."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.trace import Trace

from ldp_serving.errors import Refused
from ldp_serving.events import Times
from ldp_serving.waiting import Picture
from ldp_serving.watch import Watch

#: Counters by their names, with descriptions; they mean what those of the server's `/metrics` mean.
COUNTERS: Mapping[str, str] = {
    "ldp_pictures_total": "Pictures drawn",
    "ldp_partial_images_total": "Partial images made",
    "ldp_tokens_computed_total": "Image tokens computed",
    "ldp_tokens_saved_total": "Image tokens that a policy left out",
    "ldp_engine_busy_seconds_total": "Time in which the engine worked",
    "ldp_time_in_queue_seconds_total": "Waits of all pictures together",
    "ldp_refusals_total": "Requests refused or given up",
    "ldp_cancelled_total": "Requests that were cancelled",
}


class Counts(Watch):
    """Counts what one model's scheduler and front do."""

    def __init__(self) -> None:
        self._counted: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self) -> dict[str, float]:
        """Counts since the last call, by counter."""
        with self._lock:
            counted, self._counted = self._counted, Counter()
        return dict(counted)

    def started(self, pictures: Sequence[Picture], waited_s: Sequence[float], text_s: float) -> None:
        self._add(ldp_time_in_queue_seconds_total=sum(waited_s))

    def stepped(self, event: ScaleEvent) -> None:
        self._add(
            ldp_tokens_computed_total=sum(trace.tokens for trace in event.traces),
            ldp_tokens_saved_total=sum(trace.tokens_full - trace.tokens for trace in event.traces),
        )

    def shown(self, picture: Picture, after_s: float) -> None:
        self._add(ldp_partial_images_total=1)

    def finished(self, picture: Picture, image: Any, trace: Trace, times: Times) -> None:
        skipped = trace.tokens_full - sum(scale.tokens_full for scale in trace.scales)
        self._add(ldp_pictures_total=1, ldp_tokens_saved_total=skipped)

    def busy(self, seconds: float) -> None:
        self._add(ldp_engine_busy_seconds_total=seconds)

    def request(self, outcome: str, seconds: float) -> None:
        if outcome == "cancelled":
            self._add(ldp_cancelled_total=1)

    def refused(self, error: Refused) -> None:
        self._add(ldp_refusals_total=1)

    def _add(self, **counts: float) -> None:
        with self._lock:
            for name, count in counts.items():
                self._counted[name] += count  # pyright: ignore[reportArgumentType]
