"""A real tritonserver draws what the library draws; previews, cancelling, errors, two models, unload and reload."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.http_server import running as running_http
from helpers.markdown import DOCS, code_blocks
from helpers.tritonserver import Stream, Triton, running
from helpers.var_samples import VAR_MODELS, build_var_bundle
from helpers.waiting import HANGS
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle
from ldp_serving.front.loading import ModelOptions
from ldp_serving.triton.repository import write_model
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.triton]

OPTIONS: dict[str, Any] = {"threads": 1, "previews": 0, "policy": "none"}


@pytest.fixture(scope="module")
def var_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("var")
    return build_var_bundle(VAR_MODELS["one AdaLN for all blocks"].write(folder / "sources"), folder / "bundle")


@pytest.fixture(scope="module")
def triton(small_bundle: Bundle, var_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    repository = tmp_path_factory.mktemp("models")
    write_model(small_bundle, repository, ModelOptions(**OPTIONS, allow_policy=("ld",)), "small")
    write_model(var_bundle, repository, ModelOptions(**OPTIONS), "classes")
    with running(repository, tmp_path_factory.mktemp("log")) as started:
        for name in ("small", "classes"):
            started.client().load_model(name)
        yield started


@pytest.fixture
def stream(triton: Triton) -> Iterator[Stream]:
    opened = Stream(triton)
    yield opened
    opened.close()


def pixels(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).tobytes()


def drawn(pipe: Pipeline, **request: Any) -> bytes:
    return pipe(request.pop("prompt", None), policy=request.pop("policy", "none"), **request).images[0].tobytes()


def wait_until(done: Any) -> None:
    ends = time.monotonic() + HANGS
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_pictures_are_those_of_the_library(stream: Stream, small_pipe: Pipeline) -> None:
    """Whether a field comes as a tensor or as a parameter."""
    stream.ask("small", prompt="a red circle", seed=7)
    ((fields, file),) = stream.all()
    assert pixels(file) == drawn(small_pipe, prompt="a red circle", seed=7)
    assert (fields["type"], fields["seed"], fields["size"]) == ("image_generation.completed", 7, "64x64")
    stream.ask("small", {"seed": 7, "policy": "ld", "guidance_scale": 2.5}, prompt="a red circle")
    ((_, file),) = stream.all()
    assert pixels(file) == drawn(small_pipe, prompt="a red circle", seed=7, policy="ld", guidance_scale=2.5)


def test_files_are_those_of_the_server(stream: Stream, small_pipe: Pipeline) -> None:
    request = {"prompt": "a red circle", "n": 2, "seed": 3, "output_format": "webp"}
    stream.ask("small", **request)
    files = {fields["image_index"]: file for fields, file in stream.all()}
    with running_http(small_pipe, policy="none") as server:
        asked = urllib.request.Request(
            f"{server.url}/v1/images/generations", json.dumps(request).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked) as answer:
            data = json.load(answer)["data"]
    assert [base64.b64decode(entry["b64_json"]) for entry in data] == [files[0], files[1]]


def test_requests_of_one_stream_run_together(stream: Stream, small_pipe: Pipeline) -> None:
    seeds = range(30, 36)
    for seed in seeds:
        stream.ask("small", request_id=str(seed), prompt="a blue star", seed=seed)
    files: dict[str, bytes] = {}
    ended = 0
    while ended < len(seeds):
        fields, file, last = stream.next()
        ended += last
        if fields:
            files[fields["id"]] = file
    for seed in seeds:
        assert pixels(files[str(seed)]) == drawn(small_pipe, prompt="a blue star", seed=seed)


def test_previews_come_in_order_before_the_picture(stream: Stream, small_pipe: Pipeline) -> None:
    stream.ask("small", prompt="a red circle", seed=7, partial_images=2, stream_scales=True)
    answers = stream.all()
    kinds = [fields["type"].rpartition(".")[2] for fields, _ in answers]
    assert [fields["partial_image_index"] for fields, _ in answers if "partial_image_index" in fields] == [0, 1]
    assert [fields["scale"] for fields, _ in answers if fields["type"] == "ldp.scale"] == list(range(7))
    assert kinds[-1] == "completed"
    assert Image.open(io.BytesIO(answers[kinds.index("partial_image")][1])).size == (64, 64)
    assert pixels(answers[-1][1]) == drawn(small_pipe, prompt="a red circle", seed=7)


def test_a_cancelled_stream_draws_no_more(triton: Triton, stream: Stream, small_pipe: Pipeline) -> None:
    before = {name: triton.metric(name, "small") for name in ("ldp_pictures_total", "ldp_cancelled_total")}
    leaving = Stream(triton)
    leaving.ask("small", prompt="a red circle", n=10, stream_scales=True)
    assert leaving.next()[0]["type"] == "ldp.scale"
    leaving.cancel()
    wait_until(lambda: triton.metric("ldp_cancelled_total", "small") > before["ldp_cancelled_total"])
    stream.ask("small", prompt="a red circle", seed=8)
    ((_, file),) = stream.all()
    assert pixels(file) == drawn(small_pipe, prompt="a red circle", seed=8)
    wait_until(lambda: triton.metric("ldp_pictures_total", "small") > before["ldp_pictures_total"])
    assert triton.metric("ldp_pictures_total", "small") < before["ldp_pictures_total"] + 10


@pytest.mark.parametrize(
    ("fields", "parameters", "code", "param", "status"),
    [
        ({"prompt": "x", "policy": "top-k"}, None, "invalid_value", "policy", "INVALID_ARGUMENT"),
        ({"prompt": "x"}, {"steps": 3}, "unknown_parameter", "steps", "INVALID_ARGUMENT"),
        ({"prompt": " "}, None, "invalid_value", "prompt", "INVALID_ARGUMENT"),
        ({"prompt": "x", "deadline_ms": 1}, None, "deadline", None, "UNAVAILABLE"),
    ],
)
def test_errors_are_typed(
    triton: Triton, fields: dict[str, Any], parameters: Any, code: str, param: str | None, status: str
) -> None:
    """In the message, as the server has it; and as a status, where the client asks for that."""
    import tritonclient.utils

    for headers in ({}, {"triton_grpc_error": "true"}):
        asking = Stream(triton, **headers)
        asking.ask("small", parameters, **fields)
        with pytest.raises(tritonclient.utils.InferenceServerException) as caught:
            asking.next()
        error = json.loads(str(caught.value.message()))["error"]
        assert (error["code"], error["param"]) == (code, param)
        if headers:
            assert status in str(caught.value.status())
        asking.cancel()


def test_two_models_draw_side_by_side(stream: Stream, var_bundle: Bundle, small_pipe: Pipeline) -> None:
    stream.ask("classes", request_id="classes", class_label=1, seed=5)
    stream.ask("small", request_id="small", prompt="a green ring", seed=5)
    files: dict[str, bytes] = {}
    while len(files) < 2:
        fields, file, _ = stream.next()
        if fields:
            files[fields["id"]] = file
    assert pixels(files["small"]) == drawn(small_pipe, prompt="a green ring", seed=5)
    with Pipeline.load(var_bundle, threads=1) as pipe:
        assert pixels(files["classes"]) == drawn(pipe, class_labels=1, seed=5)


def test_http_generates_a_picture_and_a_closed_stream_cancels(triton: Triton, small_pipe: Pipeline) -> None:
    fields: dict[str, Any] = {"prompt": "a red circle", "seed": 7, "response_format": "b64_json"}
    asked = urllib.request.Request(f"{triton.http}/v2/models/small/generate", json.dumps(fields).encode())
    with urllib.request.urlopen(asked) as answer:
        body = json.load(answer)
    assert pixels(base64.b64decode(body["image"])) == drawn(small_pipe, prompt="a red circle", seed=7)
    assert json.loads(body["event"])["seed"] == 7
    before = triton.metric("ldp_cancelled_total", "small")
    asked = urllib.request.Request(
        f"{triton.http}/v2/models/small/generate_stream", json.dumps(fields | {"n": 10, "stream_scales": True}).encode()
    )
    with urllib.request.urlopen(asked) as answer:
        assert answer.readline().startswith(b"data:")
    wait_until(lambda: triton.metric("ldp_cancelled_total", "small") == before + 1)


def test_the_pages_sample_runs(triton: Triton, capsys: pytest.CaptureFixture[str]) -> None:
    (sample,) = (block.text for block in code_blocks(DOCS / "guide" / "triton.md") if block.language == "py")
    here = sample.replace("127.0.0.1:8001", f"127.0.0.1:{triton.ports['grpc']}").replace("infinity-shapes", "small")
    exec(compile(here, "triton.md", "exec"), {})
    kinds = capsys.readouterr().out.split()
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]


def test_unload_and_reload_leak_nothing(triton: Triton, small_pipe: Pipeline) -> None:
    """Neither processes, nor threads, descriptors or shared memory. A stream keeps the model until it is closed."""
    client, own = triton.client(), psutil.Process(triton.process.pid)

    def reload() -> dict[str, int]:
        client.unload_model("small")
        wait_until(lambda: len(triton.stubs()) == 1)  # that of the other model
        client.load_model("small")
        stream = Stream(triton)
        stream.ask("small", prompt="a red circle", seed=7)
        ((_, file),) = stream.all()
        stream.close()
        assert pixels(file) == drawn(small_pipe, prompt="a red circle", seed=7)
        shared = sum(path.name.startswith("triton_python_backend") for path in Path("/dev/shm").iterdir())
        return {"threads": own.num_threads(), "descriptors": own.num_fds(), "stubs": len(triton.stubs()), "shm": shared}

    reload()
    before, rss = reload(), own.memory_info().rss
    after = [reload() for _ in range(3)][-1]
    assert after["stubs"] == before["stubs"]
    assert after["shm"] == before["shm"]
    assert after["threads"] <= before["threads"] + 2
    assert after["descriptors"] <= before["descriptors"] + 4
    assert own.memory_info().rss <= rss + 64 * 2**20


def test_a_model_unloaded_while_it_draws_answers_first(triton: Triton) -> None:
    """Triton waits for what runs; nothing hangs, and no request goes unanswered."""
    client, stream = triton.client(), Stream(triton)
    stream.ask("small", prompt="a red circle", n=5, stream_scales=True)
    assert stream.next()[0]["type"] == "ldp.scale"
    unloading = threading.Thread(target=client.unload_model, args=("small",))
    unloading.start()
    completed = [fields for fields, _ in stream.all() if fields["type"] == "image_generation.completed"]
    assert len(completed) == 5
    stream.close()
    unloading.join(HANGS)
    wait_until(lambda: len(triton.stubs()) == 1)
    client.load_model("small")
