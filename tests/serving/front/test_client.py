"""The published `openai` client, unmodified, against a server on a real port."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from helpers.http_server import Running, running
from helpers.serving import alone, image
from ldp_runtime import Pipeline
from openai import OpenAI
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image


@pytest.fixture(scope="module")
def server(small_pipe: Pipeline) -> Iterator[Running]:
    with running(small_pipe, log_prompts=True) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


def picture(data: str | None) -> Image.Image:
    assert data is not None
    opened = Image.open(io.BytesIO(base64.b64decode(data)))
    opened.load()
    return opened


def drawn(answer: ImagesResponse, at: int = 0) -> Image.Image:
    assert answer.data is not None
    return picture(answer.data[at].b64_json)


def test_a_picture_is_what_it_is_alone(server: Running, client: OpenAI) -> None:
    answer = client.images.generate(prompt="a red circle", extra_body={"seed": 7})
    assert ImagesResponse.model_validate(answer.model_dump())
    assert drawn(answer).tobytes() == alone(server.pipe, image(server.pipe, seed=7, policy="ld"))
    assert answer.size == "64x64"
    assert (answer.background, answer.output_format) == ("opaque", "png")
    usage = answer.usage
    assert usage is not None
    assert usage.output_tokens_details is not None
    assert usage.input_tokens == 4
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    full: Any = usage.output_tokens_details
    assert 0 < usage.output_tokens <= full.image_tokens_full


def test_several_pictures_count_their_seeds_up(server: Running, client: OpenAI) -> None:
    answer = client.images.generate(prompt="blue", n=5, extra_body={"seed": 3, "policy": "none", "return_trace": True})
    assert answer.data is not None
    assert len(answer.data) == 5
    for i, entry in enumerate(answer.data):
        extra: Any = entry
        assert extra.seed == 3 + i
        assert len(extra.trace["scales"]) == 7
        assert drawn(answer, i).tobytes() == alone(server.pipe, image(server.pipe, prompt="blue", seed=3 + i))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats_carry_the_mark(client: OpenAI, kind: Any) -> None:
    answer = client.images.generate(prompt="blue", output_format=kind, extra_body={"seed": 1})
    opened = drawn(answer)
    assert answer.output_format == kind
    assert opened.format == kind.upper()
    mark = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp")
    assert "trainedAlgorithmicMedia" in (mark.decode() if isinstance(mark, bytes) else str(mark))


def test_compression_makes_smaller_files(client: OpenAI) -> None:
    sizes = []
    for level in (100, 20):
        answer = client.images.generate(
            prompt="blue", output_format="jpeg", output_compression=level, extra_body={"seed": 1}
        )
        assert answer.data is not None
        sizes.append(len(answer.data[0].b64_json or ""))
    assert sizes[1] < sizes[0]


def test_sizes(server: Running, client: OpenAI) -> None:
    tall = client.images.generate(prompt="blue", size="44x88", extra_body={"seed": 1})
    assert drawn(tall).size == (44, 88)
    near = client.images.generate(prompt="blue", size="512x1024", extra_body={"seed": 1, "nearest_size": True})
    assert near.size == "44x88"
    assert drawn(near).tobytes() == drawn(tall).tobytes()
    with pytest.raises(openai.BadRequestError, match=r"this model draws .*64x64") as caught:
        client.images.generate(prompt="blue", size="512x1024")
    assert caught.value.param == "size"


def test_settings_reach_the_picture(server: Running, client: OpenAI) -> None:
    extra = {"seed": 2, "guidance_scale": 1.5, "temperature": 1.2, "negative_prompt": "green star", "aspect_ratio": 2.0}
    answer = client.images.generate(prompt="blue", quality="high", user="me", extra_body=extra | {"policy": "none"})
    wanted = image(
        server.pipe, prompt="blue", negative_prompt="green star", seed=2, guidance_scale=1.5, temperature=1.2,
        aspect_ratio=2.0,
    )  # fmt: skip
    assert drawn(answer).tobytes() == alone(server.pipe, wanted)
    assert (answer.quality, answer.safety_identifier) == ("high", "me")


@pytest.mark.parametrize("partials", [0, 1, 3])
def test_streaming(server: Running, client: OpenAI, partials: int) -> None:
    stream = client.images.generate(prompt="blue", stream=True, partial_images=partials, extra_body={"seed": 5})
    events = list(stream)
    *before, last = events
    assert [event.type for event in before] == ["image_generation.partial_image"] * partials
    assert [event.partial_image_index for event in before if isinstance(event, ImageGenPartialImageEvent)] == list(
        range(partials)
    )
    assert isinstance(last, ImageGenCompletedEvent)
    assert ImageGenCompletedEvent.model_validate(last.model_dump())
    assert picture(last.b64_json).tobytes() == alone(
        server.pipe, image(server.pipe, prompt="blue", seed=5, policy="ld")
    )
    assert all(picture(event.b64_json).size == (64, 64) for event in events)
    assert last.usage.output_tokens > 0


def test_streaming_every_scale(client: OpenAI) -> None:
    extra = {"seed": 5, "stream_scales": True}
    events: list[Any] = list(client.images.generate(prompt="blue", stream=True, extra_body=extra))
    scales = [event for event in events if event.type == "ldp.scale"]
    assert [event.scale for event in scales] == list(range(7))
    assert all(event.tokens == (event.tokens_full if event.kept is None else len(event.kept)) for event in scales)
    assert events[-1].type == "image_generation.completed"


def test_streaming_several_pictures(server: Running, client: OpenAI) -> None:
    stream = client.images.generate(prompt="blue", n=2, stream=True, extra_body={"seed": 1, "policy": "none"})
    ended: dict[int, Any] = {event.image_index: event for event in stream}  # pyright: ignore
    for i in range(2):
        wanted = alone(server.pipe, image(server.pipe, prompt="blue", seed=1 + i))
        assert picture(ended[i].b64_json).tobytes() == wanted


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "  "}, "prompt"),
    ({"prompt": "x" * 32_001}, "prompt"),
    ({"prompt": "red " * 600}, "prompt"),
    ({"n": 0}, "n"),
    ({"n": 11}, "n"),
    ({"size": "64"}, "size"),
    ({"size": "063x64"}, "size"),
    ({"size": "64x64", "aspect_ratio": 1.0}, "aspect_ratio"),
    ({"aspect_ratio": -1.0}, "aspect_ratio"),
    ({"output_format": "gif"}, "output_format"),
    ({"output_compression": 50}, "output_compression"),
    ({"output_format": "jpeg", "output_compression": 101}, "output_compression"),
    ({"response_format": "url"}, "response_format"),
    ({"background": "transparent"}, "background"),
    ({"quality": "best"}, "quality"),
    ({"style": "loud"}, "style"),
    ({"moderation": "none"}, "moderation"),
    ({"frame_count": 4}, "frame_count"),
    ({"partial_images": 2}, "partial_images"),
    ({"stream": True, "partial_images": 4}, "partial_images"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64 - 1, "n": 2}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": True}, "seed"),
    ({"policy": "ld-skip-2"}, "policy"),
    ({"policy": "/etc/passwd.json"}, "policy"),
    ({"temperature": 0.0}, "temperature"),
    ({"guidance_scale": "high"}, "guidance_scale"),
    ({"negative_prompt": ""}, "negative_prompt"),
    ({"class_label": 3}, "class_label"),
    ({"deadline_ms": 0}, "deadline_ms"),
    ({"steps": 30}, "steps"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_served_is_refused(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": "blue", "extra_body": fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code


def test_error_classes(server: Running, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="blue", model="gpt-image-2")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(input="blue", model="small", encoding_format="float")
    with pytest.raises(openai.RateLimitError) as refused:
        client.images.generate(prompt="blue", extra_body={"deadline_ms": 1})
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "small"
    assert client.models.retrieve("small").id == "small"


def test_time_outs_of_the_client_cancel(server: Running, client: OpenAI) -> None:
    server.settle()
    before = server.metric("ldp_requests_total", model="small", outcome="cancelled")
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.02).images.generate(prompt="blue", n=10, extra_body={"policy": "none"})
    server.settle()
    assert server.metric("ldp_requests_total", model="small", outcome="cancelled") == before + 1


def test_retries_of_the_client(small_pipe: Pipeline) -> None:
    """A full queue is tried again after the time that the server names; then the request is served."""
    with running(small_pipe, max_queue=1, max_images=1, max_batch=1) as server:
        server.model.scheduler.rates.picture_s = 0.2
        url = f"{server.url}/v1"
        with (
            OpenAI(base_url=url, api_key="none", max_retries=8) as patient,
            OpenAI(base_url=url, api_key="none", max_retries=0) as other,
        ):
            streams = [
                other.images.generate(prompt="blue", stream=True, extra_body={"stream_scales": True, "seed": 1})
                for _ in range(1)
            ]
            answer = patient.images.generate(prompt="blue", extra_body={"seed": 2})
            assert answer.data
            for stream in streams:
                assert list(stream)
