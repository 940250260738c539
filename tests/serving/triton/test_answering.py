"""Requests to Triton answered on a real pipeline, with the sender that Triton gives replaced by a list."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.serving import alone, image, watched
from helpers.waiting import HANGS
from ldp_runtime import Pipeline
from ldp_serving.errors import Rejected
from ldp_serving.hooks import Hooks
from ldp_serving.limits import Limits
from ldp_serving.model import open_model
from ldp_serving.triton.answering import Answering
from ldp_serving.triton.counts import COUNTERS, Counts
from PIL import Image


class Kept:
    """Responses of one request."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.fields: list[dict[str, Any]] = []
        self.files: list[bytes] = []
        self.error: tuple[dict[str, Any], int] | None = None
        self._cancel_at, self._ended = cancel_at, threading.Event()
        self.ends = 0

    def send(self, fields: str, file: bytes, last: bool) -> None:
        self.fields.append(json.loads(fields))
        self.files.append(file)
        self._end(last)

    def fail(self, message: str, status: int) -> None:
        self.error = json.loads(message)["error"], status
        self._end(True)

    def is_cancelled(self) -> bool:
        return self._cancel_at is not None and len(self.fields) >= self._cancel_at

    def _end(self, last: bool) -> None:
        if last:
            self.ends += 1
            self._ended.set()

    def wait(self) -> Kept:
        assert self._ended.wait(HANGS)
        return self

    @property
    def kinds(self) -> list[str]:
        return [entry["type"].rpartition(".")[2] for entry in self.fields]

    def pixels(self, at: int) -> bytes:
        return Image.open(io.BytesIO(self.files[at])).tobytes()


class Words(Hooks):
    def check_prompt(self, prompt: str, key: str | None) -> None:
        if "blood" in prompt:
            raise Rejected("not here")


class Held:
    """Engines that stop before their next call, until they are released."""

    def __init__(self) -> None:
        self._go, self._stopped = threading.Event(), threading.Event()
        self._go.set()

    def __call__(self, *_: object) -> None:
        if not self._go.is_set():
            self._stopped.set()
            assert self._go.wait(HANGS)

    def hold(self) -> None:
        self._go.clear()

    def wait(self) -> None:
        assert self._stopped.wait(HANGS)

    def release(self) -> None:
        self._go.set()


class Shown:
    """A model that answers, and what it counts."""

    def __init__(self, answering: Answering, pipe: Pipeline, counts: Counts) -> None:
        self.answering, self.pipe, self.counts = answering, pipe, counts

    def ask(self, reply: Kept | None = None, **fields: Any) -> Kept:
        reply = reply or Kept()
        tensors = {"prompt": np.array([fields.pop("prompt", "a red circle").encode()], np.object_)}
        self.answering.take(tensors, fields, reply)
        return reply


@pytest.fixture(scope="module")
def shown(small_pipe: Pipeline) -> Iterator[Shown]:
    counts = Counts()
    pipe = watched(small_pipe, lambda *_: None)
    model = open_model(pipe, "small", Limits(max_queue=10), counts, policy="none", allowed=("ld",), previews=0)
    answering = Answering(model, Words(), most_images=10)
    yield Shown(answering, small_pipe, counts)
    answering.close()


def test_a_picture_is_that_of_the_pipeline(shown: Shown) -> None:
    reply = shown.ask(seed=7).wait()
    assert reply.kinds == ["completed"]
    assert reply.pixels(0) == alone(shown.pipe, image(shown.pipe, seed=7))
    assert reply.fields[0]["seed"] == 7
    assert reply.fields[0]["size"] == "64x64"
    assert reply.ends == 1


def test_partial_images_and_scales_come_in_order(shown: Shown) -> None:
    reply = shown.ask(seed=7, partial_images=2, stream_scales=True, return_trace=True).wait()
    assert reply.kinds[-1] == "completed"
    assert [f["scale"] for f in reply.fields if f["type"] == "ldp.scale"] == list(range(7))
    assert [f["partial_image_index"] for f in reply.fields if "partial_image_index" in f] == [0, 1]
    assert reply.kinds.index("partial_image") > 0
    assert all(bool(file) == (kind != "scale") for kind, file in zip(reply.kinds, reply.files, strict=True))
    assert len(reply.fields[-1]["trace"]["scales"]) == 7


def test_requests_share_calls_and_stay_what_they_are(shown: Shown) -> None:
    replies = [shown.ask(seed=seed, n=2, policy="ld") for seed in (1, 5)]
    for seed, reply in zip((1, 5), replies, strict=True):
        reply.wait()
        places = [entry["image_index"] for entry in reply.fields]
        assert sorted(places) == [0, 1]
        for at, place in enumerate(places):
            assert reply.pixels(at) == alone(shown.pipe, image(shown.pipe, seed=seed + place, policy="ld"))


def test_base64_for_those_who_read_json_alone(shown: Shown) -> None:
    import base64

    plain, coded = shown.ask(seed=3).wait(), shown.ask(seed=3, response_format="b64_json").wait()
    assert base64.b64decode(coded.files[0]) == plain.files[0]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"seed": -1}, 400, "invalid_value", "seed"),
        ({"policy": "top-k"}, 400, "invalid_value", "policy"),
        ({"size": "63x64"}, 400, "invalid_value", "size"),
        ({"prompt": " "}, 400, "invalid_value", "prompt"),
        ({"prompt": "blood"}, 400, "content_policy_violation", None),
        ({"n": 11}, 400, "invalid_value", "n"),
        ({"deadline_ms": 1}, 429, "deadline", None),
    ],
)
def test_errors_are_typed(shown: Shown, fields: dict[str, Any], status: int, code: str, param: str | None) -> None:
    reply = shown.ask(**fields).wait()
    assert reply.error is not None
    error, given = reply.error
    assert (given, error["code"], error["param"]) == (status, code, param)
    assert reply.ends == 1
    assert not reply.fields


def test_a_cancelled_request_ends_and_others_go_on(shown: Shown) -> None:
    """Of eight pictures the client takes two responses; the last ones are not drawn."""
    shown.counts.take()
    cancelled = shown.ask(Kept(cancel_at=2), n=8, seed=20, stream_scales=True)
    other = shown.ask(seed=9)
    assert cancelled.wait().error is not None
    assert cancelled.error[1] == 499
    assert other.wait().pixels(0) == alone(shown.pipe, image(shown.pipe, seed=9))
    assert shown.counts.take()["ldp_pictures_total"] < 9


def test_a_full_queue_refuses(small_pipe: Pipeline) -> None:
    """Nothing is drawn while the engine is held: later requests find the queue full, and are told so at once."""
    engine, counts = Held(), Counts()
    pipe = watched(small_pipe, engine)
    model = open_model(pipe, "small", Limits(max_batch=1, max_queue=1), counts, policy="none", previews=0)
    answering = Answering(model, Hooks(), most_images=1)
    shown = Shown(answering, small_pipe, counts)
    engine.hold()
    first = shown.ask(seed=1)
    engine.wait()
    waiting = shown.ask(seed=2)
    refused = [shown.ask(seed=3) for _ in range(3)]
    ends = [reply.wait() for reply in refused]
    engine.release()
    assert {reply.error[0]["code"] for reply in ends if reply.error} == {"queue_full"}
    assert {reply.error[1] for reply in ends if reply.error} == {429}
    assert first.wait().error is None
    assert waiting.wait().error is None
    answering.close()
    assert counts.take().keys() <= COUNTERS.keys()


def test_closing_tells_those_who_wait(small_pipe: Pipeline) -> None:
    engine = Held()
    model = open_model(watched(small_pipe, engine), "small", Limits(max_batch=1), Counts(), policy="none", previews=0)
    answering = Answering(model, Hooks(), most_images=4)
    engine.hold()
    reply = Shown(answering, small_pipe, Counts()).ask(n=4)
    engine.wait()
    closing = threading.Thread(target=answering.close)
    closing.start()
    while not model.scheduler.is_draining:
        time.sleep(0.001)
    engine.release()
    closing.join(HANGS)
    assert reply.wait().error is not None
    assert reply.error[0]["code"] == "draining"
    assert not answering._thread.is_alive()
    assert not model.scheduler.is_alive
