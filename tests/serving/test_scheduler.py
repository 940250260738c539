"""The scheduler: whoever waits, joins, leaves or fails, a picture is what it is alone, and each request has one end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.serving import Inbox, alone, image, run_dry, scheduler, watched
from hypothesis import given, settings
from hypothesis import strategies as st
from ldp_runtime import Pipeline
from ldp_runtime.errors import CapacityError, NonFiniteError
from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.memory import estimate_memory
from ldp_runtime.pipeline.request import ImageRequest
from ldp_serving.errors import DeadlineMissed, DeadlinePassed, Draining, QueueFull, Refused, TimedOut
from ldp_serving.events import Drawn, Failed, ScaleDrawn
from ldp_serving.limits import most_in_flight
from ldp_serving.rates import Rates
from ldp_serving.waiting import Picture
from ldp_serving.watch import Watch


class Log(Watch):
    """Which pictures started together, by seed, and which scales were drawn in which order."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.ended: list[int] = []
        self.calls: list[tuple[int, int]] = []

    def started(self, pictures: Sequence[Picture], waited_s: Sequence[float], text_s: float) -> None:
        self.batches.append([picture.request.seed for picture in pictures])

    def stepped(self, event: ScaleEvent) -> None:
        self.calls.append((event.scale, len(event.images)))

    def finished(self, picture: Picture, *_: Any) -> None:
        self.ended.append(picture.request.seed)


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def one(pipe: Pipeline, event: Drawn | Failed, request: ImageRequest) -> None:
    assert isinstance(event, Drawn)
    assert event.image.tobytes() == alone(pipe, request)


POLICIES = ("none", "ld", "ld-paper", "none:skip_last=1", "none:stop=2")
requests = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["a red circle", "green star", "blue"]),
        "policy": st.sampled_from(POLICIES),
        "seed": st.integers(0, 2**20),
        "guidance_scale": st.sampled_from([None, 1.0, 4.0]),
        "aspect_ratio": st.sampled_from([1.0, 1.0, 2.0]),
    }
)


INTERLEAVE = st.sampled_from(["never", "previews", "early"])


@settings(max_examples=25)
@given(
    listed=st.lists(requests, min_size=1, max_size=5),
    interleave=st.sampled_from(["never", "previews", "early"]),
    data=st.data(),
)
def test_pictures_are_what_they_are_alone(
    small_pipe: Pipeline, listed: list[dict[str, Any]], interleave: str, data: st.DataObject
) -> None:
    """Random arrivals, cancels and turns; each request ends once."""
    schedule = scheduler(small_pipe, interleave=interleave, max_batch=3, max_in_flight=5)
    inboxes, tickets = [], []
    wanted = [image(small_pipe, **options) for options in listed]
    cancelled: set[int] = set()
    for request in wanted:
        inboxes.append(Inbox())
        tickets.append(schedule.submit([request], inboxes[-1], partials=data.draw(st.integers(0, 3))))
        for _ in range(data.draw(st.integers(0, 9))):
            schedule.turn()
        if data.draw(st.integers(0, 4)) == 0:
            at = data.draw(st.integers(0, len(tickets) - 1))
            schedule.cancel(tickets[at])
            cancelled.add(at)
    run_dry(schedule)
    assert (schedule.in_flight, schedule.waiting) == (0, 0)
    for at, (inbox, request) in enumerate(zip(inboxes, wanted, strict=True)):
        (end,) = inbox.ends()
        assert inbox._events.empty()
        if at in cancelled and isinstance(end, Failed):
            assert isinstance(end.error, Refused)
        else:
            one(small_pipe, end, request)


def test_what_waits_with_one_schedule_starts_together(small_pipe: Pipeline) -> None:
    log = Log()
    schedule = scheduler(small_pipe, watch=log, max_batch=3)
    for seed, ratio in enumerate([1.0, 2.0, 1.0, 1.0, 1.0, 2.0]):
        schedule.submit([image(small_pipe, seed=seed, aspect_ratio=ratio, policy="ld")], Inbox())
    run_dry(schedule)
    assert log.batches == [[0, 2, 3], [1, 5], [4]]
    assert sorted(log.ended) == [0, 1, 2, 3, 4, 5]
    assert log.calls[0] == (0, 3)


def test_pictures_of_a_batch_are_finished_one_after_another(small_pipe: Pipeline) -> None:
    """After the scales that they share, the first is drawn to its end: the mean of completion is shortest so."""
    log = Log()
    schedule = scheduler(small_pipe, watch=log)
    for seed in range(2):
        schedule.submit([image(small_pipe, seed=seed, policy="ld")], Inbox())
    run_dry(schedule)
    single = [scale for scale, count in log.calls if count == 1]
    assert single == [*range(min(single), 7)] * 2


def test_early_scales_go_between_late_ones_if_asked(small_pipe: Pipeline) -> None:
    orders = {}
    for interleave, partials in (("never", 1), ("early", 0), ("previews", 0), ("previews", 1)):
        log = Log()
        schedule = scheduler(small_pipe, watch=log, interleave=interleave)
        schedule.submit([image(small_pipe, seed=1, policy="ld")], Inbox())
        late = min(small_pipe.manifest.schedule().detail_scales())
        for _ in range(late + 1):
            schedule.turn()
        schedule.submit([image(small_pipe, seed=2, policy="ld")], Inbox(), partials=partials)
        run_dry(schedule)
        assert log.ended == [1, 2]
        orders[interleave, partials] = [scale for scale, _ in log.calls]
    scales = list(range(7))
    one_after_another = scales + scales
    between = scales[: late + 1] + scales[:late] + scales[late + 1 :] + scales[late:]
    assert orders == {
        ("never", 1): one_after_another,
        ("early", 0): between,
        ("previews", 0): one_after_another,
        ("previews", 1): between,
    }


def test_pictures_in_flight_are_bounded(small_pipe: Pipeline) -> None:
    most = 0

    class Count(Watch):
        def stepped(self, event: ScaleEvent) -> None:
            nonlocal most
            most = max(most, schedule.in_flight)

    schedule = scheduler(small_pipe, watch=Count(), interleave="early", max_batch=2, max_in_flight=3)
    for seed in range(8):
        schedule.submit([image(small_pipe, seed=seed, policy="ld")], Inbox())
    run_dry(schedule)
    assert most == 3


def test_priority_then_arrival_and_nothing_starves(small_pipe: Pipeline) -> None:
    log, clock = Log(), Clock()
    schedule = scheduler(small_pipe, watch=log, clock=clock, max_batch=1, promote_s=10)
    schedule.submit([image(small_pipe, seed=0)], Inbox())
    for seed, priority in ((1, 0), (2, 1), (3, 0), (4, 1)):
        schedule.submit([image(small_pipe, seed=seed)], Inbox(), priority=priority)
    run_dry(schedule)
    assert log.ended == [2, 4, 0, 1, 3]
    schedule.submit([image(small_pipe, seed=5)], Inbox())
    clock.now += 25
    schedule.submit([image(small_pipe, seed=6)], Inbox(), priority=2)
    run_dry(schedule)
    assert log.ended[-2:] == [5, 6]


def test_a_full_queue_refuses_and_says_when_to_come_back(small_pipe: Pipeline) -> None:
    schedule = scheduler(small_pipe, max_queue=3)
    schedule.rates.picture_s = 2.0
    schedule.submit([image(small_pipe)] * 2, Inbox())
    with pytest.raises(QueueFull, match="2 pictures wait, the queue holds 3") as caught:
        schedule.submit([image(small_pipe)] * 3, Inbox())
    assert caught.value.retry_s == 4.0
    assert schedule.waiting == 2


def test_a_wait_longer_than_the_time_limit_is_refused(small_pipe: Pipeline) -> None:
    schedule = scheduler(small_pipe, timeout_s=5.0)
    schedule.rates.picture_s = 2.0
    schedule.submit([image(small_pipe)] * 2, Inbox())
    with pytest.raises(QueueFull, match="predicted to take 6") as caught:
        schedule.submit([image(small_pipe)], Inbox())
    assert caught.value.retry_s == pytest.approx(1.0)


def test_a_deadline_that_cannot_be_met_is_refused_at_once(small_pipe: Pipeline) -> None:
    schedule = scheduler(small_pipe)
    schedule.rates.picture_s = 2.0
    with pytest.raises(DeadlineMissed, match=r"predicted to take 2.00 s, its deadline is in 1.50 s") as caught:
        schedule.submit([image(small_pipe)], Inbox(), deadline_s=1.5)
    assert caught.value.retry_s is None
    schedule.submit([image(small_pipe)], Inbox(), deadline_s=2.5)


@pytest.mark.parametrize(
    ("deadline_s", "turns", "error"),
    [(3.0, 0, DeadlinePassed), (3.0, 2, DeadlinePassed), (None, 0, QueueFull), (None, 2, TimedOut)],
)
def test_time_runs_out(small_pipe: Pipeline, deadline_s: float | None, turns: int, error: type[Refused]) -> None:
    """In the queue or on the way; the next request is drawn."""
    clock, inbox, other = Clock(), Inbox(), Inbox()
    schedule = scheduler(small_pipe, clock=clock, timeout_s=8.0)
    schedule.submit([image(small_pipe, policy="ld")], inbox, deadline_s=deadline_s)
    for _ in range(turns):
        schedule.turn()
    clock.now = 3.5 if deadline_s else 8.5
    request = image(small_pipe, seed=9)
    schedule.submit([request], other)
    run_dry(schedule)
    (end,) = inbox.ends()
    assert isinstance(end, Failed)
    assert type(end.error) is error
    one(small_pipe, other.ends()[0], request)


def test_draining_finishes_what_it_has(small_pipe: Pipeline) -> None:
    schedule, inbox = scheduler(small_pipe), Inbox()
    request = image(small_pipe, seed=4)
    schedule.submit([request], inbox)
    schedule.drain()
    with pytest.raises(Draining):
        schedule.submit([request], Inbox())
    run_dry(schedule)
    one(small_pipe, inbox.ends()[0], request)


def test_closing_ends_every_request(small_pipe: Pipeline) -> None:
    schedule = scheduler(small_pipe, max_batch=1)
    inboxes = [Inbox() for _ in range(4)]
    schedule.start()
    for seed, inbox in enumerate(inboxes):
        schedule.submit([image(small_pipe, seed=seed)], inbox)
    schedule.close()
    assert not schedule.is_alive
    for inbox in inboxes:
        (end,) = inbox.ends()
        assert isinstance(end, Drawn) or isinstance(end.error, Draining)


class Poison(Exception):
    """What is raised in an engine's run."""


def is_marked(inputs: Mapping[str, torch.Tensor], length: int) -> bool:
    """True for texts of this many tokens."""
    return "ids" in inputs and inputs["ids"].shape[1] == length


@pytest.mark.parametrize(
    "error", [MemoryError(), Poison("mine"), NonFiniteError("NaN")], ids=lambda e: type(e).__name__
)
def test_a_text_that_cannot_be_encoded_touches_no_other(small_pipe: Pipeline, error: Exception) -> None:
    def before(name: str, inputs: Mapping[str, torch.Tensor]) -> None:
        if name == "text_encoder" and is_marked(inputs, 6):
            raise error

    check_isolated(small_pipe, watched(small_pipe, before), type(error))


@pytest.mark.parametrize("tokens", [1, 16], ids=["first scale", "third scale"])
def test_nan_in_one_picture_touches_no_other(small_pipe: Pipeline, tokens: int) -> None:
    """The call that a poisoned prompt shares with others fails; each is tried by itself."""

    def before(name: str, inputs: Mapping[str, torch.Tensor]) -> None:
        if name == "blocks" and inputs["latents"].shape[1] == tokens:
            inputs["latents"][inputs["text_mask"].sum(1) == 6] = float("nan")

    check_isolated(small_pipe, watched(small_pipe, before), NonFiniteError)


def check_isolated(pipe: Pipeline, broken: Pipeline, error: type[Exception]) -> None:
    schedule = scheduler(broken)
    good = [image(pipe, seed=seed, prompt="a red circle") for seed in (1, 2)]
    bad = image(pipe, seed=3, prompt="a red circle red circle")
    inboxes = [Inbox() for _ in range(3)]
    for request, inbox in zip((good[0], bad, good[1]), inboxes, strict=True):
        schedule.submit([request], inbox)
    run_dry(schedule)
    one(pipe, inboxes[0].ends()[0], good[0])
    one(pipe, inboxes[2].ends()[0], good[1])
    (end,) = inboxes[1].ends()
    assert isinstance(end, Failed)
    expected = CapacityError if error is MemoryError else error
    assert isinstance(end.error, expected)


def test_out_of_memory_beside_others_is_tried_again_alone(small_pipe: Pipeline) -> None:
    """What did not fit beside others may fit by itself."""

    def before(name: str, inputs: Mapping[str, torch.Tensor]) -> None:
        if name == "blocks" and schedule.in_flight > 1:
            raise MemoryError

    schedule = scheduler(watched(small_pipe, before), interleave="early")
    requests = [image(small_pipe, seed=seed, policy="ld") for seed in range(3)]
    inboxes = [Inbox() for _ in requests]
    for request, inbox in zip(requests, inboxes, strict=True):
        schedule.submit([request], inbox)
    run_dry(schedule)
    for request, inbox in zip(requests, inboxes, strict=True):
        one(small_pipe, inbox.ends()[0], request)
        told = [event.trace.scale for event in inbox.seen if isinstance(event, ScaleDrawn)]
        assert told == list(range(7))


def test_a_decoder_that_fails_on_one_picture(small_pipe: Pipeline) -> None:
    requests = [image(small_pipe, seed=seed) for seed in range(2)]
    bad = alone(small_pipe, requests[1])

    def before(name: str, inputs: Mapping[str, torch.Tensor]) -> None:
        if name == "decoder" and small_pipe.decode(inputs["latent"])[0].tobytes() == bad:
            raise Poison("mine")

    schedule, inboxes = scheduler(watched(small_pipe, before)), [Inbox(), Inbox()]
    for request, inbox in zip(requests, inboxes, strict=True):
        schedule.submit([request], inbox)
    run_dry(schedule)
    one(small_pipe, inboxes[0].ends()[0], requests[0])
    (end,) = inboxes[1].ends()
    assert isinstance(end, Failed)
    assert isinstance(end.error, Poison)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_partial_images_are_spread_over_the_run(small_pipe: Pipeline, count: int) -> None:
    schedule, inbox, request = scheduler(small_pipe), Inbox(), image(small_pipe, policy="ld")
    first = Inbox()
    schedule.submit([request], first)
    run_dry(schedule)
    (drawn,) = first.ends()
    assert isinstance(drawn, Drawn)
    schedule.rates = Rates()  # not this machine's: scale k takes k + 1 seconds, the text and the decoder one
    times = [replace(scale, select_s=0.0, blocks_s=scale.scale + 1.0, residual_s=0.0) for scale in drawn.trace.scales]
    schedule.rates.run(request, replace(drawn.trace, text_s=1.0, scales=tuple(times), decode_s=1.0))
    shares = schedule.rates.shares(request)
    assert shares == pytest.approx([(1 + (k + 1) * (k + 2) / 2) / 30 for k in range(7)])
    schedule.submit([request], inbox, partials=count)
    run_dry(schedule)
    inbox.ends()
    partials = inbox.partials()
    assert [partial.number for partial in partials] == list(range(count))
    assert all(partial.image.size == (64, 64) for partial in partials)
    places = [inbox.seen.index(partial) for partial in partials]
    assert places == sorted(places)
    told = [event for event in inbox.seen[: places[-1]] if isinstance(event, ScaleDrawn)]
    assert shares[told[-1].trace.scale] >= 0.6


def test_a_forked_process_says_so(small_pipe: Pipeline) -> None:
    """Engine threads stay in the process that loaded."""
    schedule = scheduler(small_pipe)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            schedule.submit([image(small_pipe)], Inbox())
            words = b"taken on"
        except Exception as error:
            words = type(error).__name__.encode()
        os.write(writes, words)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        assert pipe.read() == b"Forked"
    os.waitpid(child, 0)


def test_memory_bounds_what_is_in_flight(small_pipe: Pipeline) -> None:
    manifest, cpu = small_pipe.manifest, torch.device("cpu")
    fits = estimate_memory(manifest, 4, 3).total  # batches of four, in three slots
    assert most_in_flight(manifest, cpu, 4, None, memory_limit=fits) == 3
    assert most_in_flight(manifest, cpu, 4, 2, memory_limit=fits) == 2
    assert most_in_flight(manifest, cpu, 2, None) == 4
    with pytest.raises(CapacityError, match=r"4 pictures in flight need up to .*\n.*--max-in-flight 3 fits"):
        most_in_flight(manifest, cpu, 4, 4, memory_limit=fits)
