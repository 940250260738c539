"""One request, four ways: the library, the server, Ray Serve and a real tritonserver give the same bytes."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from typing import Any

import pytest
from helpers import fleet, http_server
from helpers import tritonserver as triton
from helpers.waiting import HANGS
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle
from ldp_serving.front.loading import ModelOptions
from ldp_serving.triton.repository import write_model
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.triton]

PROMPT = "a red circle"
#: Fields that the library knows too, by its names, and those of the file.
DRAWN: tuple[dict[str, Any], ...] = (
    {"seed": 7},
    {"seed": 2**40 + 3, "policy": "ld", "guidance_scale": 2.5},
    {"seed": 11, "negative_prompt": "a blue star", "temperature": 0.7},
    {"seed": 5, "aspect_ratio": 2.0},
)
FILES = ({"output_format": "png"}, {"output_format": "webp"}, {"output_format": "jpeg", "output_compression": 70})


def over_http(url: str, request: dict[str, Any]) -> bytes:
    """File that a server or a fleet answers."""
    asked = urllib.request.Request(
        f"{url}/v1/images/generations", json.dumps(request).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=HANGS) as answer:
        return base64.b64decode(json.load(answer)["data"][0]["b64_json"])


def over_triton(server: triton.Triton, request: dict[str, Any]) -> bytes:
    """File that Triton answers over gRPC; all but the prompt are parameters."""
    stream = triton.Stream(server)
    stream.ask("small", {name: value for name, value in request.items() if name != "prompt"}, prompt=request["prompt"])
    ((_, file),) = stream.all()
    stream.close()
    return file


def test_the_same_request_gives_the_same_bytes(
    small_bundle: Bundle, small_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> None:
    repository, says = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("says")
    write_model(
        small_bundle, repository, ModelOptions(threads=1, previews=0, policy="none", allow_policy=("ld",)), "small"
    )
    assert small_bundle.root is not None
    options = ("--replicas", "2", "--threads", "1", "--allow-policy", "ld")
    with (
        http_server.running(small_pipe, policy="none", allow_policy=("ld",)) as alone,
        fleet.running(small_bundle.root, says, *options) as replicas,
        triton.running(repository, tmp_path_factory.mktemp("log")) as server,
    ):
        server.client().load_model("small")
        for fields in DRAWN:
            drawn = small_pipe(PROMPT, **{"policy": "none"} | fields).images[0]
            for file in FILES:
                request = {"prompt": PROMPT} | fields | file
                ours = over_http(alone.url, request)
                assert over_http(replicas.url, request) == ours
                assert over_triton(server, request) == ours
                assert shown(ours).size == drawn.size
                if file["output_format"] == "png":
                    assert shown(ours).tobytes() == drawn.tobytes()


def shown(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))
