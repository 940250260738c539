"""Drawings step by step: whatever else is drawn in between, and whoever leaves, an image is what it is alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.engine_runs import engines_of
from helpers.requests import image as checked_image
from helpers.samples import random_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from ldp_runtime import Pipeline
from ldp_runtime.errors import Cancelled, CapacityError, ClosedError, ConfigError, NonFiniteError
from ldp_runtime.pipeline.drawing import Drawing, ScaleEvent
from ldp_runtime.pipeline.memory import estimate_memory
from ldp_runtime.pipeline.request import ImageRequest

TEXTS = random_texts([5, 3, 8])
POLICIES = (
    "none",
    "ld",
    "ld-paper",
    "ld-skip-2",
    "skip:count=1",
    "stop-guidance:scale=2",
    "top-k:score=random",
)


def image(pipe: Pipeline, *, text: int = 0, **options: Any) -> ImageRequest:
    """One checked image."""
    return checked_image(pipe, **{"prompt_embeds": TEXTS[text]} | options)


images = st.fixed_dictionaries(
    {
        "text": st.integers(0, len(TEXTS) - 1),
        "policy": st.sampled_from(POLICIES),
        "seed": st.integers(0, 2**40),
        "guidance_scale": st.sampled_from([None, 1.0, 4.0]),
        "temperature": st.sampled_from([None, 1.3]),
        "top_k": st.sampled_from([None, 1]),
    }
)
#: Images that begin together, and their size.
drawings = st.tuples(st.lists(images, min_size=1, max_size=3), st.sampled_from([1.0, 2.0]))
_ALONE: dict[ImageRequest, torch.Tensor] = {}


def alone(pipe: Pipeline, request: ImageRequest) -> torch.Tensor:
    drawing = pipe.start([request])
    while not drawing.is_done:
        drawing.step()
    return drawing.results()[0][0]


def with_slots(pipe: Pipeline, slots: int, max_batch: int = 4) -> Pipeline:
    """A pipeline of the same engines with memory of its own."""
    return Pipeline(pipe.manifest, engines_of(pipe), pipe._tokenizer, max_batch, pipe.root, slots=slots)


def in_use(pipe: Pipeline) -> tuple[int, int]:
    return pipe._memory.slots_taken, pipe._memory.arenas_taken


@settings(max_examples=25)
@given(begun=st.lists(drawings, min_size=1, max_size=4), slots=st.integers(1, 5), data=st.data())
def test_interleaved_equals_alone(
    small_pipe: Pipeline, begun: list[tuple[list[dict[str, Any]], float]], slots: int, data: st.DataObject
) -> None:
    """Random schedules of steps and cancels, with mixed settings and sizes, and more images than slots."""
    requests = [[image(small_pipe, aspect_ratio=ratio, **one) for one in listed] for listed, ratio in begun]
    pipe = with_slots(small_pipe, slots)
    running = {i: pipe.start(part) for i, part in enumerate(requests)}
    cancelled: set[tuple[int, int]] = set()
    finished: dict[int, Drawing] = {}
    waiting: set[int] = set()
    while running:
        assert waiting != set(running), "all wait for each other"
        i = data.draw(st.sampled_from(sorted(running)))
        if data.draw(st.integers(0, 9)) == 0:
            place = data.draw(st.integers(0, len(requests[i]) - 1))
            running[i].cancel(place)
            cancelled.add((i, place))
        waiting = waiting | {i} if not running[i].is_done and running[i].step() is None else set()
        assert pipe._memory.slots_taken <= slots
        if running[i].is_done:
            finished[i] = running.pop(i)
    assert in_use(pipe) == (0, 0)
    assert pipe._memory.size <= pipe._memory.plan.size
    for i, drawing in finished.items():
        for place, (latent, trace) in enumerate(drawing.results()):
            if (i, place) not in cancelled:
                assert torch.equal(latent, alone(small_pipe, requests[i][place]))
                assert len(trace.scales) == requests[i][place].policy.scales_to_run(requests[i][place].schedule)


def test_strangers_share_early_calls(small_pipe: Pipeline) -> None:
    """A run shares the schedule only: policies, guidance and filters are the image's own."""
    requests = [image(small_pipe, policy="ld", seed=1), image(small_pipe, text=1, guidance_scale=1.0, seed=2)]
    drawing = small_pipe.start(requests)
    first = drawing.step()
    assert first is not None
    assert first.images == (0, 1)
    assert [trace.images_in_call for trace in first.traces] == [2, 2]
    assert [trace.rows for trace in first.traces] == [2, 1]


def test_sizes_of_one_call(small_pipe: Pipeline) -> None:
    together = small_pipe(prompt_embeds=list(TEXTS), seed=4, aspect_ratio=[1.0, 2.0, 1.0])
    assert [picture.size for picture in together.images] == [(64, 64), (44, 88), (64, 64)]
    for i, (text, ratio) in enumerate(zip(TEXTS, (1.0, 2.0, 1.0), strict=True)):
        single = small_pipe(prompt_embeds=text, seed=4 + i, aspect_ratio=ratio)
        assert single.images[0].tobytes() == together.images[i].tobytes()
    heights = small_pipe(prompt_embeds=list(TEXTS[:2]), seed=4, height=[64, 88], width=[64, 44])
    assert [picture.tobytes() for picture in heights.images] == [p.tobytes() for p in together.images[:2]]


@pytest.mark.parametrize("output_type", ["numpy", "torch", "latent"])
def test_sizes_that_make_no_array_are_refused(small_pipe: Pipeline, output_type: str) -> None:
    with pytest.raises(ConfigError, match="images of 2 sizes make no array"):
        small_pipe(prompt_embeds=list(TEXTS[:2]), aspect_ratio=[1.0, 2.0], output_type=output_type)


def test_as_many_sizes_as_images(small_pipe: Pipeline) -> None:
    with pytest.raises(ConfigError, match="2 values of aspect_ratio for 3 images"):
        small_pipe(prompt_embeds=list(TEXTS), aspect_ratio=[1.0, 2.0])


def test_what_starts_together_has_one_size(small_pipe: Pipeline) -> None:
    requests = [image(small_pipe), image(small_pipe, aspect_ratio=2.0)]
    for wrong in (requests, [], [requests[0]] * (small_pipe.max_batch + 1)):
        with pytest.raises(ConfigError, match="a drawing takes 1 to"):
            small_pipe.start(wrong)


def stop(event: ScaleEvent) -> bool:
    return False


def fail(event: ScaleEvent) -> None:
    raise RuntimeError("mine")


@pytest.mark.parametrize(("callback", "error"), [(stop, Cancelled), (fail, RuntimeError)])
@pytest.mark.parametrize("at", [0, 5])
def test_a_run_that_ends_early_gives_its_memory_back(
    small_pipe: Pipeline, callback: Callable[[ScaleEvent], Any], error: type[Exception], at: int
) -> None:
    held: list[tuple[int, int]] = []

    def end(event: ScaleEvent) -> Any:
        held.append(in_use(small_pipe))
        return callback(event) if event.scale == at else None

    with pytest.raises(error):
        small_pipe(prompt_embeds=list(TEXTS), seed=1, policy="ld", callback_on_scale=end)
    assert sum(held[-1]) > 0
    assert in_use(small_pipe) == (0, 0)


@pytest.mark.parametrize("steps", [1, 6])
def test_a_drawing_that_is_closed_or_forgotten_gives_its_memory_back(small_pipe: Pipeline, steps: int) -> None:
    for close in (True, False):
        drawing = small_pipe.start([image(small_pipe, policy="ld", seed=i) for i in range(3)])
        for _ in range(steps):
            drawing.step()
        assert in_use(small_pipe) != (0, 0)
        if close:
            drawing.close()
        del drawing
        assert in_use(small_pipe) == (0, 0)


def test_a_cancelled_image_gives_its_slot_back(small_pipe: Pipeline) -> None:
    drawing = small_pipe.start([image(small_pipe, policy="ld", seed=i) for i in range(3)])
    while in_use(small_pipe)[0] < 3:
        drawing.step()
    drawing.cancel(1)
    assert in_use(small_pipe) == (2, 0)
    drawing.close()


def test_a_batch_takes_as_many_slots_as_are_free(small_pipe: Pipeline) -> None:
    """Its images share early scales, then go on one after another; the pictures are those of any other memory."""
    requests = [image(small_pipe, text=i % 3, policy="ld", seed=i) for i in range(4)]
    pipe = with_slots(small_pipe, 1)
    drawing, order = pipe.start(requests), []
    while not drawing.is_done:
        event = drawing.step()
        assert event is not None
        order.append((event.scale, event.images))
        assert pipe._memory.slots_taken <= 1
    split = min(requests[0].policy.prunes(requests[0].schedule))
    together = [(k, (0, 1, 2, 3)) for k in range(split)]
    assert order == together + [(k, (i,)) for i in range(4) for k in range(split, len(requests[0].schedule))]
    for request, (latent, _) in zip(requests, drawing.results(), strict=True):
        assert torch.equal(latent, alone(small_pipe, request))
    assert pipe._memory.size < small_pipe._memory.plan.size / 2


def test_an_unpruned_batch_goes_on_together(small_pipe: Pipeline) -> None:
    requests = [image(small_pipe, text=i % 3, seed=i) for i in range(3)]
    for slots, groups in ((3, [(0, 1, 2)]), (2, [(0, 1), (2,)])):
        pipe = with_slots(small_pipe, slots)
        drawing = pipe.start(requests)
        seen: dict[tuple[int, ...], int] = {}
        while not drawing.is_done:
            event = drawing.step()
            assert event is not None
            seen[event.images] = event.scale
        assert [images for images in seen if seen[images] == 6] == groups
        for request, (latent, _) in zip(requests, drawing.results(), strict=True):
            assert torch.equal(latent, alone(small_pipe, request))


def test_a_drawing_waits_for_what_another_holds(small_pipe: Pipeline) -> None:
    pipe = with_slots(small_pipe, 1)
    first, second = (pipe.start([image(pipe, policy="ld", seed=seed)]) for seed in (1, 2))
    while not pipe._memory.slots_taken:
        first.step()
    while second.step() is not None:
        pass
    assert not second.is_done
    with pytest.raises(CapacityError, match="held by drawings"):
        pipe(prompt_embeds=TEXTS[0], seed=3, output_type="latent")
    first.close()
    while not second.is_done:
        assert second.step() is not None
    assert torch.equal(second.results()[0][0], alone(small_pipe, image(small_pipe, policy="ld", seed=2)))
    assert torch.isfinite(pipe(prompt_embeds=TEXTS[0], seed=3, output_type="latent").images).all()


def test_a_callback_may_draw_while_its_own_images_hold_every_slot(small_pipe: Pipeline) -> None:
    pipe, inner = with_slots(small_pipe, 1), []

    def draw(event: ScaleEvent) -> None:
        if event.scale == 6:
            inner.append(pipe(prompt_embeds=TEXTS[1], seed=9, output_type="latent").images)

    pipe(prompt_embeds=TEXTS[0], seed=1, policy="ld", callback_on_scale=draw)
    assert torch.equal(inner[0][0], alone(small_pipe, image(small_pipe, text=1, seed=9)))


def test_memory_is_what_was_predicted(small_pipe: Pipeline) -> None:
    """Bytes of every slot and arena, once all of them have been used."""
    for slots, batch in ((1, 1), (1, 4), (2, 3), (4, 4)):
        pipe = with_slots(small_pipe, slots, batch)
        running = [pipe.start([image(pipe, seed=i, policy="ld") for i in range(batch)]) for _ in range(3)]
        for _ in range(20):
            for drawing in running:
                if not drawing.is_done:
                    drawing.step()
        allocated = [*pipe._memory._slots._segments, *pipe._memory._early._segments, *pipe._memory._shared._segments]
        bytes_ = sum(segment.memory.nbytes for segment in allocated)
        assert bytes_ == pipe._memory.size == estimate_memory(pipe.manifest, batch, slots).kv_cache


def test_a_failed_step_closes_its_drawing_only(small_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = small_pipe.start([image(small_pipe, seed=1)]), small_pipe.start([image(small_pipe, seed=2)])
    good.step()
    state = bad._states[0]
    bad.step()
    state.latent.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="scale 1"):
        bad.step()
    assert bad.is_done
    while not good.is_done:
        good.step()
    assert torch.equal(good.results()[0][0], alone(small_pipe, image(small_pipe, seed=1)))


def test_steps_that_make_no_sense_are_typed(small_pipe: Pipeline) -> None:
    """A caller that waits for `None` to pass would wait for ever for what is drawn already."""
    drawing = small_pipe.start([image(small_pipe), image(small_pipe, text=1, policy="ld-skip-2")], [4, 7])
    with pytest.raises(ConfigError, match="still on their way"):
        drawing.results()
    for ask in (drawing.step, drawing.cancel, drawing.result):
        with pytest.raises(ConfigError, match=r"no image 0\n.*\[4, 7\]"):
            ask(0)
    drawing.cancel(4)
    with pytest.raises(ConfigError, match="image 4 is drawn or cancelled"):
        drawing.step(4)
    while not drawing.is_done:
        drawing.step(7)
    for index in (None, 7):
        with pytest.raises(ClosedError, match="left to draw"):
            drawing.step(index)
    drawing.close()
    with pytest.raises(ClosedError, match="left to draw"):
        drawing.step()


def test_requests_are_values(small_pipe: Pipeline) -> None:
    one = image(small_pipe, seed=1)
    assert replace(one, seed=1) == one
    assert one.is_guided
    assert not image(small_pipe, guidance_scale=1.0).is_guided
