"""Drawings step by step: whatever else is drawn in between, and whoever leaves, an image is what it is alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.samples import random_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from ldp_runtime import Pipeline
from ldp_runtime.engines.kv_cache import DynamicKVCache
from ldp_runtime.errors import Cancelled, ConfigError, NonFiniteError
from ldp_runtime.pipeline.drawing import Drawing, ScaleEvent
from ldp_runtime.pipeline.request import ImageRequest, make_request
from ldp_runtime.pruning.parse import parse_policy

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


def image(pipe: Pipeline, *, text: int = 0, policy: str = "none", **options: Any) -> ImageRequest:
    """One checked image."""
    plain: dict[str, Any] = dict.fromkeys(
        ("prompt", "class_labels", "negative_prompt", "negative_prompt_embeds", "guidance_scale", "temperature",
         "top_k", "top_p", "seed", "aspect_ratio", "height", "width")
    )  # fmt: skip
    plain |= {"num_images_per_prompt": 1, "output_type": "pil", "cfg_insertion_layer": (0,), "more_smooth": False}
    plain |= {"prompt_embeds": TEXTS[text], "policy": parse_policy(policy)} | options
    return make_request(pipe.manifest, **plain).images[0]


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


@settings(max_examples=40)
@given(begun=st.lists(drawings, min_size=1, max_size=3), data=st.data())
def test_interleaved_equals_alone(
    small_pipe: Pipeline, begun: list[tuple[list[dict[str, Any]], float]], data: st.DataObject
) -> None:
    """Random schedules of steps and cancels, with mixed settings and sizes."""
    requests = [[image(small_pipe, aspect_ratio=ratio, **one) for one in listed] for listed, ratio in begun]
    running = {i: small_pipe.start(part) for i, part in enumerate(requests)}
    cancelled: set[tuple[int, int]] = set()
    finished: dict[int, Drawing] = {}
    while running:
        i = data.draw(st.sampled_from(sorted(running)))
        if data.draw(st.integers(0, 9)) == 0:
            place = data.draw(st.integers(0, len(requests[i]) - 1))
            running[i].cancel(place)
            cancelled.add((i, place))
        if not running[i].is_done:
            running[i].step()
        if running[i].is_done:
            finished[i] = running.pop(i)
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
def test_a_run_that_ends_early_gives_its_memory_back(
    small_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, callback: Callable[[ScaleEvent], Any], error: type[Exception]
) -> None:
    arenas: list[weakref.ref[DynamicKVCache]] = []
    original = DynamicKVCache.__init__

    def record(self: DynamicKVCache, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        arenas.append(weakref.ref(self))

    monkeypatch.setattr(DynamicKVCache, "__init__", record)
    try:
        small_pipe(prompt_embeds=list(TEXTS), seed=1, policy="ld", callback_on_scale=callback)
    except error:
        pass
    else:
        pytest.fail("it went on")
    gc.collect()
    assert arenas
    assert not any(ref() is not None for ref in arenas)


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


def test_requests_are_values(small_pipe: Pipeline) -> None:
    one = image(small_pipe, seed=1)
    assert replace(one, seed=1) == one
    assert one.is_guided
    assert not image(small_pipe, guidance_scale=1.0).is_guided
