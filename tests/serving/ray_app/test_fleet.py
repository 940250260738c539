"""Two replicas on Ray Serve: the server's own bytes, replicas that are killed or break, overload, and streams."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.fleet import Fleet, running
from helpers.http_server import running as running_alone
from helpers.waiting import HANGS
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle
from openai import OpenAI, RateLimitError
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    assert small_bundle.root is not None
    with running(
        small_bundle.root, tmp_path_factory.mktemp("says"), "--replicas", "2", "--threads", "1", "--max-queue", "10"
    ) as started:
        yield started


@pytest.fixture(autouse=True)
def whole(fleet: Fleet) -> Iterator[None]:
    """Each test begins with two replicas that hold nothing back."""
    fleet.release()
    fleet.wait(lambda: len(fleet.replicas()) == 2 and answers(fleet))
    yield
    fleet.release()


def answers(fleet: Fleet) -> bool:
    try:
        with urllib.request.urlopen(f"{fleet.url}/ready", timeout=HANGS) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def ask(url: str, **body: Any) -> Any:
    """An open answer."""
    raw = json.dumps({"prompt": "a red circle"} | body).encode()
    asked = urllib.request.Request(f"{url}/v1/images/generations", raw, {"content-type": "application/json"})
    return urllib.request.urlopen(asked, timeout=HANGS)


def files(url: str, **body: Any) -> list[bytes]:
    with ask(url, **body) as answer:
        return [base64.b64decode(entry["b64_json"]) for entry in json.load(answer)["data"]]


def events(answer: Any) -> Iterator[tuple[str, Any]]:
    """Events of a stream; the end of a complete one is "[DONE]"."""
    name = ""
    for raw in answer:
        line = raw.decode().strip()
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield ("done", None) if data == "[DONE]" else (name, json.loads(data))


def test_the_same_request_gives_the_same_bytes(fleet: Fleet, small_pipe: Pipeline) -> None:
    """Through the library, the server and the fleet."""
    with running_alone(small_pipe, policy="none") as server:
        for request in ({"n": 3, "seed": 7}, {"seed": 7, "output_format": "webp"}):
            assert files(fleet.url, **request) == files(server.url, **request)
    drawn = small_pipe("a red circle", seed=7, policy="none").images[0]
    assert Image.open(io.BytesIO(files(fleet.url, seed=7)[0])).tobytes() == drawn.tobytes()


def test_both_replicas_draw(fleet: Fleet) -> None:
    fleet.hold()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(files, fleet.url, seed=seed) for seed in range(8)]
        fleet.wait(lambda: fleet.holders() == fleet.replicas() or len(fleet.holders()) == 2)
        fleet.release()
        drawn = [future.result(HANGS)[0] for future in asked]
    assert len(set(drawn)) == 8


def test_metrics_are_those_of_all_replicas(fleet: Fleet) -> None:
    with urllib.request.urlopen(f"{fleet.url}/metrics") as page:
        text = page.read().decode()
    for replica in ("0", "1"):
        assert f'replica="{replica}"' in text


def test_the_page_is_there(fleet: Fleet) -> None:
    with urllib.request.urlopen(fleet.url) as page:
        assert page.headers["content-type"].startswith("text/html")
        assert b"<html" in page.read()


def test_the_published_client_streams_and_is_refused_in_its_own_terms(fleet: Fleet) -> None:
    with OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0) as client:
        seen = [event.type for event in client.images.generate(prompt="a star", stream=True, partial_images=2)]
        assert seen == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
        with pytest.raises(RateLimitError) as caught:
            client.images.generate(prompt="a star", extra_body={"deadline_ms": 1})
    assert caught.value.code == "deadline"


def test_overload_is_answered_by_the_replicas_own_queues(fleet: Fleet) -> None:
    """More requests come at once than both queues hold, again until some are refused; those get OpenAI's 429."""

    def status(seed: int) -> tuple[int, str]:
        try:
            return len(files(fleet.url, seed=seed, n=10)), ""
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]["code"] if error.headers["retry-after"] else "no time"

    ends: set[tuple[int, str]] = set()
    with ThreadPoolExecutor(12) as pool:
        fleet.wait(lambda: len(ends.update(pool.map(status, range(12))) or ends) > 1)
    assert ends == {(10, ""), (429, "queue_full")}


def test_a_killed_replica_loses_no_request_before_its_first_byte(fleet: Fleet, small_pipe: Pipeline) -> None:
    """All requests that the dead replica had are answered by the other, with the same pictures, whole or streamed."""
    expected = {seed: files(fleet.url, seed=seed) for seed in range(6)}
    fleet.hold()
    with ThreadPoolExecutor(6) as pool:
        asked = {seed: pool.submit(files, fleet.url, seed=seed) for seed in range(5)}
        streamed = pool.submit(lambda: list(events(ask(fleet.url, seed=5, stream=True))))
        fleet.wait(lambda: len(fleet.holders()) == 2)
        os.kill(fleet.holders()[0], signal.SIGKILL)
        fleet.release()
        for seed, future in asked.items():
            assert future.result(HANGS) == expected[seed]
        (name, completed), end = streamed.result(HANGS)
    assert (name, end) == ("image_generation.completed", ("done", None))
    assert base64.b64decode(completed["b64_json"]) == expected[5][0]


def test_a_stream_whose_replica_is_killed_ends_as_an_error(fleet: Fleet) -> None:
    """After its first event it cannot be drawn again unseen; the other replica serves on."""
    fleet.hold(first=2)
    stream = events(ask(fleet.url, seed=0, n=3, stream=True))
    assert next(stream)[0] == "image_generation.completed"
    fleet.wait(lambda: fleet.holders(2))
    os.kill(fleet.holders(2)[0], signal.SIGKILL)
    fleet.release()
    assert len(files(fleet.url, seed=1)) == 1
    ((name, error),) = list(stream)
    assert (name, error["error"]["code"]) == ("error", "replica_lost")


def test_a_replica_whose_engine_ends_is_replaced(fleet: Fleet) -> None:
    """Requests that it had are answered by the other one, and so are those that come meanwhile."""
    before, expected = fleet.replicas(), files(fleet.url, seed=3)
    (fleet.says / "break").touch()
    assert files(fleet.url, seed=3) == expected
    assert not (fleet.says / "break").exists()
    for seed in range(4):
        assert len(files(fleet.url, seed=seed)) == 1
    fleet.wait(lambda: len(fleet.replicas()) == 2 and fleet.replicas() != before)


def test_a_client_that_leaves_cancels(fleet: Fleet) -> None:
    answer = ask(fleet.url, n=10, stream=True, stream_scales=True)
    assert next(events(answer))[0] == "ldp.scale"
    before = cancelled(fleet)
    answer.close()
    fleet.wait(lambda: cancelled(fleet) == before + 1)


def cancelled(fleet: Fleet) -> float:
    with urllib.request.urlopen(f"{fleet.url}/metrics") as page:
        lines = page.read().decode().splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith("ldp_requests_total") and 'outcome="cancelled"' in x)


def test_sigterm_lets_what_runs_end(fleet: Fleet) -> None:
    """The last test: it ends the fleet, with status 0."""
    fleet.hold(first=2)
    stream = events(ask(fleet.url, seed=0, n=3, stream=True))
    assert next(stream)[0] == "image_generation.completed"
    fleet.process.send_signal(signal.SIGTERM)
    fleet.wait(lambda: not answers(fleet))
    fleet.release()
    assert [name for name, _ in stream] == ["image_generation.completed"] * 2 + ["done"]
    assert fleet.process.wait(HANGS) == 0
